//! Test support shared by the crates: seeded inputs, comparison with f64 oracles, and gradient checks.
//!
//! Panics are this crate's business: every failed expectation is a failed test.

#[cfg(target_os = "linux")]
pub mod counts;
#[cfg(target_os = "linux")]
pub mod cuda;
#[cfg(target_os = "linux")]
mod cuda_on_cpu;
mod gradcheck;
pub mod grown;
mod hub;
mod input;
pub mod mutate;
pub mod night;
pub mod readers;

pub use gradcheck::{Gradcheck, gradcheck};
pub use hub::{Fault, LoopbackHub, Seen};
pub use input::{noise, noise_in, noise_vec};
pub use night::{Dice, Night, Watchdog};

/// Asserts that `got` is within `tolerance * (1 + |expected|)` of the oracle, element by element.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths differ");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*g) - e).abs();
        // Written so that a NaN fails.
        let fine = error <= tolerance * (1.0 + e.abs());
        assert!(fine, "{what}[{i}]: got {g}, expected {e}, off by {error:.3e} (tolerance {tolerance:.1e})");
    }
}
