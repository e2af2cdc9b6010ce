//! Uploads that nobody waits for: through page-locked memory that is used in turn.
//!
//! A copy from ordinary memory holds the caller up until the driver has read it; one from page-locked memory returns at once, and
//! then the memory must stay as it is until the copy is done. So each piece of the ring carries an event behind its copy, and is
//! used again when that was passed.

use std::collections::VecDeque;

use crate::error::Error;
use crate::gpu::Gpu;
use crate::pinned::Pinned;
use crate::stream::Event;

/// Bytes of the ring.
const BYTES: usize = 32 << 20;
/// The most that one piece holds, so that filling one goes on while others are copied; enough for several threads to fill it.
pub(crate) const PIECE: usize = 8 << 20;
/// Where pieces begin.
const GRAIN: usize = 256;

pub(crate) struct Ring {
    memory: Pinned,
    order: Order,
    /// Behind the copies that were not yet seen to be done, oldest first: one for each piece of `order`.
    events: VecDeque<Event>,
    spare: Vec<Event>,
}

impl Ring {
    pub(crate) fn new(gpu: &Gpu) -> Result<Ring, Error> {
        let memory = Pinned::new(gpu, BYTES)?;
        Ok(Ring { memory, order: Order::new(BYTES), events: VecDeque::new(), spare: Vec::new() })
    }

    /// Has `fill` write a piece of at most [`PIECE`] bytes, and hands it to `copy`, which enqueues reading it on the compute stream. Waits
    /// only if the ring is full of what the device has not come to yet.
    pub(crate) fn send<E: From<Error>>(
        &mut self,
        gpu: &Gpu,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
        copy: impl FnOnce(&[u8]) -> Result<(), Error>,
    ) -> Result<(), E> {
        while let Some(event) = self.events.front()
            && gpu.has_passed(event)?
        {
            self.retire();
        }
        let event = self.spare.pop().map_or_else(|| Event::untimed(gpu), Ok)?;
        let at = loop {
            match self.order.claim(bytes) {
                Some(at) => break at,
                None => {
                    let Some(event) = self.events.front() else { unreachable!("an empty ring has room for a piece") };
                    gpu.wait(event)?;
                    self.retire();
                }
            }
        };
        let piece = &mut self.memory.as_mut_slice()[at..at + bytes];
        let filled = fill(piece);
        // From here on the piece is in flight, whether or not the copy could be asked for.
        let copied = filled.and_then(|()| Ok(copy(piece).and_then(|()| gpu.compute_stream().record(&event))?));
        self.events.push_back(event);
        copied
    }

    fn retire(&mut self) {
        self.order.retire();
        self.spare.extend(self.events.pop_front());
    }
}

/// Which bytes of the ring are in use: pieces are given out one behind the other, and come back in that order.
struct Order {
    capacity: usize,
    /// Where the next piece begins, if there is room.
    head: usize,
    /// Beginnings of the pieces in use, oldest first.
    used: VecDeque<usize>,
}

impl Order {
    fn new(capacity: usize) -> Order {
        Order { capacity, head: 0, used: VecDeque::new() }
    }

    /// A place for so many bytes, if there is one before the oldest piece that is in use.
    fn claim(&mut self, bytes: usize) -> Option<usize> {
        let size = bytes.max(1).next_multiple_of(GRAIN);
        let at = match self.used.front() {
            None => (size <= self.capacity).then_some(0),
            // What is in use reaches from the oldest to the head; a piece that does not fit behind begins at 0.
            Some(&oldest) if oldest < self.head => {
                let behind = (self.head + size <= self.capacity).then_some(self.head);
                behind.or_else(|| (size <= oldest).then_some(0))
            }
            // It reaches around the end.
            Some(&oldest) => (self.head + size <= oldest).then_some(self.head),
        }?;
        self.head = at + size;
        self.used.push_back(at);
        Some(at)
    }

    /// Takes the oldest piece back.
    fn retire(&mut self) {
        self.used.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_use_never_overlap() {
        let mut order = Order::new(16 * GRAIN);
        let mut live: VecDeque<(usize, usize)> = VecDeque::new();
        let mut state = 1u32;
        let mut waited = 0;
        for _ in 0..10_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bytes = 1 + (state >> 8) as usize % (4 * GRAIN);
            let at = loop {
                if let Some(at) = order.claim(bytes) {
                    break at;
                }
                assert!(!live.is_empty(), "an empty ring has room for {bytes} bytes");
                live.pop_front();
                order.retire();
                waited += 1;
            };
            assert!(at % GRAIN == 0 && at + bytes <= order.capacity);
            assert!(live.iter().all(|(from, to)| at + bytes <= *from || *to <= at), "{at}: {live:?}");
            live.push_back((at, at + bytes));
        }
        assert!(waited > 5_000, "the ring was full most of the time");
    }

    #[test]
    fn a_ring_is_used_to_its_last_byte() {
        let mut order = Order::new(4 * GRAIN);
        for i in 0..4 {
            assert_eq!(order.claim(GRAIN), Some(i * GRAIN));
        }
        assert_eq!(order.claim(1), None);
        order.retire();
        assert_eq!(order.claim(GRAIN), Some(0));
        assert_eq!(order.claim(1), None, "the oldest is now the second");
    }
}
