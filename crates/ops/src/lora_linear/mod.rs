//! A frozen product and its low-rank update in one op.
//!
//! The update is summed with the base's product before the output is written, so there is no pass over a second
//! `(rows, out)` array, and only `x` and the `(rows, rank)` projection are kept for the backward pass.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::{
    FrozenMatrix,
    dropout::Dropout,
    linear::no_bias,
    product::{self, Left},
};
use halfbyte_autograd::{Kept, Result, Tape, Var};
use halfbyte_tensor::{Error, Tensor};
use rayon::prelude::*;

const OP: &str = "lora_linear";
/// Up to so many rows, as in generation, layers of one input run at the same time.
const FEW_ROWS: usize = 8;

/// A low-rank update `scaling * B A`, applied to the (perhaps dropped out) input.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// `(rank, in_features)`.
    pub a: &'a Var,
    /// `(out_features, rank)`.
    pub b: &'a Var,
    /// The factor on the update.
    pub scaling: f32,
    /// Dropout on the update's input; the base sees `x` itself.
    pub dropout: Dropout,
}

/// One of several layers with the same input.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a, 'm> {
    /// `(out_features, in_features)`.
    pub w: &'m dyn FrozenMatrix,
    /// `(out_features)`.
    pub bias: Option<&'a Var>,
    /// Its update, if it has one.
    pub lora: Option<LowRank<'a>>,
}

/// `x Wᵀ + bias + scaling * (drop(x) Aᵀ) Bᵀ` for `x (rows, in_features)`: `(rows, out_features)` in the dtype of `x`.
///
/// Gradients of A, B and the bias are f32. Fails if the shapes do not fit or the dropout probability is out of range.
pub fn lora_linear<'m>(
    tape: &Tape<'m>,
    x: &Var,
    w: &'m dyn FrozenMatrix,
    bias: Option<&Var>,
    lora: LowRank<'_>,
) -> Result<Var> {
    let [y] = lora_linears(tape, x, [Layer { w, bias, lora: Some(lora) }])?;
    Ok(y)
}

/// [`lora_linear`] of several layers with the same input, as queries, keys and values have: the input is packed once for
/// all of them, and its gradient is one sum of products.
pub fn lora_linears<'m, const N: usize>(tape: &Tape<'m>, x: &Var, layers: [Layer<'_, 'm>; N]) -> Result<[Var; N]> {
    layers.iter().try_for_each(|it| check(it, x.value()))?;
    let (dtype, shape, k) = (x.value().dtype(), x.value().shape().to_vec(), x.value().cols());
    if x.value().gpu().is_some() {
        let (ys, hs) = cuda::forward(x.value(), &layers)?;
        let saved: Vec<cpu::Saved<'m>> = layers.iter().zip(hs).map(|(it, h)| it.saved(x, h)).collect();
        return recorded(tape, x, &layers, ys, move |x, dys, needs| {
            let mut found = cuda::backward(&saved, x, &dys, needs)?;
            found[0] = found[0].take().map(|it| it.reshape(&shape)).transpose()?;
            Ok(found)
        });
    }
    let left = Left::shared(x.value());
    let project = |it: &Layer<'_, '_>| it.lora.as_ref().map(|lora| cpu::project(&left, lora)).transpose();
    let hs: Vec<Option<Tensor>> = layers.par_iter().map(project).collect::<Result<_>>()?;
    let forward = |(Layer { w, bias, lora }, h): (&Layer<'_, '_>, &Option<Tensor>)| {
        let bias = bias.map(Var::value);
        match lora.as_ref().zip(h.as_ref()) {
            Some((lora, h)) => product::updated_forward(&left, *w, (h, lora.b.value()), bias),
            None => product::frozen_forward(&left, *w, bias),
        }
    };
    // A product of few rows is over before all threads have joined it, so layers run side by side there.
    let ys: Result<Vec<Tensor>> = if x.value().rows() <= FEW_ROWS {
        layers.par_iter().zip(&hs).map(forward).collect()
    } else {
        layers.iter().zip(&hs).map(forward).collect()
    };
    let ys = ys?;
    drop(left);

    let saved: Vec<cpu::Saved<'m>> = layers.iter().zip(hs).map(|(it, h)| it.saved(x, h)).collect();
    recorded(tape, x, &layers, ys, move |x, dys, needs| {
        let lefts: Vec<Option<Left<'_>>> = dys.iter().map(|dy| dy.as_ref().map(Left::shared)).collect();
        let thin = cpu::thin(&saved, x, &lefts)?;
        let dx: Option<Result<Tensor>> =
            needs[0].then(|| Ok(cpu::input_gradient(&saved, &lefts, &thin, (k, dtype))?.reshape(&shape)?));
        let mut found = vec![dx.transpose()?];
        for ((thin, dy), needs) in thin.into_iter().zip(&dys).zip(needs[1..].chunks(3)) {
            let db = dy.as_ref().filter(|_| needs[2]).map(product::backward_bias);
            found.extend([thin.da, thin.db, db]);
        }
        Ok(found)
    })
}

