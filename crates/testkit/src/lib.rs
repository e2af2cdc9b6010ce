//! Test support: f64 oracles, gradient checks and fixtures.
