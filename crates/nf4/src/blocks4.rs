//! 4-bit blocks: sixteen levels and one absmax for every `block_size` elements of a flat, row-major tensor.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::code::QuantType;
use crate::element::{Element, for_each_piece};
use crate::error::{Error, check_len};
use crate::kernels::{Run, selected};
use crate::scales::{NESTED_BLOCK_SIZE, Scales};

/// The block sizes of the format.
pub const BLOCK_SIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];
const ALLOWED: &str = "32, 64, 128, 256, 512, 1024, 2048, 4096";

/// Elements that one task works on: a multiple of every block size, so the result cannot depend on who does what.
const TASK: usize = 1 << 16;

/// A quantised tensor, in the layout of bitsandbytes: element `i` belongs to block `i / block_size` of the flattened
/// tensor (blocks may straddle rows), byte `k` holds element `2k` in its high nibble and `2k + 1` in its low one.
///
/// The fields are for reading; build one with [`quantize4`] or [`Blocks4::from_parts`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Blocks4 {
    /// The code of the nibbles.
    pub quant_type: QuantType,
    /// Elements a block; the last block may be shorter.
    pub block_size: usize,
    /// Elements.
    pub len: usize,
    /// `(len + 1) / 2` bytes. With an odd `len` the last low nibble is spare and holds the code of zero.
    pub packed: Vec<u8>,
    /// One absmax a block.
    pub scales: Scales,
}

/// Quantises `x` in blocks of `block_size` elements.
///
/// Each block stores its largest magnitude and, for every element, the nibble of `x * (1 / absmax)` by the thresholds
/// of the CUDA kernels of bitsandbytes. With `double_quant` the absmax values are themselves quantised to 8 bits.
/// Work is spread over rayon's threads; the bits do not depend on how many there are.
///
/// Every bit pattern is accepted. NaN is ignored by the absmax and stored as nibble 0 (NF4) or zero (FP4, INT4); a block
/// without a normal number gets absmax 0; an infinity makes its block's absmax infinite, and then the block decodes to
/// NaN and infinities. Under double quantisation a non-finite absmax spoils the mean, and so every scale.
///
/// # Errors
/// [`Error::BlockSize`] if the block size is not one of [`BLOCK_SIZES`].
pub fn quantize4<T: Element>(
    x: &[T],
    quant_type: QuantType,
    block_size: usize,
    double_quant: bool,
) -> Result<Blocks4, Error> {
    check_block_size("quantize4", block_size)?;
    let mut packed = vec![0; x.len().div_ceil(2)];
    let mut absmax = vec![0.0; x.len().div_ceil(block_size)];
    let task = |((x, packed), absmax): ((&[T], &mut [u8]), &mut [f32])| {
        let k = selected();
        for_each_piece(k, x, block_size, |at, values| {
            let packed = &mut packed[at / 2..][..values.len().div_ceil(2)];
            let absmax = &mut absmax[at / block_size..][..values.len().div_ceil(block_size)];
            k.encode4(values, block_size, quant_type.rule(), packed, absmax);
        });
    };
    let tasks = x.par_chunks(TASK).zip(packed.par_chunks_mut(TASK / 2)).zip(absmax.par_chunks_mut(TASK / block_size));
    tasks.for_each(task);
    let scales = if double_quant { Scales::double(&absmax) } else { Scales::Plain(absmax) };
    Ok(Blocks4 { quant_type, block_size, len: x.len(), packed, scales })
}

impl Blocks4 {
    /// Puts together what was stored, for example in a checkpoint. Contents are taken as they are; every byte decodes.
    ///
    /// # Errors
    /// [`Error::BlockSize`], or [`Error::Length`] naming the part whose length does not fit `len` and `block_size`.
    pub fn from_parts(
        quant_type: QuantType,
        block_size: usize,
        len: usize,
        packed: Vec<u8>,
        scales: Scales,
    ) -> Result<Blocks4, Error> {
        Blocks4::check_parts(block_size, len, packed.len(), &scales)?;
        Ok(Blocks4 { quant_type, block_size, len, packed, scales })
    }

    /// Checks what [`from_parts`](Self::from_parts) checks, of `packed` bytes that lie elsewhere.
    ///
    /// # Errors
    /// Those of [`from_parts`](Self::from_parts).
    pub fn check_parts(block_size: usize, len: usize, packed: usize, scales: &Scales) -> Result<(), Error> {
        let op = "Blocks4::from_parts";
        check_block_size(op, block_size)?;
        check_len(op, "packed", len.div_ceil(2), packed)?;
        scales.check(op, len.div_ceil(block_size))
    }

