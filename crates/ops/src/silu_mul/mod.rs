//! `silu(gate) * up`, the pointwise core of SwiGLU.
