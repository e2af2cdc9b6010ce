//! Contiguous reference-counted tensors with a buffer pool and a counter-based random generator.