    /// Decodes everything: `code[nibble] * absmax` in `f32`, rounded once to `T`. On all of rayon's threads.
    ///
    /// # Panics
    /// If `out.len() != self.len`.
    pub fn dequantize<T: Element>(&self, out: &mut [T]) {
        assert_eq!(out.len(), self.len, "dequantize: the output must have the tensor's length");
        if self.len <= TASK {
            return self.dequantize_range(0, out);
        }
        out.par_chunks_mut(TASK).enumerate().for_each(|(i, out)| self.dequantize_range(i * TASK, out));
    }

    /// Decodes elements `start..start + out.len()`, on this thread. Any start is fine.
    ///
    /// # Panics
    /// If the range reaches beyond the tensor.
    pub fn dequantize_range<T: Element>(&self, start: usize, out: &mut [T]) {
        let end = start.checked_add(out.len()).filter(|&end| end <= self.len);
        let end = end.expect("dequantize_range: the range must lie within the tensor");
        let mut at = start;
        let mut out = out;
        // Whatever lies before a block's beginning is a run in itself, with its block's scale.
        if at < end && !at.is_multiple_of(self.block_size) {
            let head = (self.block_size - at % self.block_size).min(end - at);
            let (first, rest) = out.split_at_mut(head);
            self.dequantize_within_block(at, first);
            (at, out) = (at + head, rest);
        }
        let first = at / self.block_size;
        let scales = self.scales.range(first, out.len().div_ceil(self.block_size));
        if !out.is_empty() {
            T::decode4(selected(), self.run(at, &scales), out);
        }
    }

    /// Elements of one block, from any of its elements on.
    fn dequantize_within_block<T: Element>(&self, start: usize, out: &mut [T]) {
        let scale = [self.block_absmax(start / self.block_size)];
        let odd = start % 2;
        if odd == 1 {
            let nibble = self.packed[start / 2] & 15;
            out[0] = T::from_f32(self.quant_type.code()[usize::from(nibble)] * scale[0]);
        }
        if out.len() > odd {
            T::decode4(selected(), self.run(start + odd, &scale), &mut out[odd..]);
        }
    }

    /// The stored bytes from an even element on.
    fn run<'a>(&'a self, start: usize, scales: &'a [f32]) -> Run<'a> {
        Run { packed: &self.packed[start / 2..], scales, code: self.quant_type.code(), block_size: self.block_size }
    }

    /// How many blocks there are, the short last one included.
    pub fn blocks(&self) -> usize {
        self.len.div_ceil(self.block_size)
    }

    /// The absmax of every block, decoded.
    pub fn absmax(&self) -> Cow<'_, [f32]> {
        self.scales.to_f32()
    }

    /// The absmax of block `i`, decoded.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn block_absmax(&self, i: usize) -> f32 {
        self.scales.get(i)
    }

    /// Bytes that nibbles and scales take.
    pub fn bytes(&self) -> usize {
        self.packed.len() + self.scales.bytes()
    }

    /// `8 * bytes / len`: 4.5 for plain blocks of 64, close to 4.127 with double quantisation. 0 for an empty tensor.
    pub fn bits_per_parameter(&self) -> f64 {
        if self.len == 0 { 0.0 } else { 8.0 * self.bytes() as f64 / self.len as f64 }
    }
}

/// The bytes that [`Blocks4::bytes`] will report for `len` elements, to plan memory with.
///
/// # Errors
/// [`Error::BlockSize`] if the block size is not one of [`BLOCK_SIZES`].
pub fn storage_bytes4(len: usize, block_size: usize, double_quant: bool) -> Result<usize, Error> {
    check_block_size("storage_bytes4", block_size)?;
    let blocks = len.div_ceil(block_size);
    let scales = if double_quant { blocks + 4 * blocks.div_ceil(NESTED_BLOCK_SIZE) + 4 } else { 4 * blocks };
    Ok(len.div_ceil(2) + scales)
}

fn check_block_size(op: &'static str, given: usize) -> Result<(), Error> {
    if BLOCK_SIZES.contains(&given) { Ok(()) } else { Err(Error::BlockSize { op, given, allowed: ALLOWED }) }
}
