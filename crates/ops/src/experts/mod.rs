//! Mixtures of experts: every token goes through the few MLPs that a router chooses for it, and what comes out is summed by the
//! router's weights.
//!
//! Tokens are sorted by expert, so that an expert's product is one of contiguous rows: [`route`] chooses, [`to_experts`] hands each
//! expert its rows, [`weigh`] multiplies rows with their weights, and [`from_experts`] adds up what each token is due. Between them
//! stand the ordinary products. Sums run over experts in their order, whatever the number of threads.
//!
//! With router logits `l (tokens, experts)`, `p = softmax(l)` and the `each` largest of a row chosen, the weights are `w = p`, or
//! `w = p / s` with `s` the sum of the chosen ones, which is the softmax of those alone. Backward, `dl = w (dw - sum(dw w))` there and
//! nothing elsewhere; or with `dw` zero elsewhere `dl = p (dw - sum(dw p))`. To that comes what the slope of a [`Balance`] makes of `p`.
//! (By way of `dp`, experts that were not chosen would get what rounding leaves of zero, and AdamW would make steps of it.)

mod balance;
mod choose;
mod cuda;
mod pieces;
mod routes;
mod rows;
#[cfg(test)]
mod tests;
mod weigh;

pub use balance::Balance;
pub use pieces::pieces;
pub use routes::Routes;
pub use rows::{from_experts, to_experts};
pub use weigh::weigh;

use crate::place::Cost;
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_cuda::Gpu;
use halfbyte_tensor::{DType, Device, Error, Place, Tensor, cuda as device};
use std::sync::Arc;

/// How a router chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Experts that a token goes through.
    pub each: usize,
    /// Whether the weights of a token are divided by their sum.
    pub normalised: bool,
}

/// The experts of every token, and for each expert that has tokens the weights of its rows, f32 `(rows, 1)`, from router logits
/// `(tokens, experts)`. A balance is told what was chosen, and its slope joins the logits' gradient.
///
/// Choosing is the host's work on any device. In a dry run, where nothing can be chosen, one expert gets all tokens and the others
/// share the rest: no run holds more at a time.
///
/// # Errors
/// If a token is to have more experts than there are, or none; or the logits are no matrix of floating-point numbers.
pub fn route(
    tape: &Tape<'_>,
    logits: &Var,
    choice: Choice,
    balance: Option<&Arc<Balance>>,
) -> Result<(Routes, Vec<Var>)> {
    let value = logits.value();
    let (tokens, experts) = crate::product::check_matrix("route", value)?;
    if choice.each == 0 || choice.each > experts {
        let message = format!("{} of {experts} experts for each token", choice.each);
        return Err(Error::invalid("route", message).into());
    }
    if is_dry(value) {
        return dry(tape, logits, choice);
    }
    let probabilities = choose::softmax(&value.read_f32()?, experts);
    let (routes, weights) = choose::sorted(&probabilities, (tokens, experts), choice);
    if let Some(balance) = balance {
        balance.enter(&probabilities, &routes);
    }
    let of_expert = |e: usize| {
        let own = &weights[routes.range(e)];
        on(value, &[own.len(), 1], own)
    };
    let ys = routes.busy().map(of_expert).collect::<halfbyte_tensor::Result<Vec<_>>>()?;
    let probabilities = Tensor::from_vec(&[tokens, experts], probabilities);
    let (balance, own, dtype) = (balance.cloned(), routes.clone(), value.dtype());
    let ys = tape.record_many("route", &[logits], ys, move |dys, _| {
        let dw = gathered(&dys, &own)?;
        let slope = balance.as_ref().and_then(|it| it.slope());
        let dl = choose::backward(probabilities.data(), &dw, slope.as_deref(), (&own, choice));
        let device = dys.iter().flatten().next().map_or(Device::Cpu, Tensor::device);
        Ok(vec![Some(Tensor::from_vec(&[tokens, experts], dl).to_device(&device)?.to_dtype(dtype))])
    });
    Ok((routes, ys))
}

/// Numbers where `at` lies.
fn on(at: &Tensor, shape: &[usize], values: &[f32]) -> halfbyte_tensor::Result<Tensor> {
    match at.place() {
        Place::Gpu(gpu) => device::upload_f32(gpu, shape, values),
        _ => Ok(Tensor::from_vec(shape, values.to_vec())),
    }
}

/// The gradients of all weights in host memory, in the order of the rows; zero where an expert's output is of no consequence.
fn gathered(dys: &[Option<Tensor>], routes: &Routes) -> Result<Vec<f32>> {
    let Some(like) = dys.iter().flatten().next() else { unreachable!("route: some output has a gradient") };
    let mut all = Tensor::zeros_on(&like.device(), &[routes.rows(), 1], DType::F32);
    if let Place::Gpu(_) = like.place() {
        // So that the host waits once.
        for (e, dy) in routes.busy().zip(dys) {
            let Some(dy) = dy else { continue };
            device::copy_rows(&mut all, routes.range(e).start, dy, 0, dy.rows())?;
        }
        return Ok(all.read_f32()?);
    }
    for (e, dy) in routes.busy().zip(dys) {
        let Some(dy) = dy else { continue };
        all.data_mut::<f32>()[routes.range(e)].copy_from_slice(dy.data());
    }
    Ok(all.read_f32()?)
}

/// Whether there is nothing to choose by.
fn is_dry(at: &Tensor) -> bool {
    match at.place() {
        Place::Host => false,
        Place::Gpu(gpu) => Gpu::is_dry(gpu),
        Place::Dry(_) => true,
    }
}

fn dry(tape: &Tape<'_>, logits: &Var, choice: Choice) -> Result<(Routes, Vec<Var>)> {
    let value = logits.value();
    let (tokens, experts) = (value.rows(), value.cols());
    let routes = Routes::dry(tokens, experts, choice.each);
    let ys: Vec<Tensor> = routes.busy().map(|e| value.scratch_like(&[routes.range(e).len(), 1], DType::F32)).collect();
    let probabilities = value.scratch_like(&[tokens, experts], DType::F32);
    let cost = Cost::of(6, &[&probabilities, value]);
    let count = move |at: &Tensor| {
        if let Place::Dry(ledger) = at.place() {
            cost.count(ledger);
        }
    };
    count(value);
    let (shape, dtype) = (value.shape().to_vec(), value.dtype());
    let ys = tape.record_many("route", &[logits], ys, move |_, _| {
        count(&probabilities);
        Ok(vec![Some(probabilities.scratch_like(&shape, dtype))])
    });
    Ok((routes, ys))
}
