//! Causal self-attention with grouped key and value heads, blocked over keys.
