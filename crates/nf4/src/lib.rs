//! Blockwise 4-bit (NF4, FP4, INT4) and 8-bit quantisation on slices, byte-compatible with bitsandbytes.
//!
//! QLoRA holds a frozen model in half a byte a weight. This crate is the codec for that, on plain slices of `f32`,
//! [`half::f16`] and [`half::bf16`], without a tensor type:
//!
//! - [`quantize4`] and [`Blocks4`]: NF4, FP4 and a linear INT4, in blocks of 32 to 4096 elements, the absmax of each
//!   block as `f32` or quantised once more (double quantisation);
//! - [`quantize_rows8`] and [`Rows8`]: INT8 with one absmax a row, as LLM.int8() stores weights;
//! - [`blockwise8`]: 8 bits by the dynamic map, for absmax values and optimizer states.
//!
//! ```
//! use halfbyte_nf4::{QuantType, quantize4};
//!
//! let weights: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 0.02).collect();
//! let blocks = quantize4(&weights, QuantType::Nf4, 64, true)?;
//! let mut decoded = vec![half::bf16::ZERO; weights.len()];
//! blocks.dequantize(&mut decoded);
//!
//! assert!(blocks.bytes() < 530); // 2000 in bf16
//! assert!(weights.iter().zip(&decoded).all(|(w, d)| (w - d.to_f32()).abs() < 0.16 * 0.02));
//! # Ok::<(), halfbyte_nf4::Error>(())
//! ```
//!
//! # Which bits
//! The CPU and the CUDA code of bitsandbytes do not store the same bits. Published 4-bit checkpoints come from the
//! latter, so its rule is the rule here: its thresholds, subnormals taken as zero, an absmax above 2^126 scaling its
//! block to zero, NaN ignored by the absmax, a zero block stored as zero bytes (INT4, which is our own: as zeros).
//! Three differences remain:
//! - the GPU's reciprocal may be an ulp off; ours is the IEEE one. An element within about two ulp of a threshold may
//!   get the neighbouring nibble, which is as near to it;
//! - a full block of nothing but NaN gets absmax 0, not the -3.4e38 with which the GPU's maximum begins;
//! - decoding keeps subnormal products, which the GPU flushes to zero (they are below 1.2e-38).
//!
//! # Speed
//! The inner loops exist for AVX-512, AVX2 and in portable Rust; the best is chosen at run time ([`kernel_name`]), and
//! all give the same bits. `HALFBYTE_NF4_KERNEL=portable|avx2|avx512` chooses another that the CPU can run.

mod blocks4;
pub mod blockwise8;
mod code;
mod element;
mod error;
mod kernels;
mod rows8;
mod scales;

pub use blocks4::{BLOCK_SIZES, Blocks4, quantize4, storage_bytes4};
pub use code::QuantType;
pub use element::Element;
pub use error::Error;
pub use rows8::{Rows8, quantize_rows8};
pub use scales::{NESTED_BLOCK_SIZE, Scales};

/// The set of inner loops that this process uses: `portable`, `avx2` or `avx512`.
pub fn kernel_name() -> &'static str {
    kernels::selected().name
}
