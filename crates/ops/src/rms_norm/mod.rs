//! Root mean square normalisation, rounded where the norms of transformers round.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod tests;

use crate::place::{Cost, fill, on_gpu};
use halfbyte_autograd::{GradientPlace, Result, Tape, Var};
use halfbyte_tensor::{DType, Error, Tensor, with_float};

/// What such a norm does beside dividing by the root mean square.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the weight: 0, or 1 where weights are stored as what they are off 1, as in Gemma.
    pub offset: f32,
    /// Whether the product with the weight alone is rounded, as in Gemma and OLMo 2, and not the normalised value before it, as in LLaMA.
    pub rounds_last: bool,
}

impl From<f32> for RmsNorm {
    /// LLaMA's norm with this epsilon.
    fn from(eps: f32) -> RmsNorm {
        RmsNorm { eps, offset: 0.0, rounds_last: false }
    }
}

/// `(w + offset) * round(x / sqrt(mean(x^2) + eps))` over the last extent, in the shape and dtype of `x`; `w` is `(channels)`. Where the last
/// extent of `x` is several times that long, each of its parts is normalised by itself: the heads of queries and keys.
///
/// The mean is taken in f32, the normalised value rounded to the dtype of `x` before it meets the weight, if `norm` has it so. A trainable
/// `w` gets an f32 gradient. Saves `x`, `w` and one number a row; who needs the output later computes it again from `x`.
pub fn rms_norm(tape: &Tape<'_>, x: &Var, w: &Var, norm: impl Into<RmsNorm>) -> Result<Var> {
    rms_norm_with_room(tape, (x, w), norm.into(), 0)
}

/// [`rms_norm`] whose result has room for so many more columns beside its rows, on a GPU; none where heads are normalised.
pub fn rms_norm_with_room(tape: &Tape<'_>, (x, w): (&Var, &Var), norm: RmsNorm, room: usize) -> Result<Var> {
    check_weight("rms_norm", x.value(), w.value(), true)?;
    let xv = x.value().clone();
    // A GPU reads it in whatever dtype it has.
    let wv = if on_gpu(&xv) { w.value().clone() } else { w.value().to_dtype(DType::F32) };
    let (room, place) = match wv.len() == xv.cols() {
        true => (room, x.claim_gradient_place()),
        false => (0, GradientPlace::default()),
    };
    let [y, rstd] = forward(&xv, &wv, norm, room)?;
    let again = {
        let (xv, wv) = (xv.clone(), wv.clone());
        move || {
            let [y, _] = forward(&xv, &wv, norm, room)?;
            Ok(y)
        }
    };
    let y = tape.record_onto("rms_norm", [x, w], y, move |dy, [x, w], there| {
        let (dx, dw) = Saved { x: &xv, w: &wv, rstd: &rstd, norm, place: &place }.backward(&dy, w, there)?;
        Ok([x.then_some(dx), dw])
    });
    Ok(tape.recomputed(y, again))
}

/// The output, and 1 over each row's root mean square.
fn forward(x: &Tensor, w: &Tensor, norm: RmsNorm, room: usize) -> Result<[Tensor; 2]> {
    let out = [x.scratch_with_room(x.shape(), x.dtype(), room), x.scratch_like(&[x.len() / w.len()], DType::F32)];
    let cost = Cost::of(4, &[x, &out[0]]);
    let host = |[y, rstd]: &mut [Tensor; 2]| {
        with_float!(x.dtype(), T, cpu::forward::<T>(x.data(), (w.data(), norm), y.data_mut(), rstd.data_mut()));
        Ok(())
    };
    fill(x, cost, out, host, |gpu, out| cuda::forward(gpu, (x, w, norm), out))
}

/// What the backward pass reads.
struct Saved<'a> {
    x: &'a Tensor,
    w: &'a Tensor,
    rstd: &'a Tensor,
    norm: RmsNorm,
    place: &'a GradientPlace,
}

impl Saved<'_> {
    /// The gradients of `x`, added to what is `there`, and, if it trains, of `w`.
    fn backward(&self, dy: &Tensor, train: bool, there: Option<Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        let Saved { x, w, rstd, norm, place } = *self;
        let (beside, after) = match there {
            Some(it) if on_gpu(x) && it.dtype() == x.dtype() => (Some(it), None),
            other => (None, other),
        };
        let out = (place.scratch(x), train.then(|| x.scratch_like(w.shape(), DType::F32)));
        let cost = Cost::of(8, &[x, dy, &out.0]);
        let host = |(dx, dw): &mut (Tensor, Option<Tensor>)| {
            let sums = with_float!(x.dtype(), T, {
                let saved = cpu::Saved { x: x.data::<T>(), w: w.data(), rstd: rstd.data(), norm };
                cpu::backward(&saved, dy.data(), dx.data_mut(), train)
            });
            *dw = train.then(|| Tensor::from_vec(w.shape(), sums));
            Ok(())
        };
        let there = beside.as_ref();
        let (dx, dw) =
            fill(x, cost, out, host, |gpu, (dx, dw)| cuda::backward(gpu, self, (dy, there), (dx, dw.as_mut())))?;
        let Some(mut sum) = after else { return Ok((dx, dw)) };
        sum.add_assign(&dx);
        Ok((sum, dw))
    }
}

/// The weight of a norm over `x` in f32, as [`check_weight`] wants it.
pub(crate) fn as_weight(op: &'static str, x: &Tensor, w: &Tensor, in_parts: bool) -> Result<Tensor> {
    check_weight(op, x, w, in_parts)?;
    Ok(w.to_dtype(DType::F32))
}

/// Refuses a weight of a norm over `x` that is not `(channels)` floating-point numbers, or, `in_parts`, as many as one of several equal
/// parts of the channels.
fn check_weight(op: &'static str, x: &Tensor, w: &Tensor, in_parts: bool) -> Result<()> {
    crate::product::check_float(op, x)?;
    crate::product::check_float(op, w)?;
    if x.shape().is_empty() || x.cols() == 0 {
        return Err(Error::shape(op, "activations of shape (rows, channels)", x.shape()).into());
    }
    let channels = if in_parts && !w.is_empty() && x.cols().is_multiple_of(w.len()) { w.len() } else { x.cols() };
    if w.shape() != [channels] {
        return Err(Error::shape(op, format!("a weight of shape ({}), one a channel", x.cols()), w.shape()).into());
    }
    Ok(())
}
