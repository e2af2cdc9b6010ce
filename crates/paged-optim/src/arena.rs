//! The state's memory: frames for the resident pages, a spill file for the others, moved as the policy says.

use std::path::Path;

use rayon::join;

use crate::{
    PageStats, Result,
    layout::Layout,
    policy::{Access, Moves, Policy},
    spill::SpillFile,
};

/// A resident page while it is worked on.
pub(crate) struct PageMut<'a> {
    pub(crate) page: usize,
    pub(crate) words: &'a mut [f32],
}

#[derive(Debug)]
pub(crate) struct Arena {
    layout: Layout,
    policy: Policy,
    /// All frames, one after the other. Untouched frames are zero pages of the system and cost nothing.
    memory: Vec<f32>,
    /// Absent when every page has a frame.
    spill: Option<SpillFile>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    resident: usize,
    resident_peak: usize,
    spilled: u64,
    fetched: u64,
}

impl Arena {
    /// `frames` frames; the spill file is made at once, so that a bad folder shows before the first step.
    pub(crate) fn new(layout: Layout, frames: usize, spill_dir: &Path) -> Result<Self> {
        let spill = if frames < layout.pages() { Some(SpillFile::create(spill_dir)?) } else { None };
        let frames = frames.min(layout.pages());
        let memory = vec![0.0; frames * layout.frame_words()];
        let policy = Policy::new(layout.pages(), frames);
        Ok(Self { layout, policy, memory, spill, counters: Counters::default() })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn stats(&self) -> PageStats {
        PageStats {
            state_bytes: self.layout.state_bytes(),
            resident_peak: self.counters.resident_peak,
            bytes_spilled: self.counters.spilled,
            bytes_fetched: self.counters.fetched,
        }
    }

    /// Makes all state zero again, without moving a byte.
    pub(crate) fn clear(&mut self) {
        self.policy = Policy::new(self.layout.pages(), self.memory.len() / self.layout.frame_words().max(1));
        self.counters.resident = 0;
    }

    /// The words of a page, resident after this.
    pub(crate) fn page(&mut self, page: usize, access: Access) -> Result<&mut [f32]> {
        let moves = self.policy.touch(page, access);
        let words = self.layout.frame_words();
        let frame = &mut self.memory[moves.frame * words..(moves.frame + 1) * words];
        transfer(moves, &self.layout, frame, self.spill.as_mut(), &mut self.counters)?;
        Ok(&mut frame[..self.layout.page_words(page)])
    }

    /// Shows every page to `work` for change, in order, as many at a time as are resident in a row. While `work` is busy
    /// the page after them is fetched.
    pub(crate) fn sweep(&mut self, mut work: impl FnMut(Vec<PageMut<'_>>) + Send) -> Result<()> {
        let mut start = 0;
        while start < self.layout.pages() {
            self.page(start, Access::Write)?;
            let mut end = start + 1;
            while end < self.layout.pages() && self.policy.is_resident(end) {
                self.policy.touch(end, Access::Write);
                end += 1;
            }
            let ahead = if end < self.layout.pages() { self.policy.prefetch(end, start..end) } else { None };
            let frames = (start..end).map(|p| self.policy.frame(p).expect("pages of the run were just touched"));
            let frames: Vec<usize> = frames.chain(ahead.map(|m| m.frame)).collect();
            let mut parts = disjoint(&mut self.memory, self.layout.frame_words(), &frames);
            let (layout, spill, counters) = (&self.layout, self.spill.as_mut(), &mut self.counters);
            match ahead {
                None => work(split(layout, start, parts)),
                Some(moves) => {
                    let target = parts.pop().expect("the prefetched frame was added last");
                    let pages = split(layout, start, parts);
                    let (_, fetched) = join(|| work(pages), || transfer(moves, layout, target, spill, counters));
                    fetched?;
                }
            }
            start = end;
        }
        Ok(())
    }

    /// Puts a chosen file behind the arena, to see what a failing device does.
    #[cfg(all(test, target_os = "linux"))]
    pub(crate) fn replace_spill(&mut self, spill: SpillFile) {
        self.spill = Some(spill);
    }
}

/// Performs the moves of one frame.
fn transfer(
    moves: Moves,
    layout: &Layout,
    frame: &mut [f32],
    mut spill: Option<&mut SpillFile>,
    counters: &mut Counters,
) -> Result<()> {
    let position = |page: usize| (page * layout.frame_words() * size_of::<f32>()) as u64;
    const TIER: &str = "pages leave only where there are fewer frames than pages, and then there is a file";
    if let Some(evict) = moves.evict {
        let words = &frame[..layout.page_words(evict.page)];
        if evict.write_back {
            spill.as_mut().expect(TIER).write(position(evict.page), bytemuck::cast_slice(words))?;
            counters.spilled += size_of_val(words) as u64;
        }
        counters.resident -= size_of_val(words);
    }
    if let Some(fetch) = moves.fetch {
        let words = &mut frame[..layout.page_words(fetch.page)];
        if fetch.read {
            spill.as_mut().expect(TIER).read(position(fetch.page), bytemuck::cast_slice_mut(words))?;
            counters.fetched += size_of_val(words) as u64;
        } else {
            words.fill(0.0);
        }
        counters.resident += size_of_val(words);
        counters.resident_peak = counters.resident_peak.max(counters.resident);
    }
    Ok(())
}

/// The pages from `start` on, out of their frames.
fn split<'a>(layout: &Layout, start: usize, frames: Vec<&'a mut [f32]>) -> Vec<PageMut<'a>> {
    let pages = (start..).zip(frames);
    pages.map(|(page, frame)| PageMut { page, words: &mut frame[..layout.page_words(page)] }).collect()
}

