//! A tape of fused ops with hand-derived backward passes.
