//! Layer normalisation with weight and bias, in f32 inside and rounded once, as PyTorch does.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::{
    place::{Cost, fill},
    rms_norm::as_weight,
};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{DType, Tensor, with_float};

/// `w * (x - mean(x)) / sqrt(var(x) + eps) + b` over the last extent, in the shape and dtype of `x`; `w` and `b` are
/// `(channels)`, and the variance is that of the population.
///
/// Trainable `w` and `b` get f32 gradients. Saves `x`, `w`, `b` and two numbers a row; who needs the output later computes
/// it again from `x`.
pub fn layer_norm(tape: &Tape<'_>, x: &Var, w: &Var, b: &Var, eps: f32) -> Result<Var> {
    let (xv, wv) = (x.value().clone(), as_weight("layer_norm", x.value(), w.value(), false)?);
    let bv = as_weight("layer_norm", x.value(), b.value(), false)?;
    let [y, stats] = forward(&xv, &wv, &bv, eps)?;
    let again = {
        let (xv, wv) = (xv.clone(), wv.clone());
        move || {
            let [y, _] = forward(&xv, &wv, &bv, eps)?;
            Ok(y)
        }
    };
    let y = tape.record("layer_norm", [x, w, b], y, move |dy, [x, w, b]| {
        let (dx, affine) = Saved { x: &xv, w: &wv, stats: &stats }.backward(&dy, w || b)?;
        let (dw, db) = affine.map(|[dw, db]| (dw, db)).unzip();
        Ok([x.then_some(dx), dw.filter(|_| w), db.filter(|_| b)])
    });
    Ok(tape.recomputed(y, again))
}

/// The output, and each row's mean and 1 over its standard deviation.
fn forward(x: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Result<[Tensor; 2]> {
    let out = [x.scratch_like(x.shape(), x.dtype()), x.scratch_like(&[x.rows(), 2], DType::F32)];
    let cost = Cost::of(7, &[x, &out[0]]);
    let host = |[y, stats]: &mut [Tensor; 2]| {
        with_float!(x.dtype(), T, {
            let affine = cpu::Affine { w: w.data(), b: b.data(), eps };
            cpu::forward::<T>(x.data(), &affine, y.data_mut(), stats.data_mut());
        });
        Ok(())
    };
    fill(x, cost, out, host, |gpu, out| cuda::forward(gpu, [x, w, b], eps, out))
}

/// What the backward pass reads.
struct Saved<'a> {
    x: &'a Tensor,
    w: &'a Tensor,
    stats: &'a Tensor,
}

/// The gradients of `x` and, where they train, of weight and bias.
type Gradients = (Tensor, Option<[Tensor; 2]>);

impl Saved<'_> {
    fn backward(&self, dy: &Tensor, train: bool) -> Result<Gradients> {
        let Saved { x, w, stats } = *self;
        let sums = || [w, w].map(|it| x.scratch_like(it.shape(), DType::F32));
        let out = (x.scratch_like(x.shape(), x.dtype()), train.then(sums));
        let cost = Cost::of(12, &[x, dy, &out.0]);
        let host = |(dx, affine): &mut Gradients| {
            let sums = with_float!(x.dtype(), T, {
                let saved = cpu::Saved { x: x.data::<T>(), w: w.data(), stats: stats.data() };
                cpu::backward(&saved, dy.data(), dx.data_mut(), train)
            });
            for (gradient, sums) in affine.iter_mut().flatten().zip(sums.chunks(w.len())) {
                gradient.data_mut::<f32>().copy_from_slice(sums);
            }
            Ok(())
        };
        fill(x, cost, out, host, |gpu, (dx, affine)| cuda::backward(gpu, self, dy, (dx, affine.as_mut())))
    }
}
