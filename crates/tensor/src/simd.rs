//! Plain loops at the full width of the processor's registers.

/// Runs `f`, compiled for the widest vector instructions that this processor has. For [`vectorised!`], which sees to it
/// that `f` is inlined.
///
/// [`vectorised!`]: crate::vectorised
#[doc(hidden)]
#[inline(always)]
pub fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Runs an expression (loops over slices, as a rule), compiled once per instruction set: the widest that this processor
/// has is chosen at run time. Functions called inside should be inlined, or they run as they were compiled.
///
/// The results are the same bits on every processor: the compiler neither reorders floating-point sums nor fuses
/// multiplications with additions. The choice costs a few nanoseconds, so the expression should cover a row or more.
#[macro_export]
macro_rules! vectorised {
    ($body:expr) => {
        $crate::dispatch(
            #[inline(always)]
            || $body,
        )
    };
}
