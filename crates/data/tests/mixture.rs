//! Properties of mixtures: exact shares, whole passes over each source, the same bits from any place on.

use std::ops::Range;

use halfbyte_data::{BatchConfig, Dataset, Example, Packing, Position};
use proptest::prelude::*;

/// Sources whose examples are told apart by their number, with weights.
fn sources() -> impl Strategy<Value = Vec<(Vec<usize>, f64)>> {
    proptest::collection::vec((proptest::collection::vec(2usize..30, 1..40), 0.05f64..3.0), 1..4)
}

fn config() -> impl Strategy<Value = BatchConfig> {
    let packing = prop_oneof![Just(Packing::Off), (30usize..90).prop_map(|max_length| Packing::On { max_length })];
    (1usize..7, proptest::option::of(any::<u64>()), any::<bool>(), packing)
        .prop_map(|(batch_size, shuffle, drop_last, packing)| BatchConfig { batch_size, shuffle, drop_last, packing })
}

/// The mixture, and where each source's examples are in it.
fn mixed(sources: &[(Vec<usize>, f64)]) -> (Dataset, Vec<Range<usize>>) {
    let mut first = 0;
    let mut places = Vec::new();
    let mut parts = Vec::new();
    for (lengths, weight) in sources {
        places.push(first..first + lengths.len());
        let example = |(at, length): (usize, &usize)| Example {
            ids: vec![(first + at) as u32; *length],
            mask: vec![true; *length],
        };
        parts.push((Dataset::from_examples(lengths.iter().enumerate().map(example)).unwrap(), *weight));
        first += lengths.len();
    }
    (Dataset::mixed(parts).unwrap(), places)
}

/// A range in which a number is.
fn place(places: &[Range<usize>], example: usize) -> usize {
    places.iter().position(|it| it.contains(&example)).unwrap()
}

