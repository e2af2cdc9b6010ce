//! Blockwise 8-bit quantisation with the dynamic map: what double quantisation does to the absmax values, and what
//! 8-bit optimizers do to their moments.
//!
//! The rule is that of the CUDA kernels: `x * (1 / absmax)` takes the nearest entry of the map, a tie the entry with the
//! even index, NaN entry 0. (The CPU code of bitsandbytes goes through a table of 65536 steps instead and gives other
//! codes, for example 131 rather than 127 for an exact zero.)

mod map;

use rayon::prelude::*;

use crate::element::{Element, for_each_piece};
use crate::error::{Error, check_len};
use crate::kernels::{portable::reciprocal, selected};

pub use map::DynamicMap;

/// A tensor in 8 bits: `value = map[code] * absmax[i / block_size]`. The fields are for reading; build one with
/// [`quantize`] or [`Blocks8::from_parts`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Blocks8 {
    /// Which 256 values the codes stand for.
    pub map: DynamicMap,
    /// Elements a block; the last one may be shorter.
    pub block_size: usize,
    /// One byte for each element.
    pub codes: Vec<u8>,
    /// One for each block.
    pub absmax: Vec<f32>,
}

/// Quantises `x` in blocks of `block_size` elements, any positive number (bitsandbytes: 256 for absmax values and
/// optimizer states, 4096 by default). On all of rayon's threads, with the same bits for any number of them.
///
/// # Errors
/// [`Error::BlockSize`] if `block_size` is 0.
pub fn quantize<T: Element>(x: &[T], map: DynamicMap, block_size: usize) -> Result<Blocks8, Error> {
    check_block_size("blockwise8::quantize", block_size)?;
    let (codes, absmax) = encode(x, map, block_size);
    Ok(Blocks8 { map, block_size, codes, absmax })
}

/// Quantises, as [`quantize`] does, into buffers that exist already: `x.len()` codes and an absmax for every block. On this thread.
///
/// # Errors
/// [`Error::BlockSize`] if `block_size` is 0, [`Error::Length`] if a buffer has the wrong length.
pub fn quantize_into<T: Element>(
    x: &[T],
    map: DynamicMap,
    block_size: usize,
    codes: &mut [u8],
    absmax: &mut [f32],
) -> Result<(), Error> {
    let op = "blockwise8::quantize_into";
    check_parts(op, x.len(), block_size, codes.len(), absmax.len())?;
    encode_into(x, map, block_size, codes, absmax);
    Ok(())
}

/// Decodes `map[code] * absmax` in `f32`, rounded once to `T`. On this thread.
///
/// # Errors
/// [`Error::BlockSize`] if `block_size` is 0, [`Error::Length`] if a buffer has the wrong length.
pub fn dequantize_into<T: Element>(
    codes: &[u8],
    absmax: &[f32],
    map: DynamicMap,
    block_size: usize,
    out: &mut [T],
) -> Result<(), Error> {
    check_parts("blockwise8::dequantize_into", out.len(), block_size, codes.len(), absmax.len())?;
    decode_into(codes, absmax, map, block_size, out);
    Ok(())
}

impl Blocks8 {
    /// Puts together what was stored.
    ///
    /// # Errors
    /// [`Error::BlockSize`] if `block_size` is 0, [`Error::Length`] if there is not one absmax for every block.
    pub fn from_parts(map: DynamicMap, block_size: usize, codes: Vec<u8>, absmax: Vec<f32>) -> Result<Blocks8, Error> {
        check_parts("Blocks8::from_parts", codes.len(), block_size, codes.len(), absmax.len())?;
        Ok(Blocks8 { map, block_size, codes, absmax })
    }

    /// Decodes everything, on all of rayon's threads.
    ///
    /// # Panics
    /// If `out` has another length than the codes.
    pub fn dequantize<T: Element>(&self, out: &mut [T]) {
        assert_eq!(out.len(), self.codes.len(), "dequantize: the output must have the tensor's length");
        let task = task(self.block_size);
        let scales = self.absmax.par_chunks(task / self.block_size);
        self.codes.par_chunks(task).zip(scales).zip(out.par_chunks_mut(task)).for_each(|((codes, absmax), out)| {
            decode_into(codes, absmax, self.map, self.block_size, out);
        });
    }

    /// Bytes that codes and scales take.
    pub fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(&self.absmax[..])
    }
}

/// Elements that one task works on, whole blocks.
fn task(block_size: usize) -> usize {
    ((1 << 14) / block_size).max(1).saturating_mul(block_size)
}

pub(crate) fn encode<T: Element>(x: &[T], map: DynamicMap, block_size: usize) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![0; x.len()];
    let mut absmax = vec![0.0; x.len().div_ceil(block_size)];
    let task = task(block_size);
    let tasks =
        x.par_chunks(task).zip(codes.par_chunks_mut(task)).zip(absmax.par_chunks_mut((task / block_size).max(1)));
    tasks.for_each(|((x, codes), absmax)| encode_into(x, map, block_size, codes, absmax));
    (codes, absmax)
}

fn encode_into<T: Element>(x: &[T], map: DynamicMap, block_size: usize, codes: &mut [u8], absmax: &mut [f32]) {
    let k = selected();
    let table = map.table();
    for_each_piece(k, x, block_size.min(x.len().max(1)), |at, values| {
        let codes = codes[at..][..values.len()].chunks_mut(block_size);
        for ((values, codes), slot) in values.chunks(block_size).zip(codes).zip(&mut absmax[at / block_size..]) {
            *slot = k.absmax(values);
            table.encode(values, reciprocal(*slot), codes);
        }
    });
}

fn decode_into<T: Element>(codes: &[u8], absmax: &[f32], map: DynamicMap, block_size: usize, out: &mut [T]) {
    let k = selected();
    let values = map.values();
    let mut buffer = [0.0; 256];
    for ((codes, out), &scale) in codes.chunks(block_size).zip(out.chunks_mut(block_size)).zip(absmax) {
        for (codes, out) in codes.chunks(256).zip(out.chunks_mut(256)) {
            let decoded = &mut buffer[..codes.len()];
            for (d, &c) in decoded.iter_mut().zip(codes) {
                *d = values[usize::from(c)] * scale;
            }
            T::narrow(k, decoded, out);
        }
    }
}

fn check_block_size(op: &'static str, given: usize) -> Result<(), Error> {
    if given > 0 { Ok(()) } else { Err(Error::BlockSize { op, given, allowed: "any positive number" }) }
}

fn check_parts(op: &'static str, len: usize, block_size: usize, codes: usize, absmax: usize) -> Result<(), Error> {
    check_block_size(op, block_size)?;
    check_len(op, "codes", len, codes)?;
    check_len(op, "absmax", len.div_ceil(block_size), absmax)
}
