//! The choice of a kernel at run time: by what the processor has, and by how fast that is.
//!
//! What a processor has says little about speed: `vdpbf16ps` does twice the work of an f32 multiply-add on one processor and
//! half of it on the next. So the candidates' multiply-adds are timed on registers, once a process, which takes a few
//! milliseconds. Results differ in bits from kernel to kernel, so a later candidate must win by far: where two are about
//! as fast, the choice must not hang on the noise of a measurement.

use std::sync::OnceLock;
use std::time::Instant;

#[cfg(target_arch = "aarch64")]
use super::neon;
use super::{Kernel, portable};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512};
use crate::product::Compute;

/// A kernel is preferred to those before it where its multiply-adds are so many times as fast.
const BY_FAR: f64 = 1.3;

/// The kernels that this machine runs for `compute`, in the order of preference among equals.
fn real(compute: Compute) -> Vec<&'static Kernel> {
    let mut found: Vec<&'static Kernel> = Vec::new();
    let f32 = compute == Compute::F32;
    #[cfg(target_arch = "x86_64")]
    {
        if amx::detected() && !f32 {
            found.push(&amx::BF16);
        }
        if avx512::bf16_detected() && !f32 {
            found.push(&avx512::BF16);
        }
        if avx512::detected() {
            found.push(if f32 { &avx512::F32 } else { &avx512::ROUNDED });
        }
        if avx2::detected() {
            found.push(if f32 { &avx2::F32 } else { &avx2::BF16 });
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        if neon::bf16_detected() && !f32 {
            found.push(&neon::BF16);
        }
        found.push(if f32 { &neon::F32 } else { &neon::ROUNDED });
    }
    found.push(if f32 { &portable::F32 } else { &portable::BF16 });
    found
}

/// Those, and models of kernels that this machine may lack.
#[cfg(test)]
pub(crate) fn all(compute: Compute) -> Vec<&'static Kernel> {
    real(compute).into_iter().chain(models(compute)).collect()
}

/// Models of kernels that this machine may lack, with its own vector helpers and with the portable ones.
#[cfg(test)]
fn models(compute: Compute) -> Vec<&'static Kernel> {
    use super::{Operands, model};
    macro_rules! models {
        ($isa:expr, $suffix:literal) => {
            [
                model::kernel(concat!("model of avx512", $suffix), Operands::F32, $isa),
                model::neon(concat!("model of neon", $suffix), Operands::F32, $isa),
                model::kernel(concat!("model of avx512bf16", $suffix), Operands::Bf16Pairs, $isa),
                model::neon(concat!("model of neonbf16", $suffix), Operands::Bf16Pairs, $isa),
                model::tiles(concat!("model of amx", $suffix), $isa),
            ]
        };
    }
    static PORTABLE: [Kernel; 5] = models!(&portable::ISA, ", portable");
    let pick = |kernels: &'static [Kernel; 5]| {
        if compute == Compute::F32 { kernels[..2].iter() } else { kernels[2..].iter() }
    };
    #[cfg(target_arch = "x86_64")]
    if avx2::detected() {
        static AVX2: [Kernel; 5] = models!(&avx2::ISA, "");
        return pick(&AVX2).chain(pick(&PORTABLE)).collect();
    }
    pick(&PORTABLE).collect()
}

/// Environment variable that names the kernel to use.
const OVERRIDE: &str = "HALFBYTE_MATMUL_KERNEL";

/// The kernel for `compute`, chosen once.
pub(crate) fn select(compute: Compute) -> &'static Kernel {
    static CHOSEN: OnceLock<[&'static Kernel; 2]> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let wanted = std::env::var(OVERRIDE).ok();
        [Compute::F32, Compute::Bf16].map(|c| choose(wanted.as_deref(), c))
    });
    chosen[usize::from(compute == Compute::Bf16)]
}

fn choose(wanted: Option<&str>, compute: Compute) -> &'static Kernel {
    let Some(asked) = wanted.filter(|w| !w.is_empty()) else { return fastest(&measured(compute)) };
    if let Some(found) = real(compute).into_iter().find(|k| k.name == asked) {
        return found;
    }
    // A kernel for bf16 alone has no say in f32.
    let known = real(Compute::Bf16);
    if known.iter().any(|k| k.name == asked) {
        return fastest(&measured(compute));
    }
    let have: Vec<&str> = known.iter().map(|k| k.name).collect();
    panic!("{OVERRIDE}={asked}: this machine has no such kernel; it has {}", have.join(", "))
}

