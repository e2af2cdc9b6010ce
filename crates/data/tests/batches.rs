//! Properties of collation, order and resuming.

use halfbyte_data::{BatchConfig, Dataset, Example, IGNORE, Packing, Position, permutation};
use proptest::prelude::*;

fn example() -> impl Strategy<Value = Example> {
    proptest::collection::vec((0u32..9, any::<bool>()), 2..90).prop_map(|tokens| {
        let (ids, mut mask): (Vec<_>, Vec<_>) = tokens.into_iter().unzip();
        mask[1] = true;
        Example { ids, mask }
    })
}

fn examples() -> impl Strategy<Value = Vec<Example>> {
    proptest::collection::vec(example(), 1..40)
}

fn batch_config() -> impl Strategy<Value = BatchConfig> {
    // No example has 90 tokens.
    let packing = prop_oneof![Just(Packing::Off), (90usize..400).prop_map(|max_length| Packing::On { max_length })];
    (1usize..7, proptest::option::of(any::<u64>()), any::<bool>(), packing)
        .prop_map(|(batch_size, shuffle, drop_last, packing)| BatchConfig { batch_size, shuffle, drop_last, packing })
}

proptest! {
    #[test]
    fn a_dataset_gives_back_what_was_put_in(examples in examples()) {
        let dataset = Dataset::from_examples(examples.clone()).unwrap();
        prop_assert_eq!(dataset.len(), examples.len());
        for (row, example) in dataset.rows().zip(&examples) {
            prop_assert_eq!(row.ids, &example.ids[..]);
            let mask: Vec<bool> = (0..row.ids.len()).map(|t| row.trained(t)).collect();
            prop_assert_eq!(&mask, &example.mask);
        }
        prop_assert_eq!(dataset.longest(), examples.iter().map(|it| it.ids.len()).max().unwrap());
        prop_assert!(dataset.bytes() >= 4 * dataset.tokens() + dataset.tokens().div_ceil(8) + 8 * dataset.len());
        prop_assert!(dataset.bytes() <= dataset.tokens() * 33 / 8 + 8 * dataset.len() + 16);
    }

    #[test]
    fn one_pass_holds_every_example_once_and_whole(examples in examples(), config in batch_config()) {
        let config = BatchConfig { drop_last: false, ..config };
        let dataset = Dataset::from_examples(examples.clone()).unwrap();
        let size = dataset.epoch_size(&config).unwrap();
        let mut seen = vec![false; examples.len()];
        for batch in dataset.batches(&config, Position::default()).unwrap().take(size.batches) {
            prop_assert_eq!(batch.lengths.len(), batch.rows.len());
            prop_assert_eq!(batch.tokens, batch.lengths.iter().sum::<usize>());
            prop_assert_eq!((batch.ids.len(), batch.targets.len()), (batch.tokens, batch.tokens));
            prop_assert_eq!(batch.trained, batch.targets.iter().filter(|&&t| t != IGNORE).count());
            prop_assert!(batch.tokens <= size.largest.iter().sum(), "{:?} are not the most", size.largest);
            let mut start = 0;
            for (&row, &length) in batch.rows.iter().zip(&batch.lengths) {
                prop_assert!(!std::mem::replace(&mut seen[row], true), "example {} twice", row);
                let Example { ids, mask } = &examples[row];
                let targets = (1..=length).map(|next| if next < length && mask[next] { ids[next] } else { IGNORE });
                prop_assert_eq!(&batch.ids[start..start + length], &ids[..]);
                prop_assert_eq!(&batch.targets[start..start + length], &targets.collect::<Vec<_>>()[..], "example {}", row);
                start += length;
            }
        }
        prop_assert!(seen.iter().all(|&seen| seen));
        prop_assert_eq!(size.tokens, dataset.tokens());
    }

    #[test]
    fn resuming_anywhere_equals_the_uninterrupted_run(examples in examples(), config in batch_config(), stop in 0usize..60) {
        let dataset = Dataset::from_examples(examples).unwrap();
        prop_assume!(dataset.epoch_size(&config).is_ok());
        let mut whole = dataset.batches(&config, Position::default()).unwrap();
        let mut passed = Vec::new();
        for _ in 0..stop {
            passed.push(whole.next_position());
            whole.next();
        }
        let position = whole.next_position();
        prop_assert_eq!(position.epoch as usize * whole.per_epoch() + position.batch, stop);
        prop_assert!(passed.is_sorted() && passed.iter().all(|p| *p < position));
        let resumed = dataset.batches(&config, position).unwrap();
        for (a, b) in whole.zip(resumed).take(20) {
            prop_assert_eq!(a, b);
        }
    }

    #[test]
    fn file_order_fills_batches_up_to_a_number_of_tokens(examples in examples(), tokens in 0usize..200) {
        let dataset = Dataset::from_examples(examples).unwrap();
        let batches: Vec<_> = dataset.in_order(tokens).collect();
        prop_assert!(batches.iter().flat_map(|batch| &batch.rows).copied().eq(0..dataset.len()));
        prop_assert!(batches.iter().all(|batch| batch.tokens <= tokens || batch.rows.len() == 1));
        prop_assert!(batches.windows(2).all(|two| two[0].tokens + two[1].lengths[0] > tokens), "another would fit");
    }

    #[test]
    fn an_order_is_a_permutation(len in 0usize..400, seed: u64, epoch: u64) {
        let mut order = permutation(len, seed, epoch);
        prop_assert_eq!(&order, &permutation(len, seed, epoch));
        order.sort_unstable();
        prop_assert!(order.into_iter().eq(0..len));
    }
}

