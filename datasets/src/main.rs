//! Generator of the embedded data sets.
fn main() {}
