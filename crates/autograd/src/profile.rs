//! Where the time of a step goes, op by op.
//!
//! One clock runs through the whole process: every event charges the time since the event before to a name, so that the
//! parts add up to the whole and nothing is hidden between them. The tape charges its ops; whoever drives it charges the
//! rest. Off, it costs one relaxed load an op.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
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
    /// Wall time in seconds.
    pub seconds: f64,
    /// Floating-point operations of its products, as the counter given to [`start`] tells.
    pub operations: u64,
}

/// Costs by name and phase.
pub type Costs = BTreeMap<(&'static str, Phase), Cost>;

struct Clock {
    last: Instant,
    counter: fn() -> u64,
    counted: u64,
    costs: Costs,
}

static ON: AtomicBool = AtomicBool::new(false);
static CLOCK: Mutex<Option<Clock>> = Mutex::new(None);

/// Begins to measure. `operations` reads a counter of floating-point operations that only grows.
pub fn start(operations: fn() -> u64) {
    *clock() = Some(Clock { last: Instant::now(), counter: operations, counted: operations(), costs: Costs::new() });
    ON.store(true, Ordering::Relaxed);
}

/// Ends the measurement and gives what it found; nothing if none was begun.
pub fn stop() -> Costs {
    ON.store(false, Ordering::Relaxed);
    clock().take().map(|it| it.costs).unwrap_or_default()
}

/// Charges the time since the last event to `name`.
pub fn charge(name: &'static str, phase: Phase) {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    if let Some(it) = clock().as_mut() {
        let (now, counted) = (Instant::now(), (it.counter)());
        let cost = it.costs.entry((name, phase)).or_default();
        cost.calls += 1;
        cost.seconds += (now - it.last).as_secs_f64();
        cost.operations += counted - it.counted;
        (it.last, it.counted) = (now, counted);
    }
}

fn clock() -> MutexGuard<'static, Option<Clock>> {
    CLOCK.lock().unwrap_or_else(PoisonError::into_inner)
}
