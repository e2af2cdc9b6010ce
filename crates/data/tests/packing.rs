//! Properties of packed rows: nothing is cut, lost or doubled, rows are full, and seed and epoch decide everything.

use std::collections::BTreeMap;

use halfbyte_data::{Batch, BatchConfig, Dataset, Example, Packing, Position};
use proptest::prelude::*;

const ROW: usize = 64;

/// Examples of these lengths, each token of which names its example.
fn dataset(lengths: &[usize]) -> Dataset {
    let example = |(at, &length): (usize, &usize)| Example { ids: vec![at as u32; length], mask: vec![true; length] };
    Dataset::from_examples(lengths.iter().enumerate().map(example)).unwrap()
}

fn config(batch_size: usize, shuffle: Option<u64>) -> BatchConfig {
    BatchConfig { batch_size, shuffle, drop_last: false, packing: Packing::On { max_length: ROW } }
}

fn epoch(dataset: &Dataset, config: &BatchConfig, epoch: u64) -> Vec<Batch> {
    let batches = dataset.batches(config, Position { epoch, row: 0, batch: 0 }).unwrap();
    let per_epoch = batches.per_epoch();
    batches.take(per_epoch).collect()
}

/// The examples of each row of an epoch, one row a batch.
fn rows(dataset: &Dataset, shuffle: Option<u64>, number: u64) -> Vec<Vec<usize>> {
    epoch(dataset, &config(1, shuffle), number).into_iter().map(|batch| batch.rows).collect()
}

/// Rows that first-fit needs for examples in this order.
fn first_fit(lengths: impl IntoIterator<Item = usize>) -> usize {
    let mut left: Vec<usize> = Vec::new();
    for length in lengths {
        match left.iter_mut().find(|left| **left >= length) {
            Some(left) => *left -= length,
            None => left.push(ROW - length),
        }
    }
    left.len()
}

proptest! {
    #[test]
    fn rows_are_full_and_hold_every_example_once(lengths in proptest::collection::vec(2..=ROW, 1..200), seed: Option<u64>) {
        let data = dataset(&lengths);
        let packed = rows(&data, seed, 3);
        let mut all: Vec<usize> = packed.concat();
        all.sort_unstable();
        prop_assert!(all.into_iter().eq(0..lengths.len()), "each once");
        let filled: Vec<usize> = packed.iter().map(|row| row.iter().map(|&it| lengths[it]).sum()).collect();
        prop_assert!(filled.iter().all(|&it| it <= ROW), "{:?}", filled);
        prop_assert!(filled.iter().filter(|&&it| it <= ROW / 2).count() <= 1, "two rows would make one: {:?}", filled);
    }

    #[test]
    fn rows_of_a_batch_follow_each_other_and_each_example_stays_whole(
        lengths in proptest::collection::vec(2..=ROW, 1..100), size in 1usize..5, seed: u64,
    ) {
        let data = dataset(&lengths);
        let one_by_one = rows(&data, Some(seed), 1);
        for (batch, rows) in epoch(&data, &config(size, Some(seed)), 1).iter().zip(one_by_one.chunks(size)) {
            prop_assert_eq!(&batch.rows, &rows.concat());
            let ids: Vec<u32> = batch.rows.iter().flat_map(|&it| vec![it as u32; lengths[it]]).collect();
            prop_assert_eq!(&batch.ids, &ids);
            // All of an example but its first token is predicted.
            prop_assert_eq!(batch.trained, batch.tokens - batch.lengths.len());
        }
    }

    #[test]
    fn every_epoch_has_the_same_rows_by_length(lengths in proptest::collection::vec(2..=ROW, 1..150), seed: u64, number: u64) {
        let data = dataset(&lengths);
        let shapes = |shuffle, number| {
            let mut shapes: Vec<Vec<usize>> = rows(&data, shuffle, number)
                .iter()
                .map(|row| {
                    let mut shape: Vec<usize> = row.iter().map(|&it| lengths[it]).collect();
                    shape.sort_unstable();
                    shape
                })
                .collect();
            shapes.sort();
            shapes
        };
        let expected = shapes(None, 0);
        prop_assert_eq!(&shapes(Some(seed), number), &expected);
        let size = data.epoch_size(&config(3, Some(seed))).unwrap();
        prop_assert_eq!((size.rows, size.batches), (expected.len(), expected.len().div_ceil(3)));
    }

    #[test]
    fn equal_seeds_give_equal_rows(lengths in proptest::collection::vec(2..=ROW, 1..100), seed: u64, number: u64) {
        let data = dataset(&lengths);
        prop_assert_eq!(rows(&data, Some(seed), number), rows(&data.clone(), Some(seed), number));
    }

    #[test]
    fn a_run_may_stop_at_every_position(lengths in proptest::collection::vec(2..=ROW, 1..40), seed: u64, size in 1usize..4) {
        let data = dataset(&lengths);
        let config = config(size, Some(seed));
        let mut whole = data.batches(&config, Position::default()).unwrap();
        for _ in 0..3 * whole.per_epoch() {
            let resumed = data.batches(&config, whole.next_position()).unwrap().next();
            prop_assert_eq!(whole.next(), resumed);
        }
    }
}

