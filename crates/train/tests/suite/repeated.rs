//! Steps that are started on a GPU as a whole.

use crate::common::{adapted, config, rows};
use halfbyte_cuda::{Counters, Gpu};
use halfbyte_data::Batch;
use halfbyte_frozen::{Format, Quant};
use halfbyte_tensor::{DType, Device};
use halfbyte_testkit::cuda::gpu;
use halfbyte_train::{Alone, LossScale, Optim, OptimConfig, Step, StepConfig, objective::CausalLm, parameters};
use std::sync::Arc;

/// What some steps asked of a GPU of their own, their losses, and the parameters after them.
struct Trained {
    gpu: Arc<Gpu>,
    asked: Vec<Counters>,
    losses: Vec<u32>,
    parameters: Vec<Vec<f32>>,
}

/// Trains a model in a format, with an adapter of some dropout, a step for each of the groups of batches.
fn train(format: Option<&'static Format>, dropout: f32, step: StepConfig, groups: &[Vec<Batch>]) -> Trained {
    let gpu = Gpu::open(0).unwrap();
    let device = Device::Cuda(gpu.clone());
    let (model, adapter) = adapted("llama-default", format, (8, dropout), &device);
    let trained = parameters(model.as_ref(), adapter.as_deref());
    let mut optim = Optim::new(&device, &trained, &OptimConfig::default()).unwrap();
    let mut scale = LossScale::new(step.compute);
    let routing = &adapter.into();
    let step = Step { model: model.as_ref(), routing, objective: &CausalLm, ranks: &Alone, config: step };
    let (mut asked, mut losses) = (Vec::new(), Vec::new());
    for group in groups {
        let before = gpu.counters();
        let done = step.take(&mut optim, &mut scale, group, 1e-3).unwrap();
        asked.push(gpu.counters().since(&before));
        losses.push(done.loss.to_bits());
    }
    let parameters = trained.iter().map(|it| it.param.value().to_f32_vec()).collect();
    Trained { gpu, asked, losses, parameters }
}

fn step(repeating: bool) -> StepConfig {
    StepConfig { compute: DType::Bf16, repeating, ..config().step }
}

/// Groups of one batch each, all of one shape and of different rows.
fn alike(count: usize) -> Vec<Vec<Batch>> {
    let of = |i: usize| {
        let mut batch = rows(4).collate(&[0, 1, 2, 3]);
        batch.ids.iter_mut().enumerate().for_each(|(at, it)| *it = (*it + (i * at) as u32) % 24);
        vec![batch]
    };
    (0..count).map(of).collect()
}

#[test]
fn from_the_fifth_step_of_a_shape_on_it_is_one_launch_with_the_same_bits() {
    if !gpu().is_some_and(|it| it.repeats()) {
        return;
    }
    const INT8: Format = Format { quant: Quant::Int8, ..Format::DENSE };
    for format in [&Format::QLORA, &INT8, &Format::DENSE].map(Some) {
        for checkpointing in [false, true] {
            let step = |repeating| StepConfig { checkpointing, ..step(repeating) };
            let [alone, whole] = [false, true].map(|it| train(format, 0.0, step(it), &alike(8)));
            let what = format!("{format:?}, recomputed: {checkpointing}");
            assert_eq!(whole.losses, alone.losses, "{what}");
            assert_eq!(whole.parameters, alone.parameters, "{what}");
            let graphs: Vec<u64> = whole.asked.iter().map(|it| it.graphs).collect();
            // The first leaves more memory in use than it found: the moments of the parameters.
            // The first guesses nothing of what comes next; three after it ask for the same.
            assert_eq!(graphs, [0, 0, 0, 1, 1, 1, 1, 1], "{what}");
            for it in &whole.asked[4..] {
                // The optimizer's.
                assert_eq!((it.launches, it.products), (2, 0), "{what}: {it:?}");
                assert_eq!((it.synchronisations, it.operations), (1, alone.asked[7].operations), "{what}");
            }
            assert!(alone.asked.iter().all(|it| it.graphs == 0));
            let [here, there] = [&whole, &alone].map(|it| it.gpu.stats());
            assert!(
                here.peak <= there.peak && here.peak_reserved == there.peak_reserved,
                "{what}: {here:?}, {there:?}"
            );
            assert_eq!(whole.gpu.why_not_repeated(), None);
        }
    }
}

#[test]
fn micro_batches_of_different_shapes_are_part_of_a_step_s_shape() {
    if !gpu().is_some_and(|it| it.repeats()) {
        return;
    }
    let data = rows(6);
    let [short, long] = [&[0, 1, 2][..], &[3, 4, 5]].map(|it| data.collate(it));
    let steps: Vec<Vec<Batch>> = (0..12)
        .map(|at| if at % 2 == 0 { vec![short.clone(), long.clone()] } else { vec![long.clone(), long.clone()] })
        .collect();
    let [alone, whole] = [false, true].map(|it| train(Some(&Format::QLORA), 0.0, step(it), &steps));
    assert_eq!((whole.losses, whole.parameters), (alone.losses, alone.parameters));
    let graphs: Vec<u64> = whole.asked.iter().map(|it| it.graphs).collect();
    assert_eq!(graphs[8..], [1; 4], "{graphs:?}");
}

/// A step whose dropout has another seed asks for other kernels, and one of other lengths has another shape.
#[test]
fn what_never_comes_again_is_run_by_itself() {
    if !gpu().is_some_and(|it| it.repeats()) {
        return;
    }
    let data = rows(12);
    let other_lengths: Vec<Vec<Batch>> = (0..6).map(|at| vec![data.collate(&[at, at + 6, at])]).collect();
    for (dropout, groups) in [(0.25, alike(6)), (0.0, other_lengths)] {
        let [alone, whole] = [false, true].map(|it| train(Some(&Format::QLORA), dropout, step(it), &groups));
        assert_eq!((whole.losses, whole.parameters), (alone.losses, alone.parameters));
        assert!(whole.asked.iter().all(|it| it.graphs == 0));
        assert_eq!(whole.gpu.why_not_repeated(), None);
    }
}

/// What goes on beside the steps does not end it: an evaluation, or a step of another shape, in between.
#[test]
fn a_shape_that_comes_again_after_others_is_still_known() {
    if !gpu().is_some_and(|it| it.repeats()) {
        return;
    }
    let mut steps = alike(6);
    steps.push(vec![rows(5).collate(&[4, 2])]);
    steps.extend(alike(3));
    let [alone, whole] = [false, true].map(|it| train(Some(&Format::QLORA), 0.0, step(it), &steps));
    assert_eq!((whole.losses, whole.parameters), (alone.losses, alone.parameters));
    let graphs: Vec<u64> = whole.asked.iter().map(|it| it.graphs).collect();
    assert_eq!(graphs[4..], [1, 1, 0, 1, 1, 1], "{graphs:?}");
}
