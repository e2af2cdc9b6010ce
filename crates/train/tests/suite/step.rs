use crate::common::{Spoiled, assert_near, config, model, one_by_one, optim, rows, values};
use halfbyte_autograd::Param;
use halfbyte_lora::{Context, Routing};
use halfbyte_models::Model;
use halfbyte_tensor::{DType, Tensor};
use halfbyte_train::{
    Alone, Error, LossScale, Objective, Optim, Step, StepConfig, StepResult, evaluate, objective::CausalLm, parameters,
};

fn step<'m>(model: &'m dyn Model, objective: &'m dyn Objective) -> Step<'m> {
    Step { model, routing: &Routing::Base, objective, ranks: &Alone, config: config().step }
}

fn params(model: &dyn Model) -> Vec<Param> {
    parameters(model, None).into_iter().map(|it| it.param).collect()
}

/// Terms are the same, only the order of the sums differs: a few dozen additions in f32.
const ORDER: f32 = 1e-5;

#[test]
fn accumulation_equals_a_large_batch_whatever_the_rows_lengths() {
    let (model, data) = (model(), rows(8));
    let params = params(model.as_ref());
    let step = step(model.as_ref(), &CausalLm);
    let (whole_loss, whole) = step.gradients(&params, &[data.collate(&[0, 1, 2, 3, 4, 5, 6, 7])], (0, 1.0)).unwrap();
    let (parts_loss, parts) = step.gradients(&params, &one_by_one(&data), (0, 1.0)).unwrap();
    let numbers = |all: Vec<Tensor>| all.iter().map(Tensor::to_f32_vec).collect::<Vec<_>>();
    assert_near(&[parts_loss.to_f32_vec()], &[whole_loss.to_f32_vec()], ORDER);
    assert_near(&numbers(parts), &numbers(whole), ORDER);
}

#[test]
fn the_loss_of_a_step_is_the_loss_of_its_rows() {
    let (model, data) = (model(), rows(8));
    let params = params(model.as_ref());
    let step = step(model.as_ref(), &CausalLm);
    let (loss, _) = step.gradients(&params, &one_by_one(&data), (0, 1.0)).unwrap();
    let mut told = Vec::new();
    let found = evaluate((model.as_ref(), &Context::default()), &CausalLm, &data, (2, DType::F32), &mut |done, of| {
        told.push((done, of));
        Ok(())
    });
    let found = found.unwrap();
    assert_near(&[loss.to_f32_vec()], &[vec![found.loss as f32]], ORDER);
    assert_eq!(told, [(4, 8), (6, 8), (8, 8)], "up to twice the seven tokens of the longest at a time");
    assert_eq!(found.tokens, data.rows().map(|it| it.ids.len() - 1).sum::<usize>());
}

#[test]
fn the_loss_scale_multiplies_gradients_and_nothing_else() {
    let (model, data) = (model(), rows(4));
    let params = params(model.as_ref());
    let step = step(model.as_ref(), &CausalLm);
    let (loss, plain) = step.gradients(&params, &one_by_one(&data), (0, 1.0)).unwrap();
    let (same, scaled) = step.gradients(&params, &one_by_one(&data), (0, 1024.0)).unwrap();
    assert_eq!(loss.to_f32_vec(), same.to_f32_vec());
    for (plain, scaled) in plain.iter().zip(&scaled) {
        let plain: Vec<f32> = plain.to_f32_vec().iter().map(|it| it * 1024.0).collect();
        assert_eq!(plain, scaled.to_f32_vec(), "a power of two changes exponents alone");
    }
}

/// Takes a step with an objective that goes wrong, and asserts that it changed nothing.
fn without_effect(objective: &Spoiled, scale: &mut LossScale) -> Result<StepResult, Error> {
    let (model, data) = (model(), rows(4));
    let (mut optim, before) = (optim(model.as_ref()), values(model.as_ref()));
    let done = step(model.as_ref(), objective).take(&mut optim, scale, &one_by_one(&data), 1e-2);
    assert_eq!(values(model.as_ref()), before, "the parameters are as they were");
    assert_eq!((optim.steps(), moments(&mut optim)), (0, 0.0), "and so is the optimizer's state");
    done
}

