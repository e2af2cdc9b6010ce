//! Passes that ask for the same again, started as a whole.
//!
//! A step of training asks for thousands of kernels, one after the other, and the next one of the same shape for the same kernels with the
//! same arguments. Where three passes did, a fourth is started by one call, from a graph; meanwhile the host goes through it as ever, but
//! what it asks for is compared, word by word, with what was started, and not asked of the device. So nothing has to be known of a pass:
//! what it depends on (a seed, a length, an address) shows in its words. If they are others than those that were started, the pass is run
//! again, by itself: all that the graph wrote is memory that was free when the pass began, or that the pass writes anyway. That it is
//! free is compared first.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use crate::error::Error;
use crate::gpu::Gpu;
use crate::graph::Graph;
use crate::script::Role;

/// Passes that are remembered; each takes eight bytes a call.
const REMEMBERED: usize = 64;
/// So many passes have to ask for the same before a graph is made, since that takes as long as another pass: a shape that comes twice, or
/// a run of three steps, is not worth it.
const WATCHED: usize = 3;
/// Graphs that are kept; each takes some megabytes of the device.
const KEPT: usize = 8;
/// So many passes may have been started in vain before none is any more.
const MOST_STRAYS: usize = 8;

/// Makes a number of what a pass gives.
type Digest<'a, R, E> = dyn Fn(&R) -> Result<u64, E> + 'a;

/// The passes of a device that may come again.
#[derive(Default)]
pub(crate) struct Repeats {
    /// The latest last.
    known: Vec<Known>,
    strays: usize,
    given_up: Option<String>,
}

struct Known {
    key: u64,
    /// The memory in use when it began.
    begin: u64,
    state: State,
}

enum State {
    /// It came so often, with these words.
    Seen(usize, Vec<u64>),
    /// Started by this, it asks for these words.
    Kept(Graph, Arc<[u64]>),
    /// The driver makes no graph of it.
    Refused,
}

impl Repeats {
    fn take(&mut self, key: u64, begin: u64) -> Option<State> {
        let at = self.known.iter().position(|it| (it.key, it.begin) == (key, begin))?;
        Some(self.known.remove(at).state)
    }

    fn put(&mut self, known: Known) {
        self.known.push(known);
        if self.known.len() > REMEMBERED {
            self.known.remove(0);
        }
        let kept = |it: &Known| matches!(it.state, State::Kept(..));
        if self.known.iter().filter(|it| kept(it)).count() > KEPT
            && let Some(oldest) = self.known.iter().position(kept)
        {
            self.known.remove(oldest);
        }
    }
}

impl Gpu {
    /// Runs a pass over the device, which may come again: from the fourth time on it is then started as a whole. The results have the
    /// same bits.
    ///
    /// `key` says which pass it is, as far as the caller knows: passes of one key should ask for the same, and if they do not, nothing is
    /// gained. `digest` makes a number of what a pass gives, by which the first pass that is started so is compared with itself: where they
    /// differ, none is started so any more ([`Gpu::why_not_repeated`]).
    ///
    /// The pass is run up to three times, so it leaves nothing behind but what it gives. Meanwhile nobody else may ask anything of the device, nor
    /// hold memory that is used out of the order of the compute stream.
    ///
    /// # Errors
    /// What the pass and `digest` report.
    pub fn repeated<R, E>(
        &self,
        key: u64,
        digest: &Digest<'_, R, E>,
        pass: &mut dyn FnMut() -> Result<R, E>,
    ) -> Result<R, E> {
        if !self.repeats || self.has_script() || self.repeating().given_up.is_some() {
            return pass();
        }
        let begin = self.pool().signature();
        let state = self.repeating().take(key, begin);
        let remember = |state| self.repeating().put(Known { key, begin, state });
        let (seen, before) = match state {
            Some(State::Refused) => {
                remember(State::Refused);
                return pass();
            }
            Some(State::Kept(graph, words)) => {
                let Some(done) = self.follow(&graph, &words, pass)? else {
                    self.count_stray();
                    return pass();
                };
                remember(State::Kept(graph, words));
                return Ok(done);
            }
            Some(State::Seen(times, words)) => (times, words),
            None => (0, Vec::new()),
        };
        let (done, words) = self.watch(pass)?;
        let Some(words) = words else { return Ok(done) };
        let times = if words == before { seen + 1 } else { 1 };
        if times < WATCHED {
            remember(State::Seen(times, words));
            return Ok(done);
        }
        let expected = digest(&done)?;
        drop(done);
        let words: Arc<[u64]> = words.into();
        let kept = if self.pool().signature() == begin { self.capture(&words, pass) } else { None };
        let Some((done, graph)) = kept.filter(|it| self.start(&it.1)) else {
            remember(State::Refused);
            return pass();
        };
        if digest(&done)? != expected {
            drop(done);
            self.give_up("a pass that was started as one CUDA graph gave another result than by itself".into());
            return pass();
        }
        remember(State::Kept(graph, words));
        Ok(done)
    }

