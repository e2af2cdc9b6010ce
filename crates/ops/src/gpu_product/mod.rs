//! Steps of which the linear ops are made on a GPU: products by cuBLASLt, and what puts operands side by side for them.
//!
//! Each step knows a dry run, too, so that the ops above go the same way there.

pub(crate) mod cuda;
mod window;

pub use cuda::{multiply, multiply_into, product, put, sheet};
pub use window::{Operand, Window};