fn dataset(rows: usize) -> Dataset {
    let example = |row| Example { ids: vec![row as u32; 2 + row % 3], mask: vec![true; 2 + row % 3] };
    Dataset::from_examples((0..rows).map(example)).unwrap()
}

#[test]
fn without_shuffling_the_order_is_the_file() {
    let config = BatchConfig { batch_size: 3, shuffle: None, drop_last: false, packing: Packing::Off };
    let data = dataset(8);
    let rows: Vec<_> = data.batches(&config, Position::default()).unwrap().take(4).map(|batch| batch.rows).collect();
    assert_eq!(rows, [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7], vec![0, 1, 2]]);
}

#[test]
fn each_epoch_and_each_seed_has_its_own_order() {
    let data = dataset(40);
    let order = |seed, epoch| {
        let config = BatchConfig { batch_size: 40, shuffle: Some(seed), drop_last: true, packing: Packing::Off };
        data.batches(&config, Position { epoch, row: 0, batch: 0 }).unwrap().next().unwrap().rows
    };
    assert_ne!(order(1, 0), order(1, 1));
    assert_ne!(order(1, 0), order(2, 0));
    assert_ne!(order(1, 0), (0..40).collect::<Vec<_>>());
}

#[test]
fn the_end_of_a_pass_is_the_beginning_of_the_next() {
    let data = dataset(8);
    let config = BatchConfig { batch_size: 4, shuffle: Some(3), drop_last: false, packing: Packing::Off };
    let from = |epoch, batch| data.batches(&config, Position { epoch, row: 0, batch }).unwrap();
    assert!(from(0, 2).take(3).eq(from(1, 0).take(3)));
    assert_eq!(from(0, 2).next_position(), Position { epoch: 1, row: 0, batch: 0 });
}

#[test]
fn drop_last_leaves_out_the_short_batch() {
    let config = BatchConfig { batch_size: 3, shuffle: Some(9), drop_last: true, packing: Packing::Off };
    let data = dataset(8);
    assert_eq!(data.epoch_size(&config).unwrap().batches, 2);
    assert!(data.batches(&config, Position::default()).unwrap().take(7).all(|batch| batch.rows.len() == 3));
}

#[test]
fn settings_that_give_no_batch_are_refused() {
    let data = dataset(4);
    let refused = |batch_size, drop_last, batch| {
        let config = BatchConfig { batch_size, shuffle: None, drop_last, packing: Packing::Off };
        data.batches(&config, Position { epoch: 0, row: 0, batch }).unwrap_err().to_string()
    };
    assert!(refused(0, false, 0).contains("at least 1"));
    assert!(refused(5, true, 0).contains("4 examples make no batch of 5"));
    assert!(refused(2, true, 3).contains("was the data file changed"));
    let short = Example { ids: vec![1, 2], mask: vec![true] };
    assert!(Dataset::from_examples([short]).unwrap_err().to_string().contains("2 ids and 1 mask"));
    let untrained = Example { ids: vec![1, 2], mask: vec![true, false] };
    assert!(Dataset::from_examples([untrained]).unwrap_err().to_string().contains("no token that is trained"));
}
