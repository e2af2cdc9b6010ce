//! A step on a GPU, or on the CPU in the guise of one.

use crate::common::{Spoiled, adapted, assert_near, config, model_on, one_by_one, rows};
use halfbyte_cuda::Gpu;
use halfbyte_frozen::{Format, Quant};
use halfbyte_lora::Routing;
use halfbyte_models::Model;
use halfbyte_tensor::{DType, Device};
use halfbyte_testkit::cuda::gpu;
use halfbyte_train::{
    Alone, LossScale, Objective, Optim, OptimConfig, Step, StepConfig, StepResult, objective::CausalLm, parameters,
};

fn step<'m>(model: &'m dyn Model, objective: &'m dyn Objective) -> Step<'m> {
    Step { model, routing: &Routing::Base, objective, ranks: &Alone, config: config().step }
}

fn numbers(model: &dyn Model) -> Vec<Vec<f32>> {
    parameters(model, None).iter().map(|it| it.param.value().to_f32_vec()).collect()
}

/// Takes two steps, and gives what the last one showed and the parameters after it.
fn two_steps(device: &Device) -> (StepResult, Vec<Vec<f32>>) {
    let (model, data) = (model_on(device), rows(8));
    let mut optim = Optim::new(device, &parameters(model.as_ref(), None), &OptimConfig::default()).unwrap();
    let (step, mut scale) = (step(model.as_ref(), &CausalLm), LossScale::new(DType::F32));
    step.take(&mut optim, &mut scale, &one_by_one(&data), 1e-3).unwrap();
    let last = step.take(&mut optim, &mut scale, &one_by_one(&data), 1e-3).unwrap();
    (last, numbers(model.as_ref()))
}

#[test]
fn both_devices_take_the_same_steps() {
    let Some(gpu) = gpu() else { return };
    let (here, there) = (two_steps(&Device::Cpu), two_steps(&Device::Cuda(gpu)));
    assert_near(&[vec![there.0.loss, there.0.grad_norm]], &[vec![here.0.loss, here.0.grad_norm]], 1e-5);
    assert_eq!((there.0.tokens, &there.0.nonzero), (here.0.tokens, &here.0.nonzero));
    // AdamW passes an error of 1e-6 of a gradient on to a step of 1e-3; the smallest largest number of a tensor is 1e-2.
    assert_near(&there.1, &here.1, 1e-4);
}

#[test]
fn the_losses_of_micro_batches_are_added_up_on_the_device() {
    let Some(gpu) = gpu() else { return };
    let (model, data) = (model_on(&Device::Cuda(gpu)), rows(4));
    let params: Vec<_> = parameters(model.as_ref(), None).into_iter().map(|it| it.param).collect();
    let (loss, grads) = step(model.as_ref(), &CausalLm).gradients(&params, &one_by_one(&data), (0, 1.0)).unwrap();
    assert!(loss.gpu().is_some() && grads.iter().all(|it| it.gpu().is_some()));
}

#[test]
fn a_step_that_is_no_number_changes_nothing_on_the_device() {
    let Some(gpu) = gpu() else { return };
    let device = Device::Cuda(gpu);
    let (model, data) = (model_on(&device), rows(4));
    let mut optim = Optim::new(&device, &parameters(model.as_ref(), None), &OptimConfig::default()).unwrap();
    let before = numbers(model.as_ref());
    for (loss, gradient, said) in
        [(f32::NAN, 1.0, "the loss is NaN"), (1.0, f32::NAN, "the norm of the gradient is NaN")]
    {
        let spoiled = Spoiled { loss, gradient };
        let mut scale = LossScale::new(DType::F32);
        let error = step(model.as_ref(), &spoiled).take(&mut optim, &mut scale, &one_by_one(&data), 1e-2).unwrap_err();
        assert_eq!(error.to_string(), said);
        assert_eq!((numbers(model.as_ref()), optim.steps()), (before.clone(), 0));
    }
    assert!(numbers(model.as_ref()).iter().flatten().all(|it| it.is_finite()));
}

