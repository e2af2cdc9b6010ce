//! Frozen weight matrices: dense, 4-bit and 8-bit.
