//! The memory that a run may have, and what is said of one that needs more.

use super::Plan;
use crate::{console::mib, failure::user_error, memory};
use halfbyte_tensor::Device;

/// Bytes that can be had on a device, and of a GPU all that there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) free: usize,
    total: Option<usize>,
}

impl Room {
    /// None where the system does not tell.
    pub(crate) fn on(device: &Device) -> anyhow::Result<Option<Room>> {
        Ok(match device {
            Device::Cuda(gpu) => {
                let (free, total) = gpu.memory()?;
                Some(Room { free, total: Some(total) })
            }
            Device::Cpu | Device::Dry(_) => memory::available().map(|free| Room { free, total: None }),
        })
    }

    /// Whether it is in host memory.
    pub(crate) fn is_host(&self) -> bool {
        self.total.is_none()
    }

    /// For people.
    pub(crate) fn described(&self) -> String {
        match self.total {
            Some(total) => format!("the GPU has {} of {} free", mib(self.free), mib(total)),
            None => format!("{} of memory are free", mib(self.free)),
        }
    }

    /// What to do about something that does not fit: the first of other ways that does, or `otherwise`.
    pub(crate) fn way_out<'a>(&self, ways: impl IntoIterator<Item = (&'a str, usize)>, otherwise: &str) -> String {
        let elsewhere = if self.is_host() { "" } else { " or --device cpu" };
        let found = ways.into_iter().find(|it| it.1 <= self.free);
        found.map_or_else(
            || format!("nothing short of {otherwise}{elsewhere} fits"),
            |(flags, bytes)| format!("{flags} would need {} and fit", mib(bytes)),
        )
    }

    /// The refusal of something with this plan. `what` is it, as in "this run"; `advice` is what to do.
    pub(crate) fn refusal(&self, what: &str, plan: &Plan, advice: &str) -> anyhow::Error {
        user_error(format!(
            "{}, and {what} needs about {} ({} for the weights, {} for activations); {advice}",
            self.described(),
            mib(plan.total()),
            mib(plan.frozen_matrices + plan.dense_weights + plan.trainable),
            mib(plan.activations)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_way_that_fits_is_advised() {
        let room = Room { free: 2 << 20, total: None };
        let ways = [("--a", 3 << 20), ("--b", 2 << 20), ("--c", 1 << 20)];
        assert_eq!(room.way_out(ways, "a smaller model"), "--b would need 2.0 MiB and fit");
        assert_eq!(room.way_out([("--a", 3 << 20)], "a smaller model"), "nothing short of a smaller model fits");
        let gpu = Room { total: Some(4 << 20), ..room };
        assert_eq!(gpu.way_out([], "a smaller model"), "nothing short of a smaller model or --device cpu fits");
        assert_eq!(gpu.described(), "the GPU has 2.0 MiB of 4.0 MiB free");
    }
}
