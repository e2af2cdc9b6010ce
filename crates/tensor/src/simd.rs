//! Plain loops at the full width of the processor's registers.

/// Runs `f`, compiled for the widest vector instructions that this processor has: what is inlined into `f` (loops over
/// slices, as a rule) is compiled once per instruction set, and the choice is made at run time.
///
/// The results are the same bits on every processor: the compiler neither reorders floating-point sums nor fuses
/// multiplications with additions. The call costs a few nanoseconds, so `f` should take a row or more.
#[inline]
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
