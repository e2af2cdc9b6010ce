//! Inputs that grow by the structure of their format, where changes of a good one never lead: every instruction, field and word that a
//! format knows, mostly in an order that makes sense.

mod binary;
mod text;

pub use binary::{pickle, pieces, zip};
pub use text::{template, yaml};
