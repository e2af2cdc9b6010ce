//! A long run: what it holds, how long a step takes and what it writes do not grow with the steps.

use e2e::{Finetune, Work};
use halfbyte_testkit::night;
use std::{
    fs,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// Steps where tests run, and in a night.
const STEPS: [usize; 2] = [600, 20_000];
/// Bytes by which the resident memory may grow once the run has measured and saved a few times.
const GROWTH: usize = 1 << 20;
/// By how much more time of a processor the later steps may take than the earlier ones: caches are shared with other programs.
const DRIFT: f64 = 1.3;
/// Runs that all have to show a drift: one that is in the program does, another program's load does not.
const RUNS: usize = 3;

/// What the process was like when its log had so many lines.
struct Sample {
    lines: usize,
    resident: usize,
    /// Time that it spent on processors, in ticks of the system.
    ticks: u64,
}

#[test]
fn a_long_run_grows_in_nothing() {
    let mut costs = Vec::new();
    while costs.len() < RUNS {
        let cost = long_run();
        costs.push(cost);
        if cost.1 <= DRIFT * cost.0 {
            return;
        }
    }
    panic!("ten steps took so many ticks, and then so many: {costs:?}");
}

/// What ten steps cost, and then cost, of a run that holds no more as it goes on.
fn long_run() -> (f64, f64) {
    let steps = STEPS[usize::from(night::is_long())];
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets");
    let work = Work::new();
    let run = Finetune::new(&data.join("models/tiny-llama"), &data.join("reviews-train.parquet"), &work.path("run"))
        .path("--eval-data", data.join("reviews-test.parquet"))
        .flags(
            "--rows 0..512 --eval-rows 0..8 --max-length 24 --logging-steps 10 --save-total-limit 2 --no-eval-before",
        )
        .flags(&format!("--max-steps {steps} --save-steps {0} --eval-steps {0} --learning-rate 1e-4", steps / 20));
    let said = work.path("said");
    let begun = Instant::now();
    let mut child = run.command().stderr(fs::File::create(&said).unwrap()).stdout(Stdio::null()).spawn().unwrap();
    let log = run.folder().join("metrics.jsonl");
    let mut samples = Vec::new();
    let status = loop {
        thread::sleep(Duration::from_millis(20));
        if let (Some(resident), Some(ticks)) = (resident_bytes(child.id()), ticks(child.id())) {
            samples.push(Sample { lines: lines(&log), resident, ticks });
        }
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
    };
    let said = fs::read_to_string(said).unwrap();
    assert!(status.success(), "{said}");
    // What follows the last step holds other things.
    let (warm, end) = (steps / 10 / 4, steps / 10);
    let settled: Vec<&Sample> = samples.iter().filter(|it| (warm..end).contains(&it.lines)).collect();
    assert!(settled.len() >= 8, "{} samples", settled.len());
    let (earlier, later) = settled.split_at(settled.len() / 2);
    let most = |of: &[&Sample]| of.iter().map(|it| it.resident).max().unwrap_or(0);
    let held = (most(earlier), most(later));
    assert!(held.1 <= held.0 + GROWTH, "it held {} bytes, and then {}", held.0, held.1);
    let cost = (cheapest(earlier), cheapest(later));

    let metrics = run.metrics();
    assert_eq!(metrics.len(), steps / 10, "a line every ten steps");
    let written = fs::metadata(&log).unwrap().len() as usize;
    assert!(written <= 400 * metrics.len(), "{written} bytes of log for {} lines", metrics.len());
    // A line an evaluation, one every ten seconds, and those of the beginning and the end.
    let (spoken, pauses) = (said.lines().count(), begun.elapsed().as_secs() as usize / 10);
    assert!(spoken < 20 + pauses + 60, "{spoken} lines were said");
    night::report("steps of a long run", steps as u64, 1);
    night::say(&format!(
        "{steps} steps: held {} bytes, then {}; ten steps took {:.2} ticks, then {:.2}; log of {written} bytes",
        held.0, held.1, cost.0, cost.1
    ));
    cost
}

/// The ticks of ten steps in the cheapest quarter of these or all of them: what other programs take from the caches passes, and a drift
/// spares no quarter.
fn cheapest(of: &[&Sample]) -> f64 {
    let (first, last) = (of[0], of[of.len() - 1]);
    let cost = |from: &Sample, to: &Sample| (to.ticks - from.ticks) as f64 / (to.lines - from.lines).max(1) as f64;
    let quarter = ((last.lines - first.lines) / 4).max(1);
    let quarters = of.iter().filter_map(|from| Some((from, of.iter().find(|to| to.lines >= from.lines + quarter)?)));
    quarters.map(|(from, to)| cost(from, to)).fold(cost(first, last), f64::min)
}

fn resident_bytes(process: u32) -> Option<usize> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|it| it.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? * 1024)
}

/// Of user and system together, as the system counts them.
fn ticks(process: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // What stands in brackets is the name, which may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

fn lines(path: &Path) -> usize {
    fs::read(path).map_or(0, |it| it.iter().filter(|it| **it == b'\n').count())
}

#[test]
fn a_drift_shows_in_the_cheapest_quarter_and_a_load_that_passes_does_not() {
    let half = |ticks: &dyn Fn(u64) -> u64| -> f64 {
        let mut spent = 0;
        let samples: Vec<Sample> = (0..40)
            .map(|line| {
                spent += ticks(line);
                Sample { lines: line as usize, resident: 0, ticks: spent }
            })
            .collect();
        cheapest(&samples.iter().collect::<Vec<_>>())
    };
    let quiet = half(&|_| 20);
    assert_eq!(half(&|line| if line < 25 { 30 } else { 20 }), quiet);
    assert!(half(&|line| 27 + line / 4) > DRIFT * quiet);
}
