use halfbyte_matmul::{Compute, kernel_name, register_peaks};
use std::io::Write;

/// `halfbyte devices`: what there is to compute on.
pub(crate) fn devices() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    writeln!(
        out,
        "CPU: {threads} threads; products in bf16 by {}, in f32 by {}",
        kernel_name(Compute::Bf16),
        kernel_name(Compute::F32)
    )?;
    for (what, compute) in [("bf16", Compute::Bf16), ("f32", Compute::F32)] {
        let peak = |(name, rate): (&str, f64)| format!("{name} {:.0}", rate / 1e9);
        let peaks: Vec<String> = register_peaks(compute).into_iter().map(peak).collect();
        writeln!(out, "  GFLOP/s of a core on registers, {what}: {}", peaks.join(", "))?;
    }
    writeln!(out, "{}", halfbyte_cuda::probe())?;
    Ok(())
}
