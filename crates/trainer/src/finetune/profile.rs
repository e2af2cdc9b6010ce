//! `--profile`: a table of where the time of the steps went.

use crate::console::{mib, say};
use halfbyte_autograd::profile::{self, Cost, Costs, Phase};
use halfbyte_files::write_atomic;
use halfbyte_tensor::{Device, clock};
use serde::Serialize;
use std::path::Path;

/// One line of `profile.json`.
#[derive(Serialize)]
struct Line {
    op: &'static str,
    phase: &'static str,
    calls: u64,
    /// Of the device that computed.
    seconds: f64,
    /// Share of the measured time.
    share: f64,
    /// Of the op's products; 0 where it has none.
    gflops_per_second: f64,
    /// Kernels and products started on a GPU.
    launches: u64,
}

/// Begins to measure on a device, with the next step.
pub(super) fn begin(device: &Device) -> anyhow::Result<()> {
    Ok(profile::start(clock(device, halfbyte_matmul::operations))?)
}

/// Prints the table and writes it to `path`. Nothing if no step was measured.
pub(super) fn conclude(path: &Path, device: &Device) -> anyhow::Result<()> {
    let Some((costs, clock)) = profile::stop()? else { return Ok(()) };
    let lines = lines(&costs);
    say(&format!(
        "\n{:<20} {:<9} {:>8} {:>10} {:>7} {:>9} {:>9}",
        "where the time went", "", "calls", "seconds", "share", "GFLOP/s", "launches"
    ));
    for it in &lines {
        let rate = if it.gflops_per_second > 0.0 { format!("{:.1}", it.gflops_per_second) } else { String::new() };
        let share = format!("{:.1} %", 100.0 * it.share);
        let launches = if it.launches > 0 { it.launches.to_string() } else { String::new() };
        say(&format!(
            "{:<20} {:<9} {:>8} {:>10.3} {share:>7} {rate:>9} {launches:>9}",
            it.op, it.phase, it.calls, it.seconds
        ));
    }
    say(&format!("seconds by {clock}"));
    let (peak, cached) = match device {
        Device::Cuda(gpu) => (gpu.stats().peak, gpu.stats().cached),
        _ => (halfbyte_tensor::pool::stats().peak, halfbyte_tensor::pool::stats().cached),
    };
    say(&format!("tensors: {} at the peak, {} kept for reuse", mib(peak), mib(cached)));
    Ok(write_atomic(path, format!("{:#}\n", serde_json::to_value(&lines)?).as_bytes())?)
}

/// The costs, dearest first.
fn lines(costs: &Costs) -> Vec<Line> {
    let total: f64 = costs.values().map(|it| it.seconds).sum();
    let line = |(&(op, phase), cost): (&(&'static str, Phase), &Cost)| Line {
        op,
        phase: match phase {
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Other => "",
        },
        calls: cost.calls,
        seconds: cost.seconds,
        share: cost.seconds / total,
        gflops_per_second: cost.operations as f64 * 1e-9 / cost.seconds,
        launches: cost.launches,
    };
    let mut lines: Vec<Line> = costs.iter().map(line).collect();
    lines.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    lines
}
