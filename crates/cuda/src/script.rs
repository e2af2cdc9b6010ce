//! What a pass asks of a device, word for word: so one that asks for the same again can be told from one that does not.
//!
//! A word is a hash of a call: which kernel, with which arguments, on how many blocks; which product; which copy. Addresses are among the
//! arguments, so passes of the same words read and write the same memory.

use std::hash::Hash;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use crate::error::Error;
use crate::gpu::Gpu;
use crate::pool::hash;

/// What becomes of the calls of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// They are made, and remembered.
    Watched,
    /// They are made, into a graph, as long as they are those that are expected.
    Captured,
    /// They are not made, since a graph of them is under way, and must be those that are expected.
    Followed,
}

/// The calls of a pass under way.
pub(crate) struct Script {
    thread: ThreadId,
    role: Role,
    words: Vec<u64>,
    expected: Arc<[u64]>,
    /// What no graph holds, or was not expected.
    strayed: Option<&'static str>,
}

impl Script {
    /// The words of a pass of which a graph can be made.
    pub(crate) fn repeatable(self) -> Option<Vec<u64>> {
        self.strayed.is_none().then_some(self.words)
    }

    /// Whether all that was expected was asked for, and nothing else.
    pub(crate) fn is_as_expected(&self) -> bool {
        self.strayed.is_none() && self.words.len() == self.expected.len()
    }

    fn says(&mut self, word: u64) -> Result<bool, Error> {
        let expected = self.role == Role::Watched || self.expected.get(self.words.len()) == Some(&word);
        self.words.push(word);
        match expected {
            true => Ok(self.role != Role::Followed),
            false => Err(self.stray("something else than before")),
        }
    }

    fn stray(&mut self, what: &'static str) -> Error {
        self.strayed.get_or_insert(what);
        Error::Strayed { what }
    }
}

impl Gpu {
    /// Begins a pass, on this thread.
    pub(crate) fn begin_script(&self, role: Role, expected: Arc<[u64]>) {
        let fresh = Script { thread: thread::current().id(), role, words: Vec::new(), expected, strayed: None };
        *self.script() = Some(fresh);
        self.scripted.store(true, Ordering::Release);
    }

    /// Ends it.
    pub(crate) fn end_script(&self) -> Option<Script> {
        self.scripted.store(false, Ordering::Release);
        self.script().take()
    }

    /// Whether a pass is under way.
    pub(crate) fn has_script(&self) -> bool {
        self.scripted.load(Ordering::Acquire)
    }

    /// Says that something is about to be asked of the device, and hears whether it still is to be: a graph of it may be under way.
    ///
    /// # Errors
    /// [`Error::Strayed`] if something else was expected.
    pub(crate) fn says(&self, word: impl Hash) -> Result<bool, Error> {
        self.scripted_or(true, |script| script.says(hash(&word)))
    }

    /// Says that something is about to be asked that no graph holds: what waits, or takes memory of the host with it.
    ///
    /// # Errors
    /// [`Error::Strayed`] if the calls are to be those of a graph.
    pub(crate) fn says_once(&self, what: &'static str) -> Result<(), Error> {
        self.scripted_or((), |script| {
            let error = script.stray(what);
            if script.role == Role::Watched { Ok(()) } else { Err(error) }
        })
    }

    /// What a call hears that belongs to the pass under way; otherwise where there is none.
    fn scripted_or<R>(&self, otherwise: R, ask: impl FnOnce(&mut Script) -> Result<R, Error>) -> Result<R, Error> {
        if !self.has_script() {
            return Ok(otherwise);
        }
        let mut guard = self.script();
        let Some(script) = guard.as_mut() else { return Ok(otherwise) };
        if script.thread != thread::current().id() {
            // What is asked between is not the pass's, and nobody knows where between.
            script.stray("another thread's work");
            return Ok(otherwise);
        }
        let heard = ask(script);
        drop(guard);
        // Whoever can return no error goes on asking; nothing of it is to reach the device.
        heard.inspect_err(|error| self.fault(error.clone()))
    }

    fn script(&self) -> MutexGuard<'_, Option<Script>> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
