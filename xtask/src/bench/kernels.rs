//! The crates' own benches, read from what criterion leaves behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::report::{Report, Row};
use crate::workspace::{cargo, check, target_dir};

/// Seconds an iteration, median, by `group/bench`.
pub(super) struct Kernels {
    seconds: BTreeMap<String, f64>,
}

/// The products that have goals, (m, n, k).
const SHAPES: [(usize, usize, usize); 4] = [(512, 1536, 576), (512, 576, 1536), (2048, 2048, 2048), (4096, 4096, 512)];

impl Kernels {
    /// Runs `cargo bench` of the crates that have benches.
    pub(super) fn measure(root: &Path) -> Result<Kernels> {
        for (package, bench) in [("halfbyte-matmul", "products"), ("halfbyte-nf4", "quantize")] {
            check(
                cargo()
                    .args(["bench", "--locked", "-q", "-p", package, "--bench", bench, "--", "--quiet"])
                    .current_dir(root),
            )?;
        }
        let folder = target_dir(root)?.join("criterion");
        let mut seconds = BTreeMap::new();
        for group in folders(&folder)? {
            for bench in folders(&group)? {
                let path = bench.join("new/estimates.json");
                if let Ok(text) = fs::read_to_string(&path) {
                    let found: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
                    let nanos =
                        found["median"]["point_estimate"].as_f64().with_context(|| path.display().to_string())?;
                    seconds.insert(format!("{}/{}", name(&group), name(&bench)), 1e-9 * nanos);
                }
            }
        }
        Ok(Kernels { seconds })
    }

    fn get(&self, bench: &str) -> f64 {
        self.seconds.get(bench).copied().unwrap_or(f64::NAN)
    }

    /// Operations a second that one core does on registers alone.
    pub(super) fn peak(&self, dtype: &str) -> f64 {
        1e9 / self.get(&format!("register peak/{dtype}"))
    }

    pub(super) fn report(&self, bitsandbytes: Option<(f64, f64)>, report: &mut Report) {
        let peak = self.peak("bf16");
        for (m, n, k) in SHAPES {
            let rate = |side: &str, threads: usize| {
                2.0 * (m * n * k) as f64 / self.get(&format!("{m}x{n}x{k}/{side}, {threads}"))
            };
            for (side, goal) in [("dense", 88.0), ("4-bit", 85.0), ("4-bit transposed", 82.0)] {
                let (one, two) = (rate(side, 1), rate(side, 2));
                let name = format!("product {m} x {n} x {k}, {side}: share of the register peak");
                let note = format!("{:.0} GFLOP/s; 2 threads {:.2} x 1", one * 1e-9, two / one);
                report.push(Row::at_least(&name, "%", (Some(100.0 * one / peak), None), goal).note(note));
            }
        }
        let rate = |bench: &str| 4096.0 * 4096.0 / self.get(&format!("4096x4096/{bench}")) * 1e-9;
        let peers = bitsandbytes.map_or((None, None), |it| (Some(it.0 * 1e-9), Some(it.1 * 1e-9)));
        report.push(Row::faster(
            "NF4 + double quantisation of 4096 x 4096 bf16",
            "Gparam/s",
            (Some(rate("quantize nf4")), peers.0),
            20.0,
        ));
        report.push(Row::faster("decoding it to bf16", "Gparam/s", (Some(rate("decode nf4")), peers.1), 5.0));
    }
}

fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path).with_context(|| path.display().to_string())?;
    Ok(entries.filter_map(|it| Some(it.ok()?.path())).filter(|it| it.is_dir()).collect())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
