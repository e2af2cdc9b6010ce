//! Graphics cards that a plan can be made for where there is none.

use halfbyte_cuda::{DeviceInfo, Gpu, Rates, Version};
use std::sync::Arc;

/// A card by its data sheet. Rates are those of the dense products and of the memory, at their best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Card {
    pub(crate) name: &'static str,
    capability: (u32, u32),
    memory_gib: u64,
    /// Shared memory that a block can have.
    shared_kib: u32,
    /// bf16 products with f32 sums, in 10^12 operations a second.
    pub(crate) tflops: f64,
    /// 10^12 bytes a second.
    pub(crate) memory_tbps: f64,
    /// What a copy from or to page-locked host memory is supposed to reach over the card's bus, in 10^9 bytes a second.
    pub(crate) host_gbps: f64,
}

/// What asking for one product or kernel costs, in seconds: measured on an H100's host.
pub(crate) const LAUNCH_SECONDS: f64 = 2.5e-6;
/// From the end of a kernel to the beginning of the next, where the host is ahead: measured on an H100.
const GAP_SECONDS: f64 = 1.7e-6;

const fn card(
    name: &'static str,
    capability: (u32, u32),
    memory_gib: u64,
    shared_kib: u32,
    rates: (f64, f64, f64),
) -> Card {
    let (tflops, memory_tbps, host_gbps) = rates;
    Card { name, capability, memory_gib, shared_kib, tflops, memory_tbps, host_gbps }
}

impl Card {
    /// Those with a name.
    pub(crate) const ALL: [Card; 6] = [
        card("h100", (9, 0), 80, 227, (989.0, 3.35, 50.0)),
        card("h200", (9, 0), 141, 227, (989.0, 4.8, 50.0)),
        card("a100", (8, 0), 80, 163, (312.0, 2.04, 24.0)),
        card("l40s", (8, 9), 48, 99, (362.0, 0.86, 24.0)),
        card("rtx-4090", (8, 9), 24, 99, (165.0, 1.01, 24.0)),
        card("rtx-3090", (8, 6), 24, 99, (71.0, 0.94, 24.0)),
    ];

    /// The card of a name.
    pub(crate) fn named(name: &str) -> Option<Card> {
        Card::ALL.into_iter().find(|it| it.name == name)
    }

    /// What of that products, attention and copies reached on an H100, and is supposed of the others.
    fn rates(&self) -> Rates {
        let (operations, bytes) = (self.tflops * 1e12, self.memory_tbps * 1e12);
        Rates {
            products: 0.8 * operations,
            kernels: 0.4 * operations,
            bytes: 0.87 * bytes,
            gap: GAP_SECONDS,
            host: self.host_gbps * 1e9,
        }
    }

    /// A device that answers as the card would and computes nothing.
    pub(crate) fn dry(&self) -> Arc<Gpu> {
        let info = DeviceInfo {
            ordinal: 0,
            name: self.name.to_owned(),
            compute_capability: Version { major: self.capability.0, minor: self.capability.1 },
            memory_bytes: self.memory_gib << 30,
        };
        Gpu::dry_at(info, self.shared_kib << 10, self.rates())
    }
}
