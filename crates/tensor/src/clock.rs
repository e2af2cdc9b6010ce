//! Which clock tells how long the work on a device takes.
//!
//! A GPU works behind the program that asks it: the host's time between two ops is the time it took to ask. So there marks are events
//! in the device's order, and what lies between them is known when the device has come by.

use crate::{Device, Ledger, Result};
use halfbyte_cuda::{Counters, Event, Gpu};
use std::{collections::VecDeque, fmt, sync::Arc, time::Instant};

/// What was done so far, in numbers that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// Kernels and products started; none on a CPU.
    pub launches: u64,
    /// Floating-point operations: on a CPU those of products.
    pub operations: u64,
    /// Bytes read and written; counted in dry runs only.
    pub bytes: u64,
}

/// Puts marks between pieces of work, and tells how long each piece took.
pub trait Clock: Send + fmt::Debug {
    /// What it goes by, to be read by people.
    fn name(&self) -> &'static str;

    /// Puts a mark behind everything that was asked for so far. Does not wait for it.
    fn mark(&mut self) -> Result<()>;

    /// Seconds between marks, in order, each given once: those that are known already, or `all`, which may wait for the device.
    fn take(&mut self, all: bool) -> Result<Vec<f64>>;

    /// What was done so far.
    fn effort(&self) -> Effort;
}

/// The clock for work on a device. `operations` counts those of products on a CPU.
pub fn clock(device: &Device, operations: fn() -> u64) -> Box<dyn Clock> {
    match device {
        Device::Cuda(gpu) => Box::new(DeviceClock { gpu: gpu.clone(), marks: VecDeque::new(), spare: Vec::new() }),
        Device::Dry(ledger) => Box::new(LedgerClock { ledger: ledger.clone(), marks: 0, given: 0 }),
        Device::Cpu => Box::new(HostClock { operations, last: None, known: Vec::new() }),
    }
}

#[derive(Debug)]
struct HostClock {
    operations: fn() -> u64,
    last: Option<Instant>,
    known: Vec<f64>,
}

impl Clock for HostClock {
    fn name(&self) -> &'static str {
        "the host's clock"
    }

    fn mark(&mut self) -> Result<()> {
        let now = Instant::now();
        self.known.extend(self.last.map(|it| (now - it).as_secs_f64()));
        self.last = Some(now);
        Ok(())
    }

    fn take(&mut self, _all: bool) -> Result<Vec<f64>> {
        Ok(std::mem::take(&mut self.known))
    }

    fn effort(&self) -> Effort {
        Effort { operations: (self.operations)(), ..Effort::default() }
    }
}

/// Dry runs take no time that would mean anything.
#[derive(Debug)]
struct LedgerClock {
    ledger: Arc<Ledger>,
    marks: usize,
    given: usize,
}

impl Clock for LedgerClock {
    fn name(&self) -> &'static str {
        "no clock"
    }

    fn mark(&mut self) -> Result<()> {
        self.marks += 1;
        Ok(())
    }

    fn take(&mut self, _all: bool) -> Result<Vec<f64>> {
        let known = self.marks.saturating_sub(1) - self.given;
        self.given += known;
        Ok(vec![0.0; known])
    }

    fn effort(&self) -> Effort {
        self.ledger.effort()
    }
}

#[derive(Debug)]
struct DeviceClock {
    gpu: Arc<Gpu>,
    /// In order; of those before the first it is known when they were passed.
    marks: VecDeque<Event>,
    spare: Vec<Event>,
}

impl Clock for DeviceClock {
    fn name(&self) -> &'static str {
        "the GPU's own clock"
    }

    fn mark(&mut self) -> Result<()> {
        let event = self.spare.pop().map_or_else(|| Event::timed(&self.gpu), Ok)?;
        self.gpu.compute_stream().record(&event)?;
        self.marks.push_back(event);
        Ok(())
    }

    fn take(&mut self, all: bool) -> Result<Vec<f64>> {
        if let (true, Some(last)) = (all, self.marks.back()) {
            self.gpu.wait(last)?;
        }
        let mut known = Vec::new();
        while let (Some(from), Some(to)) = (self.marks.front(), self.marks.get(1))
            && self.gpu.has_passed(to)?
        {
            known.push(self.gpu.seconds_between(from, to)?);
            self.spare.extend(self.marks.pop_front());
        }
        Ok(known)
    }

    fn effort(&self) -> Effort {
        let Counters { launches, products, operations, bytes, .. } = self.gpu.counters();
        Effort { launches: launches + products, operations, bytes }
    }
}
