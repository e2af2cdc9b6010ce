//! Pieces of a product that may run at a time: on rayon's threads. In tests that ask for it they are threads of shuttle, of which one
//! runs at a time, and which change places wherever one passes a [`point`]: in an order that can be chosen and repeated.

use rayon::prelude::*;

/// Threads that a product is divided for.
pub(crate) fn threads() -> usize {
    #[cfg(test)]
    if let Some(threads) = ordered::threads() {
        return threads;
    }
    rayon::current_num_threads()
}

/// Runs both, perhaps at a time.
pub(crate) fn join(a: impl FnOnce() + Send, b: impl FnOnce() + Send) {
    #[cfg(test)]
    if ordered::threads().is_some() {
        return ordered::join(a, b);
    }
    rayon::join(a, b);
}

/// Runs `work` with each of the numbers below `count`, of which at least so many stay together.
pub(crate) fn each(count: usize, together: usize, work: impl Fn(usize) + Send + Sync) {
    #[cfg(test)]
    if ordered::threads().is_some() {
        return ordered::all((0..count).collect(), &work);
    }
    (0..count).into_par_iter().with_min_len(together).for_each(work);
}

/// Runs `work` with each of the numbers below `count`, each a piece of work of its own.
pub(crate) fn apart(count: usize, work: impl Fn(usize) + Send + Sync) {
    #[cfg(test)]
    if ordered::threads().is_some() {
        return ordered::all((0..count).collect(), &work);
    }
    (0..count).into_par_iter().with_max_len(1).for_each(work);
}

/// Runs `work` with each of these, each a piece of work of its own.
pub(crate) fn items<T: Send>(items: Vec<T>, work: impl Fn(T) + Send + Sync) {
    #[cfg(test)]
    if ordered::threads().is_some() {
        return ordered::all(items, &work);
    }
    items.into_par_iter().with_max_len(1).for_each(work);
}

/// Runs `work` with each chunk of `words` and its number.
pub(crate) fn chunks(words: &mut [u32], len: usize, work: impl Fn((usize, &mut [u32])) + Send + Sync) {
    #[cfg(test)]
    if ordered::threads().is_some() {
        return ordered::all(words.chunks_mut(len).enumerate().collect(), &work);
    }
    words.par_chunks_mut(len).enumerate().for_each(work);
}

/// Here another thread may come first.
#[inline(always)]
pub(crate) fn point() {
    #[cfg(test)]
    if ordered::threads().is_some() {
        shuttle::thread::yield_now();
    }
}

#[cfg(test)]
pub(crate) mod ordered {
    use shuttle::{sync::Mutex, thread};
    use std::cell::Cell;

    thread_local! {
        static THREADS: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// How many threads of shuttle a product is divided for, if it is.
    pub(super) fn threads() -> Option<usize> {
        THREADS.get()
    }

    /// Runs `f`, whose pieces are threads of shuttle as long as it runs. Shuttle's threads have one thread of the system, whose
    /// buffers are therefore shared by all of them.
    pub(crate) fn with(threads: usize, f: impl FnOnce()) {
        THREADS.set(Some(threads));
        f();
        THREADS.set(None);
    }

    /// Whoever opens a scope of shuttle's (0.9.10) only waits there: it is woken when the scope's threads are done, whatever it waits
    /// for, and would leave a scope that it opened inside while there are threads in it.
    pub(super) fn join(a: impl FnOnce() + Send, b: impl FnOnce() + Send) {
        thread::scope(|scope| {
            scope.spawn(a);
            scope.spawn(b);
        });
    }

    /// As many threads as there are take one after the other of these.
    pub(super) fn all<T: Send>(items: Vec<T>, work: &(impl Fn(T) + Sync)) {
        let (count, rest) = (items.len(), Mutex::new(items));
        thread::scope(|scope| {
            for _ in 0..count.min(threads().unwrap_or(1)) {
                scope.spawn(|| {
                    loop {
                        let next = rest.lock().expect("no thread panicked").pop();
                        let Some(next) = next else { return };
                        work(next);
                    }
                });
            }
        });
    }
}
