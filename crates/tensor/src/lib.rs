//! Contiguous, reference-counted tensors in host memory, on a GPU or in a dry run, with a run-time dtype, a buffer pool and a
//! counter-based random generator.
//!
//! This crate knows nothing of gradients. A [`Tensor`] is always contiguous and row-major; sharing is cheap (an `Arc`),
//! and writing requires sole ownership, so a copy is always visible in the code ([`Tensor::into_unique`]).

mod arena;
mod away;
mod bytes;
mod clock;
mod convert;
pub mod cuda;
mod dtype;
mod error;
mod ledger;
mod mmap;
mod pages;
pub mod philox;
mod place;
pub mod pool;
mod rows;
mod simd;
mod storage;
mod tensor;

pub use away::{Away, Returning};
pub use clock::{Clock, Effort, clock};
pub use convert::{load_f32, store_f32};
pub use dtype::{DType, Device, Element, Float};
pub use error::{Error, Result};
pub use half::{bf16, f16};
pub use ledger::Ledger;
pub use place::Place;
pub use simd::dispatch;
pub use tensor::Tensor;

/// Runs the body with `$T` bound to the Rust type of a floating-point dtype.
///
/// Panics for the integer dtypes: an op checks its input's dtype before it comes here.
#[macro_export]
macro_rules! with_float {
    ($dtype:expr, $T:ident, $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::Bf16 => {
                type $T = $crate::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $T = $crate::f16;
                $body
            }
            other => panic!("a floating-point dtype was expected here, not {other}"),
        }
    };
}
