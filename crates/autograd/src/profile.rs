//! Where the time of a step goes, op by op.
//!
//! One clock runs through the whole process: every event charges the time since the event before to a name, so that the
//! parts add up to the whole and nothing is hidden between them. The tape charges its ops; whoever drives it charges the
//! rest. The clock is that of the device that computes, and what it says may come later than the charge. Off, it costs one
//! relaxed load an op.

use crate::Result;
use halfbyte_tensor::{Clock, Effort};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// When the work was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Computing a value.
    Forward,
    /// Computing gradients.
    Backward,
    /// Outside the tape.
    Other,
}

/// What one op took in one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Times it ran.
    pub calls: u64,
    /// Time of the device that computed, in seconds.
    pub seconds: f64,
    /// Floating-point operations; on a CPU those of its products.
    pub operations: u64,
    /// Bytes read and written, where a dry run counted them.
    pub bytes: u64,
    /// Kernels and products started on a GPU.
    pub launches: u64,
}

/// Costs by name and phase.
pub type Costs = BTreeMap<(&'static str, Phase), Cost>;

type Key = (&'static str, Phase);

struct Run {
    clock: Box<dyn Clock>,
    done: Effort,
    /// Charged, but the clock does not yet say how much.
    waiting: VecDeque<Key>,
    costs: Costs,
    /// What kept the clock from telling the time; the costs are then nobody's business.
    failed: Option<halfbyte_tensor::Error>,
}

impl Run {
    fn begin(mut clock: Box<dyn Clock>) -> halfbyte_tensor::Result<Run> {
        clock.mark()?;
        let done = clock.effort();
        Ok(Run { clock, done, waiting: VecDeque::new(), costs: Costs::new(), failed: None })
    }

    fn end(mut self) -> halfbyte_tensor::Result<(Costs, &'static str)> {
        match self.failed.take() {
            Some(error) => return Err(error),
            None => self.settle(true)?,
        }
        Ok((self.costs, self.clock.name()))
    }

    fn charge(&mut self, key: Key) -> halfbyte_tensor::Result<()> {
        let now = self.clock.effort();
        let cost = self.costs.entry(key).or_default();
        cost.calls += 1;
        cost.operations += now.operations - self.done.operations;
        cost.bytes += now.bytes - self.done.bytes;
        cost.launches += now.launches - self.done.launches;
        self.done = now;
        self.waiting.push_back(key);
        self.clock.mark()?;
        self.settle(false)
    }

    fn settle(&mut self, all: bool) -> halfbyte_tensor::Result<()> {
        for seconds in self.clock.take(all)? {
            let key = self.waiting.pop_front().expect("the clock tells one time for every charge");
            self.costs.entry(key).or_default().seconds += seconds;
        }
        Ok(())
    }
}

static ON: AtomicBool = AtomicBool::new(false);
static RUN: Mutex<Option<Run>> = Mutex::new(None);

/// Begins to measure with a clock that nobody marked yet.
///
/// # Errors
/// If the device fails.
pub fn start(clock: Box<dyn Clock>) -> Result<()> {
    *run() = Some(Run::begin(clock)?);
    ON.store(true, Ordering::Relaxed);
    Ok(())
}

/// Ends the measurement and gives what it found, with the clock it went by; nothing if none was begun. Waits for the device.
///
/// # Errors
/// If the device failed meanwhile.
pub fn stop() -> Result<Option<(Costs, &'static str)>> {
    ON.store(false, Ordering::Relaxed);
    let it = run().take();
    Ok(it.map(Run::end).transpose()?)
}

/// Charges the time since the last event to `name`.
pub fn charge(name: &'static str, phase: Phase) {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    if let Some(it) = run().as_mut().filter(|it| it.failed.is_none()) {
        it.failed = it.charge((name, phase)).err();
    }
}

fn run() -> MutexGuard<'static, Option<Run>> {
    RUN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that is always two marks behind.
    #[derive(Debug, Default)]
    struct Late {
        marks: u64,
        given: u64,
    }

    impl Clock for Late {
        fn name(&self) -> &'static str {
            "a late clock"
        }

        fn mark(&mut self) -> halfbyte_tensor::Result<()> {
            self.marks += 1;
            Ok(())
        }

        fn take(&mut self, all: bool) -> halfbyte_tensor::Result<Vec<f64>> {
            let until = (self.marks - 1).saturating_sub(if all { 0 } else { 2 });
            let known = (self.given..until).map(|it| (it + 1) as f64).collect();
            self.given = until.max(self.given);
            Ok(known)
        }

        fn effort(&self) -> Effort {
            Effort { launches: 2 * self.marks, operations: 10 * self.marks, bytes: 0 }
        }
    }

    #[test]
    fn a_time_that_is_known_late_goes_to_what_was_charged() {
        // Without the one of the process, which ops of other tests charge, too.
        let mut run = Run::begin(Box::<Late>::default()).unwrap();
        for name in ["a", "b", "a", "c"] {
            run.charge((name, Phase::Forward)).unwrap();
        }
        let (costs, clock) = run.end().unwrap();
        assert_eq!(clock, "a late clock");
        let seconds = |name| costs[&(name, Phase::Forward)].seconds;
        assert_eq!((seconds("a"), seconds("b"), seconds("c")), (1.0 + 3.0, 2.0, 4.0));
        let a = costs[&("a", Phase::Forward)];
        assert_eq!((a.calls, costs.len()), (2, 3));
        // The first charge comes before anything was marked behind the start.
        assert_eq!((a.launches, a.operations), (2, 10));
    }
}