/// However many micro-batches a step has, the host waits once: for the loss and the norm of the gradient.
#[test]
fn a_step_waits_for_the_device_once() {
    if gpu().is_none() {
        return;
    }
    // One of its own: other tests wait for theirs meanwhile.
    let gpu = Gpu::open(0).unwrap();
    let device = Device::Cuda(gpu.clone());
    const INT8: Format = Format { quant: Quant::Int8, ..Format::DENSE };
    let kinds = [None, Some(&Format::QLORA), Some(&INT8), Some(&Format::DENSE)].map(|it| ("llama-default", it));
    for (fixture, format) in kinds.into_iter().chain([("gpt-neo", Some(&Format::QLORA)), ("gpt-neo", Some(&INT8))]) {
        let (model, adapter) = adapted(fixture, format, (2, 0.25), &device);
        let trained = parameters(model.as_ref(), adapter.as_deref());
        let mut optim = Optim::new(&device, &trained, &OptimConfig::default()).unwrap();
        let (data, mut scale) = (rows(4), LossScale::new(DType::Bf16));
        for (checkpointing, offloading, batches) in
            [(false, false, 1), (false, false, 4), (true, false, 4), (true, true, 4)]
        {
            let config = StepConfig { checkpointing, offloading, compute: DType::Bf16, ..config().step };
            let routing = &adapter.clone().into();
            let step = Step { config, routing, ..step(model.as_ref(), &CausalLm) };
            let before = gpu.counters();
            step.take(&mut optim, &mut scale, &one_by_one(&data)[..batches], 1e-3).unwrap();
            let asked = gpu.counters().since(&before);
            let what = format!("{fixture}, {format:?}, {batches} micro-batches: {asked:?}");
            assert_eq!((asked.synchronisations, asked.downloads), (1, 1), "{what}");
            assert_eq!(asked.copied > 0, offloading, "{what}");
        }
    }
}

/// What QLoRA asks of a device for a batch and a layer: a change that asks for more is seen here, and one that asks for less says so.
#[test]
fn a_step_of_a_4_bit_model_starts_so_many_kernels() {
    if gpu().is_none() {
        return;
    }
    let gpu = Gpu::open(0).unwrap();
    let device = Device::Cuda(gpu.clone());
    let (model, adapter) = adapted("llama-default", Some(&Format::QLORA), (8, 0.0), &device);
    let trained = parameters(model.as_ref(), adapter.as_deref());
    let mut optim = Optim::new(&device, &trained, &OptimConfig::default()).unwrap();
    let (data, mut scale) = (rows(4), LossScale::new(DType::Bf16));
    let mut asked = |how: [bool; 3], rows: &[usize]| {
        let [checkpointing, keeps_cheap, offloading] = how;
        let config = StepConfig { checkpointing, keeps_cheap, offloading, compute: DType::Bf16, ..config().step };
        let routing = &adapter.clone().into();
        let step = Step { config, routing, ..step(model.as_ref(), &CausalLm) };
        let before = gpu.counters();
        step.take(&mut optim, &mut scale, &[data.collate(rows)], 1e-3).unwrap();
        let asked = gpu.counters().since(&before);
        [asked.launches, asked.products, asked.uploads, asked.downloads, asked.synchronisations]
    };
    // The first step brings the table of rotations along, and from the third on the next matrix is known. Up to eight tokens are multiplied
    // from the codes themselves.
    let mut settled = |how, rows: &[usize]| [(); 3].map(|()| asked(how, rows))[2];
    let (kept, recomputed, many) = ([false; 3], [true, false, false], [0, 1, 2, 3]);
    let counted = [settled(kept, &many[..1]), settled(kept, &many), settled(recomputed, &many)];
    assert_eq!(
        counted,
        [[58, 16, 7, 1, 1], [59, 20, 7, 1, 1], [82, 30, 7, 1, 1]],
        "launches, products, uploads, downloads, waits"
    );
    // Where there is memory the last block is not run again; and there is, unless inputs are sent away.
    let roomy = [[false, true, false], [true, true, false], [true, true, true]].map(|how| settled(how, &many)[1]);
    assert_eq!(roomy, [20, 20, 30], "products");
}
