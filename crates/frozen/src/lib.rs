//! The formats in which a frozen weight is kept: dense, 4-bit blocks, 8-bit rows.
//!
//! Every format is one file that implements [`FrozenMatrix`]; nothing above this crate knows which one a layer has.

pub mod bitsandbytes;
mod dense;
mod error;
mod four_bit;
mod gpu;
mod int8;
mod llm_int8;
mod quant;

pub use dense::DenseMatrix;
pub use error::{Error, Result};
pub use four_bit::FourBitMatrix;
pub use halfbyte_ops::FrozenMatrix;
pub use int8::Int8Matrix;
pub use llm_int8::THRESHOLD;
pub use quant::{Format, Quant};