/// The given frames, all different, as slices that may be changed at the same time, in the order given.
fn disjoint<'a>(memory: &'a mut [f32], words: usize, frames: &[usize]) -> Vec<&'a mut [f32]> {
    let mut order: Vec<usize> = (0..frames.len()).collect();
    order.sort_unstable_by_key(|&i| frames[i]);
    let mut found: Vec<(usize, &mut [f32])> = Vec::with_capacity(frames.len());
    let (mut rest, mut next) = (memory, 0);
    for i in order {
        let (frame, after) = rest.split_at_mut((frames[i] - next) * words).1.split_at_mut(words);
        found.push((i, frame));
        (rest, next) = (after, frames[i] + 1);
    }
    found.sort_unstable_by_key(|&(i, _)| i);
    found.into_iter().map(|(_, frame)| frame).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ParamSpec, StateFormat};

    /// The pages of each call of a sweep's work.
    fn runs(pages: usize, frames: usize) -> Vec<Vec<usize>> {
        let spec = ParamSpec { name: String::new(), len: 4 * pages, decay: true, state: StateFormat::F32 };
        let layout = Layout::new(&[spec], 32).expect("fits");
        let mut arena = Arena::new(layout, frames, &std::env::temp_dir()).expect("a file for what does not fit");
        arena.sweep(|_| ()).expect("the first only makes pages");
        let mut runs = Vec::new();
        arena.sweep(|it| runs.push(it.iter().map(|it| it.page).collect())).expect("sweeps");
        runs
    }

    #[test]
    fn pages_that_are_resident_in_a_row_come_together() {
        assert_eq!(runs(5, 5), [[0, 1, 2, 3, 4]]);
        let some = runs(6, 4);
        assert_eq!(some.concat(), [0, 1, 2, 3, 4, 5]);
        assert!(some.iter().any(|it| it.len() > 1), "{some:?}");
        assert_eq!(runs(3, 1), [[0], [1], [2]]);
    }

    #[test]
    fn disjoint_frames_come_in_the_order_asked_for() {
        let mut memory: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let got: Vec<f32> = disjoint(&mut memory, 2, &[3, 0, 4]).iter().map(|f| f[0]).collect();
        assert_eq!(got, [6.0, 0.0, 8.0]);
    }
}