proptest! {
    #[test]
    fn each_epoch_takes_the_shares_and_each_source_passes_over_all_its_rows(sources in sources(), config in config()) {
        let config = BatchConfig { drop_last: false, ..config };
        let (data, places) = mixed(&sources);
        let Ok(size) = data.epoch_size(&config) else { return Ok(()) };
        prop_assert_eq!(size.rows, size.shares.iter().map(|it| it.taken).sum::<usize>());
        prop_assert_eq!(size.rows, size.shares.iter().map(|it| it.rows).sum::<usize>());
        let total: f64 = sources.iter().map(|it| it.1).sum();
        for (share, (lengths, weight)) in size.shares.iter().zip(&sources) {
            prop_assert_eq!(share.examples, lengths.len());
            prop_assert!((share.taken as f64 - weight / total * size.rows as f64).abs() < 1.0);
        }
        let epochs = 4;
        let mut seen: Vec<Vec<usize>> = vec![Vec::new(); sources.len()];
        let mut batches = data.batches(&config, Position::default()).unwrap();
        for _ in 0..epochs * size.batches {
            let batch = batches.next().unwrap();
            prop_assert!(batch.tokens <= size.largest.iter().sum::<usize>());
            batch.rows.iter().for_each(|&it| seen[place(&places, it)].push(it));
        }
        if config.packing == Packing::Off {
            for ((seen, place), share) in seen.iter().zip(&places).zip(&size.shares) {
                prop_assert_eq!(seen.len(), epochs * share.taken);
                // Whatever the epochs' borders: all rows once, then all of them again.
                for pass in seen.chunks_exact(share.examples) {
                    let mut pass = pass.to_vec();
                    pass.sort_unstable();
                    prop_assert_eq!(pass, place.clone().collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn a_mixture_goes_on_from_any_place_as_if_it_had_not_stopped(sources in sources(), config in config(), stop in 0usize..60) {
        let (data, _) = mixed(&sources);
        let Ok(mut whole) = data.batches(&config, Position::default()) else { return Ok(()) };
        whole.by_ref().take(stop).for_each(drop);
        let rest = data.batches(&config, whole.next_position()).unwrap();
        prop_assert_eq!(whole.take(20).collect::<Vec<_>>(), rest.take(20).collect::<Vec<_>>());
    }
}

#[test]
fn a_large_source_is_not_seen_twice_before_all_of_it_was_seen() {
    let lengths = |count: usize| vec![4usize; count];
    let (data, places) = mixed(&[(lengths(100), 0.2), (lengths(20), 0.8)]);
    let config = BatchConfig { batch_size: 1, shuffle: Some(7), drop_last: false, packing: Packing::Off };
    let size = data.epoch_size(&config).unwrap();
    assert_eq!(size.shares.iter().map(|it| (it.examples, it.taken)).collect::<Vec<_>>(), [(100, 24), (20, 96)]);
    let rows: Vec<usize> =
        data.batches(&config, Position::default()).unwrap().take(4 * 120).map(|it| it.rows[0]).collect();
    let mut large: Vec<usize> = rows.iter().copied().filter(|it| places[0].contains(it)).collect();
    assert_eq!(large.len(), 96);
    large.sort_unstable();
    large.dedup();
    assert_eq!(large.len(), 96, "four epochs of 24 rows of 100, none of them twice");
    // The order of sources is drawn, and another one in each epoch.
    let turns = |epoch: usize| rows[120 * epoch..][..120].iter().map(|it| place(&places, *it)).collect::<Vec<_>>();
    assert_ne!(turns(0), turns(1));
}

#[test]
fn the_tokens_of_an_epoch_are_those_of_the_rows_that_it_takes() {
    // All rows of a source are as long as each other, so that the sum is exact.
    let (data, _) = mixed(&[(vec![4; 100], 0.2), (vec![10; 20], 0.8), (vec![6; 30], 0.25)]);
    let config = BatchConfig { batch_size: 1, shuffle: Some(7), drop_last: false, packing: Packing::Off };
    let size = data.epoch_size(&config).unwrap();
    let taken: Vec<usize> = size.shares.iter().map(|it| it.taken).collect();
    assert_eq!(taken, [24, 96, 30]);
    assert_eq!(size.tokens, 4 * taken[0] + 10 * taken[1] + 6 * taken[2]);
    let seen: usize = data.batches(&config, Position::default()).unwrap().take(size.batches).map(|it| it.tokens).sum();
    assert_eq!(size.tokens, seen);
}

#[test]
fn sources_of_as_many_rows_are_in_orders_of_their_own() {
    let (data, places) = mixed(&[(vec![4; 20], 1.0), (vec![4; 20], 1.0)]);
    let config = BatchConfig { batch_size: 1, shuffle: Some(7), drop_last: false, packing: Packing::Off };
    let rows: Vec<usize> = data.batches(&config, Position::default()).unwrap().take(40).map(|it| it.rows[0]).collect();
    let order = |at: usize| {
        rows.iter().filter(|it| places[at].contains(it)).map(|it| it - places[at].start).collect::<Vec<_>>()
    };
    assert_eq!((order(0).len(), order(1).len()), (20, 20));
    assert_ne!(order(0), order(1));
}

#[test]
fn what_is_no_mixture_is_refused() {
    let one = || Dataset::from_examples([Example { ids: vec![1, 2], mask: vec![true; 2] }]).unwrap();
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let message = Dataset::mixed(vec![(one(), 1.0), (one(), weight)]).unwrap_err().to_string();
        assert!(message.contains("source 2 has the weight"), "{message}");
    }
    let tiny = Dataset::mixed(vec![(one(), 1e6), (one(), 1e-6)]).unwrap();
    let config = BatchConfig { batch_size: 1, shuffle: None, drop_last: false, packing: Packing::Off };
    let message = tiny.epoch_size(&config).unwrap_err().to_string();
    assert!(message.contains("source 2") && message.contains("larger weight"), "{message}");
}
