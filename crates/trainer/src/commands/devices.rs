use halfbyte_matmul::{Compute, kernel_name};
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
    writeln!(out, "{}", halfbyte_cuda::probe())?;
    Ok(())
}
