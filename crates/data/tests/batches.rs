//! Properties of collation, order and resuming.

mod common;

use common::PAD;
use halfbyte_data::{BatchConfig, Dataset, Example, IGNORE, Position, permutation};
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
    (1usize..7, proptest::option::of(any::<u64>()), any::<bool>())
        .prop_map(|(batch_size, shuffle, drop_last)| BatchConfig { batch_size, shuffle, drop_last })
}

proptest! {
    #[test]
    fn a_dataset_gives_back_what_was_put_in(examples in examples()) {
        let dataset = Dataset::from_examples(examples.clone(), PAD).unwrap();
        prop_assert_eq!(dataset.len(), examples.len());
        for (row, example) in dataset.rows().zip(&examples) {
            prop_assert_eq!(row.ids, &example.ids[..]);
            let mask: Vec<bool> = (0..row.ids.len()).map(|t| row.trained(t)).collect();
            prop_assert_eq!(&mask, &example.mask);
        }
        prop_assert!(dataset.bytes() <= dataset.tokens() * 33 / 8 + 8 * dataset.len() + 16);
    }

    #[test]
    fn one_pass_holds_every_token_once_and_padding_is_never_a_target(examples in examples(), config in batch_config()) {
        let config = BatchConfig { drop_last: false, ..config };
        let dataset = Dataset::from_examples(examples.clone(), PAD).unwrap();
        let mut seen = vec![false; examples.len()];
        for batch in dataset.batches(&config, Position::default()).unwrap().take(dataset.batches_per_epoch(&config)) {
            prop_assert_eq!(batch.ids.len(), batch.batch * batch.time);
            prop_assert_eq!(batch.targets.len(), batch.ids.len());
            prop_assert_eq!(batch.time, *batch.lengths.iter().max().unwrap());
            prop_assert_eq!(batch.tokens, batch.lengths.iter().sum::<usize>());
            prop_assert_eq!(batch.trained, batch.targets.iter().filter(|&&t| t != IGNORE).count());
            for (slot, &row) in batch.rows.iter().enumerate() {
                prop_assert!(!std::mem::replace(&mut seen[row], true), "row {} twice", row);
                let Example { ids, mask } = &examples[row];
                let place = slot * batch.time..(slot + 1) * batch.time;
                let (got, targets) = (&batch.ids[place.clone()], &batch.targets[place]);
                prop_assert_eq!(batch.lengths[slot], ids.len());
                prop_assert_eq!(&got[..ids.len()], &ids[..]);
                prop_assert!(got[ids.len()..].iter().all(|&id| id == PAD));
                for (t, &target) in targets.iter().enumerate() {
                    let expected = if t + 1 < ids.len() && mask[t + 1] { ids[t + 1] } else { IGNORE };
                    prop_assert_eq!(target, expected, "row {} position {}", row, t);
                }
            }
        }
        prop_assert!(seen.iter().all(|&seen| seen));
    }

    #[test]
    fn resuming_anywhere_equals_the_uninterrupted_run(examples in examples(), config in batch_config(), stop in 0usize..60) {
        let dataset = Dataset::from_examples(examples, PAD).unwrap();
        prop_assume!(dataset.batches_per_epoch(&config) > 0);
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
    fn an_order_is_a_permutation(len in 0usize..400, seed: u64, epoch: u64) {
        let mut order = permutation(len, seed, epoch);
        prop_assert_eq!(&order, &permutation(len, seed, epoch));
        order.sort_unstable();
        prop_assert!(order.into_iter().eq(0..len));
    }
}

fn dataset(rows: usize) -> Dataset {
    let example = |row| Example { ids: vec![row as u32; 2 + row % 3], mask: vec![true; 2 + row % 3] };
    Dataset::from_examples((0..rows).map(example), PAD).unwrap()
}

#[test]
fn without_shuffling_the_order_is_the_file() {
    let config = BatchConfig { batch_size: 3, shuffle: None, drop_last: false };
    let data = dataset(8);
    let rows: Vec<_> = data.batches(&config, Position::default()).unwrap().take(4).map(|batch| batch.rows).collect();
    assert_eq!(rows, [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7], vec![0, 1, 2]]);
    assert_eq!(data.in_order(5).unwrap().map(|batch| batch.batch).collect::<Vec<_>>(), [5, 3]);
}

#[test]
fn each_epoch_and_each_seed_has_its_own_order() {
    let data = dataset(40);
    let order = |seed, epoch| {
        let config = BatchConfig { batch_size: 40, shuffle: Some(seed), drop_last: true };
        data.batches(&config, Position { epoch, batch: 0 }).unwrap().next().unwrap().rows
    };
    assert_ne!(order(1, 0), order(1, 1));
    assert_ne!(order(1, 0), order(2, 0));
    assert_ne!(order(1, 0), (0..40).collect::<Vec<_>>());
}

#[test]
fn drop_last_leaves_out_the_short_batch() {
    let config = BatchConfig { batch_size: 3, shuffle: Some(9), drop_last: true };
    let data = dataset(8);
    assert_eq!(data.batches_per_epoch(&config), 2);
    assert!(data.batches(&config, Position::default()).unwrap().take(7).all(|batch| batch.batch == 3));
}

#[test]
fn settings_that_give_no_batch_are_refused() {
    let data = dataset(4);
    let refused = |batch_size, drop_last, batch| {
        let config = BatchConfig { batch_size, shuffle: None, drop_last };
        data.batches(&config, Position { epoch: 0, batch }).unwrap_err().to_string()
    };
    assert!(refused(0, false, 0).contains("at least 1"));
    assert!(refused(5, true, 0).contains("4 examples make no batch of 5"));
    assert!(refused(2, true, 3).contains("was the data file changed"));
    let short = Example { ids: vec![1, 2], mask: vec![true] };
    assert!(Dataset::from_examples([short], PAD).unwrap_err().to_string().contains("2 ids and 1 mask"));
    let untrained = Example { ids: vec![1, 2], mask: vec![true, false] };
    assert!(Dataset::from_examples([untrained], PAD).unwrap_err().to_string().contains("no token that is trained"));
}
