//! The pool under threads that get its lock in every order: few threads in all orders there are, more of them in random ones.

use super::{Pool, Shared};
use crate::storage::Buffer;
use half::bf16;
use shuttle::{sync::Mutex, thread};
use std::sync::Arc;

/// Elements of f32 in a buffer that is pooled as a vector.
const SMALL: usize = 1024;
/// Elements of f32 in a buffer that has pages.
const LARGE: usize = 64 << 10;

impl Shared for Mutex<Pool> {
    fn with<R>(&self, f: impl FnOnce(&mut Pool) -> R) -> R {
        let mut it = self.lock().expect("no thread panicked");
        let result = f(&mut it);
        it.check();
        result
    }
}

impl Pool {
    /// What holds whenever nobody has the lock.
    fn check(&self) {
        let it = self.stats;
        let held: usize = self.vectors.values().flatten().map(|it| it.buffer.held()).sum();
        assert_eq!(it.cached, held + self.arena.cached(), "what is counted as kept is what is kept");
        assert!(it.live + it.cached <= it.limit(), "the pool raises the footprint: {it:?}");
        assert!(it.footprint <= it.limit(), "{it:?}");
        let sizes =
            self.vectors.iter().all(|(at, all)| !all.is_empty() && all.iter().all(|it| it.buffer.held() == at.1));
        assert!(sizes, "a buffer lies under another size");
    }
}

/// A tensor's life: a buffer that nobody else writes while it is held.
fn use_one(pool: &Mutex<Pool>, len: usize, mark: u16) {
    let mut buffer = pool.take::<f32>(len);
    buffer.bytes_mut().fill(mark as u8);
    thread::yield_now();
    assert!(buffer.bytes().iter().all(|it| *it == mark as u8), "somebody else has this buffer");
    pool.give_back(buffer);
}

/// Runs these at a time, and gives the pool that they leave when all have ended.
fn together(threads: &[fn(&Mutex<Pool>)]) {
    let pool = Arc::new(Mutex::new(Pool::EMPTY));
    // Something is kept from before, and has a peak to stay under.
    pool.give_back(pool.take::<f32>(SMALL));
    let all: Vec<_> = threads
        .iter()
        .map(|work| {
            let (work, pool) = (*work, Arc::clone(&pool));
            thread::spawn(move || work(&pool))
        })
        .collect();
    all.into_iter().for_each(|it| it.join().expect("no thread panicked"));
    pool.with(|it| assert_eq!(it.stats.live, 0, "all was given back"));
    pool.trim();
    pool.with(|it| assert_eq!((it.stats.cached, it.vectors.len(), it.arena.cached()), (0, 0, 0)));
}

const SMALL_ONE: fn(&Mutex<Pool>) = |pool| use_one(pool, SMALL, 1);
const SLACK_ONE: fn(&Mutex<Pool>) = |pool| use_one(pool, SMALL - SMALL / 10, 2);
const LARGE_ONE: fn(&Mutex<Pool>) = |pool| use_one(pool, LARGE, 3);
const OTHER_DTYPE: fn(&Mutex<Pool>) = |pool| {
    let buffer: Buffer = pool.take::<bf16>(2 * LARGE);
    pool.give_back(buffer);
    use_one(pool, SMALL, 4);
};
const BESIDE: fn(&Mutex<Pool>) = |pool| {
    pool.adopt(5000);
    thread::yield_now();
    pool.release(5000);
};
const ANEW: fn(&Mutex<Pool>) = |pool| pool.reset_peak();

#[test]
fn two_threads_get_the_pool_in_every_order() {
    for threads in [[SMALL_ONE, SLACK_ONE], [SMALL_ONE, BESIDE], [LARGE_ONE, SMALL_ONE], [SMALL_ONE, ANEW]] {
        shuttle::check_dfs(move || together(&threads), None);
    }
}

#[test]
fn many_threads_get_the_pool_in_any_order() {
    let threads = [SMALL_ONE, SMALL_ONE, SLACK_ONE, LARGE_ONE, OTHER_DTYPE, BESIDE, ANEW, SMALL_ONE];
    shuttle::check_random(move || together(&threads), 300);
    shuttle::check_pct(move || together(&threads), 150, 4);
}
