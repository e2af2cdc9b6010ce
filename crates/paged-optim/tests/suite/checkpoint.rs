//! State out and in again: a run that was interrupted equals one that was not.

use std::io;

use halfbyte_paged_optim::{Budget, Error, StatePart};
use proptest::prelude::*;

use crate::training::{Training, in_memory, paged};

/// Streams the state of one optimizer into another, through a flat file as a writer would lay it out.
fn stream(from: &mut Training, to: &mut Training) {
    let mut file: Vec<u8> = Vec::new();
    let visit = from.adamw.visit_state(&mut |_, values| {
        file.extend_from_slice(values);
        Ok(())
    });
    visit.expect("visits");
    let mut rest = file.as_slice();
    let restore = to.adamw.restore(from.adamw.steps(), &mut |_, values| {
        let (head, tail) = rest.split_at(values.len());
        values.copy_from_slice(head);
        rest = tail;
        Ok(())
    });
    restore.expect("restores");
    assert!(rest.is_empty(), "both directions ask for the same pieces in sum");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_interrupted_run_equals_an_uninterrupted_one(
        lens in prop::collection::vec(0usize..70, 0..5),
        before in 0usize..4,
        after in 1usize..4,
        first in (1usize..5, 1usize..30),
        second in (1usize..5, 1usize..30),
        streamed: bool,
    ) {
        let whole = Training::new(&lens, in_memory()).run(before + after);
        let mut begun = Training::new(&lens, paged(first.0, first.1)).run(before);
        // The second optimizer has seen other gradients: all of its state must be replaced.
        let mut resumed = Training::new(&lens, paged(second.0, second.1)).run(2);
        if streamed {
            stream(&mut begun, &mut resumed);
        } else {
            resumed.adamw.import(&begun.adamw.export().expect("exports")).expect("imports");
        }
        resumed.values = begun.values.clone();
        prop_assert_eq!(resumed.adamw.steps(), before as u64);
        prop_assert_eq!(whole.bits(), resumed.run(after).bits());
        // Looking does not change anything either.
        prop_assert_eq!(whole.bits(), begun.run(after).bits());
    }
}

#[test]
fn pieces_come_in_file_order_and_within_the_budget() {
    let mut training = Training::new(&[100, 0, 30], paged(2, 16)).run(1);
    let mut places = Vec::new();
    let visit = training.adamw.visit_state(&mut |place, values| {
        assert_eq!(place.name, format!("p{}", place.param));
        places.push((place.param, place.part == StatePart::Second, place.offset, values.len() / 4));
        Ok(())
    });
    visit.expect("visits");
    assert!(places.is_sorted());
    for (param, len) in [(0, 100), (2, 30)] {
        for second in [false, true] {
            let pieces: Vec<_> = places.iter().filter(|p| (p.0, p.1) == (param, second)).collect();
            let ends = pieces.iter().scan(0, |end, p| Some(std::mem::replace(end, p.2 + p.3)));
            assert!(ends.eq(pieces.iter().map(|p| p.2)), "pieces join without gap");
            assert_eq!(pieces.iter().map(|p| p.3).sum::<usize>(), len);
        }
    }
    assert!(training.adamw.stats().resident_peak <= 2 * 16 * 8);
}

#[test]
fn restoring_reads_nothing_of_the_former_state() {
    // Parameters of a page each, so that no page is left and entered again on the way.
    let mut training = Training::new(&[16; 6], paged(2, 16)).run(3);
    let before = training.adamw.stats().bytes_fetched;
    let restore = training.adamw.restore(9, &mut |_, values| {
        values.chunks_exact_mut(4).for_each(|it| it.copy_from_slice(&0.5f32.to_le_bytes()));
        Ok(())
    });
    restore.expect("restores");
    assert_eq!(training.adamw.stats().bytes_fetched, before);
    assert_eq!(training.adamw.steps(), 9);
    let state = training.adamw.export().expect("exports");
    assert!(state.params.iter().all(|p| p.m.iter().chain(&p.v).all(|&x| x == 0.5)));
}

#[test]
fn a_failing_reader_leaves_an_optimizer_that_refuses_to_work() {
    let mut training = Training::new(&[50], paged(1, 16)).run(1);
    let good = training.adamw.export().expect("exports");
    let error = training.adamw.restore(1, &mut |place, _| {
        if place.offset == 32 { Err(io::Error::other("truncated")) } else { Ok(()) }
    });
    let error = error.expect_err("the reader failed").to_string();
    assert!(error.contains("first moment of parameter \"p0\" at element 32: truncated"), "{error}");
    assert!(matches!(training.step(), Err(Error::Broken { reason }) if reason.contains("truncated")));
    assert!(matches!(training.adamw.export(), Err(Error::Broken { .. })));
    training.adamw.import(&good).expect("a good checkpoint repairs it");
    training.step().expect("works again");
}

#[test]
fn a_failing_writer_changes_nothing() {
    let whole = Training::new(&[50], in_memory()).run(3);
    let mut training = Training::new(&[50], paged(1, 16)).run(2);
    let visit = training.adamw.visit_state(&mut |_, _| Err(io::Error::other("disk full")));
    assert!(matches!(visit, Err(Error::Transfer { .. })));
    assert_eq!(whole.bits(), training.run(1).bits());
}

#[test]
fn a_checkpoint_of_another_setup_is_refused_whole() {
    let lens = [5, 6];
    let mut training = Training::new(&lens, Budget::default()).run(1);
    let good = training.adamw.export().expect("exports");
    let mut fewer = good.clone();
    fewer.params.pop();
    let mut renamed = good.clone();
    renamed.params[1].name = "other".into();
    let mut shorter = good.clone();
    shorter.params[1].v.pop();
    for (state, words) in [
        (fewer, "the checkpoint has 1 parameters"),
        (renamed, "parameter 1 is \"other\", expected \"p1\""),
        (shorter, "second moment of parameter \"p1\" has 5 elements, expected 6"),
    ] {
        let error = training.adamw.import(&state).expect_err("must be refused").to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(training.adamw.export().expect("untouched"), good);
}
