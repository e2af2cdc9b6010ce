//! CPU matrix products in f32 and bf16 over any panel source, decoding quantised blocks while packing.
//!
//! A blocked product copies its operands into small panels anyway, so that the inner loop reads memory in order. This
//! crate makes that copy the place where a stored format becomes numbers: dense f32, bf16 and f16, 4-bit blocks
//! ([`Lut4`]), row-wise 8-bit ([`Rows8`]) or anything else that can read a piece of a row ([`Source`]). A quantised
//! weight therefore takes part in a product, transposed or not, and is never decoded as a whole.
//!
//! ```
//! use halfbyte_matmul::{Compute, Dense, Operand, Out, Product, matmul};
//!
//! let x = Dense::new(2, 3, &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
//! let w = Dense::new(2, 3, &[1.0f32, 0.0, 0.0, 0.0, 1.0, 1.0]);
//! let mut y = [0.0f32; 4];
//! // y (2, 2) = x (2, 3) · wᵀ (3, 2)
//! matmul(&Product::new(Operand::new(&x), Operand::new(&w).t(), Compute::F32), Out::F32(&mut y));
//! assert_eq!(y, [1.0, 5.0, 4.0, 11.0]);
//! ```
//!
//! Two facts that callers rely on:
//! - The bits of a result depend on the operands, the shape and the kernel, never on the number of threads.
//! - A quantised source gives the same bits as the dense matrix of its decoded values (for [`Compute::Bf16`]: of its
//!   decoded values rounded to bf16), because both go through the same panels.

mod buffers;
mod fork;
mod gemm;
mod gemv;
mod kernels;
mod pack;
mod packed;
mod product;
mod reader;
mod sources;
mod thin;

pub use kernels::{available_kernels, kernel_name, register_peak, register_peaks};
pub use packed::PackedLeft;
pub use product::{Compute, Operand, Out, Product, Trans, matmul, operations};
pub use reader::read_row;
pub use sources::{Dense, Element, Lut4, Rows8, Scales4, Source, View};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests;
