//! Fused forward and backward pairs for transformers.
