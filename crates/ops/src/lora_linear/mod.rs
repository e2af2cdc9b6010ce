//! A frozen product and its low-rank update in one op.
//!
//! The update is summed with the base's product before the output is written, so there is no pass over a second
//! `(rows, out)` array, and only `x` and the `(rows, rank)` projection are kept for the backward pass.

mod cpu;
mod cuda;
mod few;
mod saved;
mod stack;
#[cfg(test)]
mod tests;
mod thin {
    pub(super) mod cuda;
}

use crate::{FrozenMatrix, add::sum, dropout::Dropout, linear::no_bias, place::on_gpu, product};
use halfbyte_autograd::{GradientPlace, Kept, Result, Tape, Var};
use halfbyte_tensor::{DType, Error, Tensor};
use saved::{Found, Projected, Saved};

const OP: &str = "lora_linear";

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
    /// `(rows, out_features)`, to which the output is added, as to a residual. On a GPU the sum is rounded once.
    pub onto: Option<&'a Var>,
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
    let [y] = lora_linears(tape, x, [Layer { w, bias, lora: Some(lora), onto: None }])?;
    Ok(y)
}

/// [`lora_linear`] of several layers with the same input, as queries, keys and values have: the input is packed once for
/// all of them, and its gradient is one sum of products.
pub fn lora_linears<'m, const N: usize>(tape: &Tape<'m>, x: &Var, layers: [Layer<'_, 'm>; N]) -> Result<[Var; N]> {
    linears(tape, x, layers, false)
}

/// [`lora_linears`] whose outputs are what a checkpoint gives. When that is run again nobody reads them, and the products are left out: what
/// stands in their place is what they would be added to.
pub fn last_lora_linears<'m, const N: usize>(tape: &Tape<'m>, x: &Var, layers: [Layer<'_, 'm>; N]) -> Result<[Var; N]> {
    linears(tape, x, layers, tape.is_replay())
}

fn linears<'m, const N: usize>(tape: &Tape<'m>, x: &Var, layers: [Layer<'_, 'm>; N], unread: bool) -> Result<[Var; N]> {
    layers.iter().try_for_each(|it| check(it, x.value()))?;
    let (dtype, shape, k) = (x.value().dtype(), x.value().shape().to_vec(), x.value().cols());
    let on_gpu = on_gpu(x.value());
    let (ys, hs) = match (on_gpu, unread) {
        (true, true) => cuda::unread(x.value(), &layers)?,
        (true, false) => cuda::forward(x.value(), &layers)?,
        (false, true) => cpu::unread(x.value(), &layers)?,
        (false, false) => on_host(x.value(), &layers)?,
    };
    let (saved, place) = (Saved::of(x, &layers, hs), x.claim_gradient_place());
    recorded(tape, x, &layers, ys, move |x, dys, needs| {
        let Found { dx, thin } = if on_gpu {
            cuda::backward(&saved, x, &dys, needs[0].then_some((&place, k)))?
        } else {
            cpu::backward(&saved, x.as_ref(), &dys, (needs[0], k, dtype))?
        };
        let mut found = vec![dx.map(|it| it.reshape(&shape)).transpose()?];
        for ((thin, dy), needs) in thin.into_iter().zip(&dys).zip(needs[1..].chunks(PARENTS)) {
            let bias = dy.as_ref().filter(|_| needs[2]).map(|it| product::bias_gradient(&it.dense())).transpose()?;
            found.extend([thin.da, thin.db, bias, dy.clone().filter(|_| needs[3])]);
        }
        Ok(found)
    })
}

/// The columns of room beside `x`, or a gradient of its dtype and place, that layers with updates of these ranks have a use for: on a GPU
/// they take both together as one operand.
pub fn room(ranks: impl Iterator<Item = usize>, x: &Tensor) -> usize {
    let all: usize = ranks.sum();
    if on_gpu(x) && x.dtype() != DType::F32 { all.next_multiple_of(ROOM) } else { 0 }
}

/// Rows stay aligned as products want them.
const ROOM: usize = 64;

/// The host's half, which adds afterwards.
fn on_host(x: &Tensor, layers: &[Layer<'_, '_>]) -> Result<(Vec<Tensor>, Projected)> {
    let (ys, hs) = cpu::forward(x, layers)?;
    let onto = layers.iter().map(|it| it.onto);
    let ys = ys.into_iter().zip(onto).map(|(y, onto)| match onto {
        Some(onto) => sum(onto.value(), &y, 1.0),
        None => Ok(y),
    });
    Ok((ys.collect::<Result<_>>()?, hs))
}

/// Of each layer: A, B, bias, and what it is added to.
const PARENTS: usize = 4;

/// Puts the outputs on the tape. `backward` gets the input, where a gradient of an A wants it, the outputs' gradients, and
/// which parents want theirs: the input, then [`PARENTS`] of every layer.
fn recorded<'m, const N: usize>(
    tape: &Tape<'m>,
    x: &Var,
    layers: &[Layer<'_, 'm>; N],
    ys: Vec<Tensor>,
    backward: impl FnOnce(Option<Tensor>, Vec<Option<Tensor>>, &[bool]) -> Result<Vec<Option<Tensor>>> + 'm,
) -> Result<[Var; N]> {
    let wanted_x = layers.iter().filter_map(|it| it.lora).any(|it| it.a.requires_grad()).then(|| x.keep());
    let none = no_bias();
    let of_layer = |it: &Layer<'_, '_>| -> Vec<Var> {
        let (a, b) = it.lora.map_or((&none, &none), |it| (it.a, it.b));
        let parents: [&Var; PARENTS] = [a, b, it.bias.unwrap_or(&none), it.onto.unwrap_or(&none)];
        parents.map(Var::clone).into()
    };
    let parents: Vec<Var> = std::iter::once(x.clone()).chain(layers.iter().flat_map(of_layer)).collect();
    let parents: Vec<&Var> = parents.iter().collect();
    let name = if layers.iter().any(|it| it.lora.is_some()) { OP } else { "frozen_linear" };
    let room = room(layers.iter().filter_map(|it| it.lora).map(|it| it.a.value().rows()), x.value());
    let ys = tape.record_many_in_rows(name, &parents, ys, move |dys, needs| {
        let x = wanted_x.map(Kept::value).transpose()?;
        backward(x, dys, needs)
    });
    let places = match on_gpu(x.value()) && cuda::take_gradients_as_one(x, layers) {
        true => GradientPlace::side_by_side(&layers.each_ref().map(|it| it.w.dims().0), room),
        false => vec![GradientPlace::with_room(room); N],
    };
    let ys: Vec<Var> = ys.into_iter().zip(places).map(|(y, place)| y.wanting(place)).collect();
    ys.try_into().map_err(|_| unreachable!("as many outputs as layers"))
}

fn check(layer: &Layer<'_, '_>, x: &Tensor) -> Result<()> {
    let (n, k) = layer.w.dims();
    product::check_input(OP, x, k)?;
    product::check_bias(OP, layer.bias.map(Var::value), n)?;
    if let Some(onto) = layer.onto.map(Var::value) {
        let fits = onto.dtype() == x.dtype() && (onto.rows(), onto.cols()) == (x.rows(), n);
        let expected = || format!("{} of shape ({}, {n}) to add to", x.dtype(), x.rows());
        fits.then_some(()).ok_or_else(|| Error::shape(OP, expected(), onto.shape()))?;
    }
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