/// The first of the candidates that none after it beats by far.
fn fastest(candidates: &[(&'static Kernel, f64)]) -> &'static Kernel {
    let mut best = candidates[0];
    for candidate in candidates {
        if candidate.1 > BY_FAR * best.1 {
            best = *candidate;
        }
    }
    best.0
}

/// Each kernel of this machine with its operations per second on registers.
fn measured(compute: Compute) -> Vec<(&'static Kernel, f64)> {
    /// Slices of each kernel, by turns, so that what disturbs this machine for a moment disturbs all, and wide registers that
    /// must power up first have done so by the second.
    const SLICES: usize = 8;
    const ROUNDS: usize = 5_000;
    let mut found: Vec<_> = real(compute).into_iter().map(|kernel| (kernel, 0.0f64)).collect();
    for _ in 0..SLICES {
        for (kernel, rate) in &mut found {
            *rate = rate.max(slice(kernel, ROUNDS));
        }
    }
    found
}

/// Operations per second of one slice of multiply-adds.
fn slice(kernel: &Kernel, rounds: usize) -> f64 {
    let start = Instant::now();
    // SAFETY: a kernel is handed out only where its instruction set is present.
    std::hint::black_box(unsafe { (kernel.spin)(std::hint::black_box(rounds)) });
    (rounds * kernel.spin_work) as f64 / start.elapsed().as_secs_f64()
}

/// Name of the kernel that products of `compute` use here: `amx`, `avx512bf16`, `avx512`, `avx2`, `neonbf16`, `neon` or
/// `portable`.
///
/// The environment variable `HALFBYTE_MATMUL_KERNEL`, read once, overrides the choice.
///
/// # Panics
/// If that variable names a kernel that this machine does not have.
pub fn kernel_name(compute: Compute) -> &'static str {
    select(compute).name
}

/// Names of the kernels that this machine can run for `compute`, in the order of preference among equals.
pub fn available_kernels(compute: Compute) -> Vec<&'static str> {
    real(compute).iter().map(|k| k.name).collect()
}

/// The kernels of this machine for `compute`, each with the operations per second of one core when its multiply-adds run on
/// registers alone: what the choice among them rests on. Takes a few milliseconds.
pub fn register_peaks(compute: Compute) -> Vec<(&'static str, f64)> {
    measured(compute).into_iter().map(|(kernel, rate)| (kernel.name, rate)).collect()
}

/// Floating-point operations per second of one core when the chosen kernel's multiply-adds run on registers alone: the
/// ceiling that a product of any shape is measured against. Takes a few tens of milliseconds.
pub fn register_peak(compute: Compute) -> f64 {
    let kernel = select(compute);
    (0..300).map(|_| slice(kernel, 20_000 * 768 / kernel.spin_work)).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_must_win_by_far() {
        let kernels: [&'static Kernel; 2] = [&portable::F32, &portable::BF16];
        let chosen = |first: f64, second: f64| fastest(&[(kernels[0], first), (kernels[1], second)]);
        assert!(std::ptr::eq(chosen(1.0, 1.2), kernels[0]), "noise must not choose");
        assert!(std::ptr::eq(chosen(1.0, 2.0), kernels[1]), "twice the speed is no noise");
        assert!(std::ptr::eq(chosen(2.0, 1.0), kernels[0]));
    }

    #[test]
    fn a_kernel_can_be_named() {
        for compute in [Compute::F32, Compute::Bf16] {
            for kernel in real(compute) {
                assert_eq!(choose(Some(kernel.name), compute).name, kernel.name);
            }
        }
        for kernel in real(Compute::Bf16) {
            choose(Some(kernel.name), Compute::F32);
        }
    }

    #[test]
    #[should_panic(expected = "this machine has no such kernel; it has")]
    fn a_kernel_that_is_not_there_is_refused() {
        choose(Some("abacus"), Compute::F32);
    }
}