type Length = fn(u64) -> usize;

/// No theorem: of the many orders of a set one may happen to suit first-fit. But the kinds of lengths that data has.
#[test]
fn rows_are_at_least_as_full_as_those_of_first_fit() {
    let uniform = |x: u64| 2 + x as usize % (ROW - 1);
    let short = |x: u64| 2 + (x % 8 * (x >> 8) % 8) as usize;
    let long_tail = |x: u64| (2 + 400 / (1 + x % 97) as usize).min(ROW);
    let two_sizes = |x: u64| if x.is_multiple_of(3) { 40 } else { 3 + (x >> 8) as usize % 9 };
    let kinds: [(&str, Length); 4] =
        [("uniform", uniform), ("short", short), ("long tail", long_tail), ("two sizes", two_sizes)];
    for (kind, length) in kinds {
        for seed in 0..200u64 {
            let draws = halfbyte_data::permutation(1 << 16, seed, 0);
            let lengths: Vec<usize> = draws.iter().take(500).map(|&it| length(it as u64)).collect();
            let packed = rows(&dataset(&lengths), Some(seed), 0).len();
            assert!(packed <= first_fit(lengths.iter().copied()), "{kind}, seed {seed}");
            let least = lengths.iter().sum::<usize>().div_ceil(ROW);
            let few_are_long = matches!(kind, "short" | "long tail");
            // A fiftieth more, rounded up to a whole row.
            assert!(packed <= least + least.div_ceil(50) || !few_are_long, "{kind}: {packed} rows for {least}");
        }
    }
}

#[test]
fn best_fit_chooses_the_fullest_row_that_has_room() {
    // 60 and 49 open rows; 10 fits the second only and leaves 5 there, 4 fits both, and the first is fuller by one.
    let data = dataset(&[4, 10, 49, 60]);
    let mut found = rows(&data, Some(1), 0);
    found.sort();
    assert_eq!(found, [vec![2, 1], vec![3, 0]]);
    assert_eq!(rows(&data, None, 0), [vec![0, 3], vec![1, 2]], "file order: by the earliest example of a row");
}

#[test]
fn each_epoch_and_each_seed_has_its_own_rows() {
    let data = dataset(&[16; 40]);
    assert_ne!(rows(&data, Some(1), 0), rows(&data, Some(1), 1));
    assert_ne!(rows(&data, Some(1), 0), rows(&data, Some(2), 0));
    // Where each example fills a row only the order of the rows is left to choose, and it is not that of the examples.
    let data = dataset(&[ROW; 40]);
    let mut places: BTreeMap<usize, usize> = BTreeMap::new();
    for number in 0..40 {
        *places.entry(rows(&data, Some(1), number).concat()[0]).or_default() += 1;
    }
    assert!(places.len() > 20, "{places:?}");
}

#[test]
fn drop_last_leaves_out_other_rows_each_epoch() {
    let data = dataset(&[30; 14]);
    let config = BatchConfig { drop_last: true, ..config(3, Some(5)) };
    let size = data.epoch_size(&config).unwrap();
    assert_eq!((size.rows, size.batches), (7, 2));
    let mut left_out = std::collections::BTreeSet::new();
    for number in 0..100 {
        let taken = epoch(&data, &config, number);
        assert!(taken.iter().all(|batch| batch.rows.len() == 6));
        left_out.extend((0..14).filter(|it| !taken.iter().any(|batch| batch.rows.contains(it))));
    }
    assert_eq!(left_out.len(), 14, "no example is left out for ever");
}

#[test]
fn the_largest_batch_is_that_of_the_fullest_rows() {
    let data = dataset(&[60, 3, 20, 30, 33]);
    // Rows: 60 + 3; 33 + 30; 20.
    assert_eq!(data.epoch_size(&config(2, Some(0))).unwrap().largest.iter().sum::<usize>(), 126);
    let unpacked = BatchConfig { packing: Packing::Off, ..config(2, Some(0)) };
    assert_eq!(data.epoch_size(&unpacked).unwrap().largest, [60, 33]);
}

#[test]
fn an_example_longer_than_a_row_is_refused() {
    let data = dataset(&[ROW, ROW + 1]);
    for error in [
        data.epoch_size(&config(1, None)).unwrap_err(),
        data.batches(&config(1, None), Position::default()).map(|_| ()).unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(error.contains("example 1 has 65 tokens") && error.contains("a row of 64"), "{error}");
    }
    let error = dataset(&[9; 3]).epoch_size(&BatchConfig { drop_last: true, ..config(2, None) }).unwrap_err();
    assert!(error.to_string().contains("1 packed rows make no batch of 2"), "{error}");
}