    /// Whether passes that come again may be started as a whole on this device: it is there, its buffers come from a pool, the driver makes
    /// graphs, and `HALFBYTE_CUDA_GRAPH` is not off.
    pub fn repeats(&self) -> bool {
        self.repeats
    }

    /// Why passes are not started as a whole any more, if something went wrong with that.
    pub fn why_not_repeated(&self) -> Option<String> {
        self.repeating().given_up.clone()
    }

    /// Runs a pass, and gives its words if a graph may be made of them.
    fn watch<R, E>(&self, pass: &mut dyn FnMut() -> Result<R, E>) -> Result<(R, Option<Vec<u64>>), E> {
        self.begin_script(Role::Watched, Arc::from([]));
        let done = pass();
        let words = self.end_script().and_then(|it| it.repeatable());
        Ok((done?, words))
    }

    /// Starts a pass as a whole, and goes through it. Nothing if it was another one.
    fn follow<R, E>(
        &self,
        graph: &Graph,
        words: &Arc<[u64]>,
        pass: &mut dyn FnMut() -> Result<R, E>,
    ) -> Result<Option<R>, E> {
        if !self.start(graph) {
            return Ok(None);
        }
        self.begin_script(Role::Followed, words.clone());
        let done = pass();
        if self.end_script().is_some_and(|it| it.is_as_expected()) {
            return done.map(Some);
        }
        drop(done);
        self.forget_stray();
        Ok(None)
    }

    /// Goes through a pass, whose calls the driver keeps and does not make. What the pass gives is there when the graph was launched.
    fn capture<R, E>(&self, words: &Arc<[u64]>, pass: &mut dyn FnMut() -> Result<R, E>) -> Option<(R, Graph)> {
        self.bind().ok()?;
        Graph::begin(self).ok()?;
        self.begin_script(Role::Captured, words.clone());
        let done = pass();
        let as_expected = self.end_script().is_some_and(|it| it.is_as_expected());
        let graph = Graph::end(self);
        if let (Ok(done), true, Ok(graph)) = (done, as_expected, graph) {
            return Some((done, graph));
        }
        // Whatever failed did so since it was captured, or fails again when the pass is run by itself.
        self.clear_fault();
        None
    }

    /// Starts it, if the driver can. What keeps it from that shows when the pass is run by itself, too, or is of no concern then.
    fn start(&self, graph: &Graph) -> bool {
        let started = self.bind().and_then(|()| graph.launch(self)).is_ok();
        self.tally.graphs.fetch_add(u64::from(started), Ordering::Relaxed);
        started
    }

    fn give_up(&self, why: String) {
        self.repeating().given_up = Some(why);
    }

    /// Forgets the fault that a pass was not the one that was expected.
    fn forget_stray(&self) {
        match self.clear_fault() {
            None | Some(Error::Strayed { .. }) => {}
            Some(other) => self.fault(other),
        }
    }

    fn count_stray(&self) {
        self.repeating().strays += 1;
        if self.repeating().strays >= MOST_STRAYS {
            let what = "passes that were started as CUDA graphs asked for something else after all";
            self.give_up(format!("{MOST_STRAYS} {what}"));
        }
    }

    fn repeating(&self) -> MutexGuard<'_, Repeats> {
        self.repeating.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
