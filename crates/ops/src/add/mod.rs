//! Residual sums: `a + b` and `a + scale * b`.