/// Puts the outputs on the tape. `backward` gets the input, where a gradient of an A wants it, the outputs' gradients, and
/// which parents want theirs: the input, then A, B and bias of every layer.
fn recorded<'m, const N: usize>(
    tape: &Tape<'m>,
    x: &Var,
    layers: &[Layer<'_, 'm>; N],
    ys: Vec<Tensor>,
    backward: impl FnOnce(Option<&Tensor>, Vec<Option<Tensor>>, &[bool]) -> Result<Vec<Option<Tensor>>> + 'm,
) -> Result<[Var; N]> {
    let wanted_x = layers.iter().filter_map(|it| it.lora).any(|it| it.a.requires_grad()).then(|| x.keep());
    let none = no_bias();
    let of_layer = |it: &Layer<'_, '_>| -> Vec<Var> {
        let (a, b) = it.lora.map_or((&none, &none), |it| (it.a, it.b));
        [a, b, it.bias.unwrap_or(&none)].map(Var::clone).into()
    };
    let parents: Vec<Var> = std::iter::once(x.clone()).chain(layers.iter().flat_map(of_layer)).collect();
    let parents: Vec<&Var> = parents.iter().collect();
    let name = if layers.iter().any(|it| it.lora.is_some()) { OP } else { "frozen_linear" };
    let ys = tape.record_many(name, &parents, ys, move |dys, needs| {
        let x = wanted_x.map(Kept::value).transpose()?;
        backward(x.as_ref(), dys, needs)
    });
    ys.try_into().map_err(|_| unreachable!("as many outputs as layers"))
}

impl<'m> Layer<'_, 'm> {
    /// What the backward pass needs, with the update's projection `h`.
    fn saved(&self, x: &Var, h: Option<Tensor>) -> cpu::Saved<'m> {
        let low_rank = self.lora.map(|lora| cpu::SavedLowRank {
            h: h.filter(|_| lora.b.requires_grad()),
            a: x.requires_grad().then(|| lora.a.value().clone()),
            b: (x.requires_grad() || lora.a.requires_grad()).then(|| lora.b.value().clone()),
            want_da: lora.a.requires_grad(),
            scaling: lora.scaling,
            dropout: lora.dropout,
        });
        cpu::Saved { w: self.w, low_rank }
    }
}

fn check(layer: &Layer<'_, '_>, x: &Tensor) -> Result<()> {
    let (n, k) = layer.w.dims();
    product::check_input(OP, x, k)?;
    product::check_bias(OP, layer.bias.map(Var::value), n)?;
    let Some(lora) = &layer.lora else { return Ok(()) };
    let (rank, a_cols) = product::check_matrix(OP, lora.a.value())?;
    let (b_rows, b_cols) = product::check_matrix(OP, lora.b.value())?;
    if a_cols != k {
        return Err(Error::shape(OP, format!("A of shape (rank, {k})"), lora.a.value().shape()).into());
    }
    if (b_rows, b_cols) != (n, rank) {
        return Err(Error::shape(OP, format!("B of shape ({n}, {rank})"), lora.b.value().shape()).into());
    }
    lora.dropout.check(OP)
}
