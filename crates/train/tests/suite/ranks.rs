//! Two ranks, played by two threads.

use crate::common::{assert_near, config, model, nothing_beside, optim, rows, values};
use halfbyte_data::BatchConfig;
use halfbyte_tensor::Tensor;
use halfbyte_train::{Checkpoints, Event, Length, Ranks, Result, Run, RunConfig, Saving};
use std::{
    path::Path,
    sync::{Barrier, Mutex},
    thread,
};

/// Where the ranks lay their tensors down for each other.
struct Table {
    places: Vec<Mutex<Vec<Tensor>>>,
    all_there: Barrier,
    all_read: Barrier,
}

struct Seat<'a> {
    table: &'a Table,
    rank: usize,
}

impl Ranks for Seat<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.table.places.len()
    }

    fn all_reduce(&self, tensors: &mut [Tensor]) -> Result<()> {
        *self.table.places[self.rank].lock().unwrap() = tensors.to_vec();
        self.table.all_there.wait();
        // In the order of the ranks on every rank, so that all have the same bits.
        for (at, tensor) in tensors.iter_mut().enumerate() {
            let mut sum = self.table.places[0].lock().unwrap()[at].clone();
            for place in &self.table.places[1..] {
                sum.add_assign(&place.lock().unwrap()[at]);
            }
            *tensor = sum.into_unique();
        }
        self.table.all_read.wait();
        self.table.places[self.rank].lock().unwrap().clear();
        Ok(())
    }
}

/// Losses and parameters of a run of two passes, and the checkpoints it left.
fn train(ranks: &dyn Ranks, accumulation: usize, folder: &Path) -> (Vec<f32>, Vec<Vec<f32>>) {
    // Five batches a pass: with four a step the second step has one, and a rank has nothing to do.
    let batches = BatchConfig { batch_size: 2, shuffle: Some(1), ..config().batches };
    let config = RunConfig { batches, length: Length { accumulation, epochs: 2.0, max_steps: None }, ..config() };
    let (model, data, mut losses) = (model(), rows(10), Vec::new());
    let mut optim = optim(model.as_ref());
    let mut listen = |event: &Event<'_>| {
        if let Event::Step(it) = event {
            losses.push(it.loss);
        }
        Ok(())
    };
    let checkpoints = Checkpoints::new(folder);
    let mut run = Run::new(config, (model.as_ref(), None), &mut optim, &data);
    run.ranks = ranks;
    let mut beside = nothing_beside;
    let (every, keep, notes) = (1, 9, serde_json::Map::new());
    run.saving = Some(Saving { checkpoints: &checkpoints, every, keep, best: false, notes, beside: &mut beside });
    run.observers.push(&mut listen);
    run.train(None).unwrap();
    (losses, values(model.as_ref()))
}

#[test]
fn two_ranks_give_what_one_gives_with_the_whole_batch() {
    let folder = || tempfile::tempdir().unwrap();
    let (alone, first, second) = (folder(), folder(), folder());
    let expected = train(&halfbyte_train::Alone, 4, alone.path());
    assert_eq!(expected.0.len(), 4);
    let places = (0..2).map(|_| Mutex::default()).collect();
    let table = Table { places, all_there: Barrier::new(2), all_read: Barrier::new(2) };
    let (a, b) = thread::scope(|scope| {
        let other = scope.spawn(|| train(&Seat { table: &table, rank: 1 }, 2, second.path()));
        (train(&Seat { table: &table, rank: 0 }, 2, first.path()), other.join().unwrap())
    });
    assert_eq!(a, b, "the ranks agree to the bit");
    // The sums have another order: an error of some 1e-7 of a gradient's largest number. AdamW divides gradients by their size, so
    // that each of four steps at 1e-3 passes on what it gets: 4e-10, except where a gradient is no larger than its own error, and
    // then a step of full length may differ. No number of this model is smaller than 1e-2.
    assert_near(&[a.0], &[expected.0], 1e-5);
    assert_near(&a.1, &expected.1, 1e-4);
    let saved = |folder: &Path| Checkpoints::new(folder).all().unwrap().len();
    assert_eq!((saved(first.path()), saved(second.path())), (4, 0), "only rank 0 writes");
}
