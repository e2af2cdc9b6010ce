//! The formats in which a frozen weight is kept: dense, 4-bit blocks, 8-bit rows.
//!
//! Every format is a file that says what its codes stand for, and a line of the table in `quant.rs`; `coded` holds what they have in
//! common, on a CPU and on a GPU. What uses a matrix sees a [`FrozenMatrix`], and no format.

pub mod bitsandbytes;
mod coded;
mod dense;
mod error;
mod four_bit;
mod int8;
mod llm_int8;
pub mod mxfp4;
mod quant;

pub use dense::DenseMatrix;
pub use error::{Error, Result};
pub use four_bit::FourBitMatrix;
pub use halfbyte_ops::FrozenMatrix;
pub use int8::Int8Matrix;
pub use llm_int8::THRESHOLD;
pub use quant::{Format, Quant};
