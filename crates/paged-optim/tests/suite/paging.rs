//! Paged equals unpaged, bit for bit, within the budget, on any number of threads.

use std::{env, fs};

use halfbyte_paged_optim::Budget;
use proptest::prelude::*;

use crate::training::{Training, in_memory, paged, specs};

#[test]
fn a_quarter_of_the_state_gives_the_same_bits() {
    let lens = [4096, 64, 10_000, 1, 0, 2223];
    let state: usize = lens.iter().sum::<usize>() * 8;
    let budget = Budget { resident_bytes: Some(state / 4), page_bytes: 4096, ..Budget::default() };
    let (all, quarter) = (Training::new(&lens, in_memory()).run(6), Training::new(&lens, budget).run(6));
    assert_eq!(all.bits(), quarter.bits());

    let (all, quarter) = (all.adamw.stats(), quarter.adamw.stats());
    assert_eq!((all.state_bytes, all.resident_peak), (state, state));
    assert_eq!((all.bytes_spilled, all.bytes_fetched), (0, 0));
    assert_eq!(quarter.state_bytes, state);
    assert!(quarter.resident_peak <= state / 4 && quarter.resident_peak > state / 5, "{quarter:?}");
    assert!(quarter.bytes_spilled > 0 && quarter.bytes_fetched > 0, "{quarter:?}");
}

#[test]
fn a_step_moves_what_does_not_fit_and_little_more() {
    // 32 pages, 24 frames; the first step only creates pages.
    let mut training = Training::new(&[32 * 128], paged(24, 128)).run(2);
    let before = training.adamw.stats();
    training.step().expect("steps");
    let after = training.adamw.stats();
    let page = 128 * 8;
    let fetched = (after.bytes_fetched - before.bytes_fetched) / page;
    let spilled = (after.bytes_spilled - before.bytes_spilled) / page;
    assert!((8..=10).contains(&fetched) && (8..=10).contains(&spilled), "{fetched} fetched, {spilled} spilled of 32");
}

#[test]
fn the_first_step_reads_nothing() {
    let stats = Training::new(&[1000], paged(2, 64)).run(1).adamw.stats();
    assert!(stats.bytes_spilled > 0);
    assert_eq!(stats.bytes_fetched, 0, "pages never written are made, not read");
}

#[test]
fn threads_do_not_show() {
    let lens = [70_000, 3, 40_000];
    let run = |threads: usize, budget: Budget| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
        pool.install(|| Training::new(&lens, budget).run(3).bits())
    };
    let one = run(1, in_memory());
    for threads in [2, 3, 8] {
        assert_eq!(one, run(threads, in_memory()));
        assert_eq!(one, run(threads, paged(3, 8192)));
    }
}

#[test]
fn a_budget_that_holds_everything_needs_no_folder() {
    let budget = Budget { resident_bytes: Some(800), page_bytes: 80, spill_dir: "no/such/folder".into() };
    let stats = Training::new(&[100], budget).run(2).adamw.stats();
    assert_eq!((stats.resident_peak, stats.bytes_spilled), (800, 0));
}

#[test]
fn a_budget_of_the_state_alone_is_enough_though_its_last_page_is_short() {
    // 105 elements are 840 bytes, ten pages and a half.
    for resident_bytes in [Some(840), Some(841), Some(880)] {
        let budget = Budget { resident_bytes, page_bytes: 80, spill_dir: "no/such/folder".into() };
        let stats = Training::new(&[105], budget).run(2).adamw.stats();
        assert_eq!((stats.resident_peak, stats.bytes_spilled), (840, 0), "{resident_bytes:?}");
    }
}

#[test]
fn the_parameters_are_those_that_were_given() {
    assert_eq!(Training::new(&[3, 0, 5], in_memory()).adamw.specs(), specs(&[3, 0, 5]));
}

#[test]
fn nothing_stays_in_the_folder() {
    let dir = tempfile::tempdir_in(env::temp_dir()).expect("temporary folder");
    let budget = Budget { spill_dir: dir.path().to_owned(), ..paged(1, 16) };
    let training = Training::new(&[200], budget).run(2);
    assert!(training.adamw.stats().bytes_spilled > 0);
    drop(training);
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_budget_gives_the_same_bits(
        lens in prop::collection::vec(0usize..90, 0..6),
        frames in 1usize..6,
        elements in 1usize..40,
        steps in 1usize..5,
    ) {
        let all = Training::new(&lens, in_memory()).run(steps);
        let some = Training::new(&lens, paged(frames, elements)).run(steps);
        prop_assert_eq!(all.bits(), some.bits());
        let (stats, most) = (some.adamw.stats(), frames * elements * 8);
        prop_assert!(stats.resident_peak <= most);
        prop_assert_eq!(stats.bytes_spilled > 0, stats.state_bytes > most);
    }
}