/// The sum of all bytes of the state.
fn moments(optim: &mut Optim) -> f64 {
    let mut sum = 0.0;
    optim
        .visit_state(&mut |_, bytes| {
            sum += bytes.iter().map(|it| f64::from(*it)).sum::<f64>();
            Ok(())
        })
        .unwrap();
    sum
}

#[test]
fn a_loss_that_is_no_number_changes_nothing_and_is_named() {
    for loss in [f32::NAN, f32::INFINITY] {
        for compute in [DType::F32, DType::F16] {
            let mut scale = LossScale::new(compute);
            let error = without_effect(&Spoiled { loss, gradient: 1.0 }, &mut scale).unwrap_err();
            assert_eq!(error.to_string(), if loss.is_nan() { "the loss is NaN" } else { "the loss is inf" });
            assert_eq!(scale, LossScale::new(compute), "a loss is not scaled, so no scale can help");
        }
    }
}

#[test]
fn a_gradient_that_is_no_number_changes_nothing_and_is_named() {
    let spoiled = Spoiled { loss: 1.0, gradient: f32::NAN };
    let error = without_effect(&spoiled, &mut LossScale::new(DType::F32)).unwrap_err();
    assert_eq!(error.to_string(), "the norm of the gradient is NaN");
}

#[test]
fn a_gradient_that_overflows_halves_the_loss_scale_and_skips_the_step() {
    let spoiled = Spoiled { loss: 1.0, gradient: f32::INFINITY };
    let mut scale = LossScale::new(DType::F16);
    let before = scale.value();
    let done = without_effect(&spoiled, &mut scale).unwrap();
    assert!(done.loss.is_finite() && !done.grad_norm.is_finite());
    assert_eq!(scale.value(), before / 2.0);
}

#[test]
fn clipping_bounds_what_a_step_sees_and_the_norm_is_that_before() {
    let norm_with = |max_grad_norm| {
        let (model, data) = (model(), rows(4));
        let mut optim = optim(model.as_ref());
        let step = Step { config: StepConfig { max_grad_norm, ..config().step }, ..step(model.as_ref(), &CausalLm) };
        let mut scale = LossScale::new(DType::F32);
        let done = step.take(&mut optim, &mut scale, &one_by_one(&data), 1e-3).unwrap();
        let mut first = 0.0;
        let add = &mut |place: halfbyte_paged_optim::StatePlace<'_>, bytes: &[u8]| {
            if place.part == halfbyte_paged_optim::StatePart::First {
                first += bytes.as_chunks().0.iter().map(|it| f64::from(f32::from_le_bytes(*it)).powi(2)).sum::<f64>();
            }
            Ok(())
        };
        optim.visit_state(add).unwrap();
        // The first moment after one step is a tenth of the gradient.
        (done.grad_norm, (first.sqrt() * 10.0) as f32)
    };
    let (norm, seen) = norm_with(0.0);
    assert!((seen / norm - 1.0).abs() < 1e-4, "0 leaves gradients: {seen} {norm}");
    let (before, seen) = norm_with(norm / 2.0);
    assert_eq!(before, norm);
    assert!((seen / norm - 0.5).abs() < 1e-4, "{seen} {norm}");
}

#[test]
fn a_parameter_that_the_model_does_not_use_is_named() {
    let (model, data) = (model(), rows(2));
    let mut params = params(model.as_ref());
    params.push(Param::new("forgotten", Tensor::scalar(1.0)));
    let error = step(model.as_ref(), &CausalLm).gradients(&params, &one_by_one(&data), (0, 1.0)).unwrap_err();
    assert!(error.to_string().starts_with("forgotten got no gradient"), "{error}");
}
