//! Layer normalisation with weight and bias, in f32 inside and rounded once, as PyTorch does.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::rms_norm::as_weight;
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{DType, Tensor, with_float};

/// `w * (x - mean(x)) / sqrt(var(x) + eps) + b` over the last extent, in the shape and dtype of `x`; `w` and `b` are
/// `(channels)`, and the variance is that of the population.
///
/// Trainable `w` and `b` get f32 gradients. Saves `x`, `w`, `b` and two numbers a row; who needs the output later computes
/// it again from `x`.
pub fn layer_norm(tape: &Tape<'_>, x: &Var, w: &Var, b: &Var, eps: f32) -> Result<Var> {
    let (xv, wv) = (x.value().clone(), as_weight("layer_norm", x.value(), w.value())?);
    let bv = as_weight("layer_norm", x.value(), b.value())?;
    let (y, stats) = forward(&xv, &wv, &bv, eps)?;
    let again = {
        let (xv, wv) = (xv.clone(), wv.clone());
        move || Ok(forward(&xv, &wv, &bv, eps)?.0)
    };
    let y = tape.record("layer_norm", [x, w, b], y, move |dy, [x, w, b]| {
        if xv.gpu().is_some() {
            let (dx, affine) = cuda::backward(&xv, &wv, &stats, &dy, w || b)?;
            let (dw, db) = affine.unzip();
            return Ok([x.then_some(dx), dw.filter(|_| w), db.filter(|_| b)]);
        }
        let mut dx = Tensor::scratch(xv.shape(), xv.dtype());
        let mut dw = with_float!(dx.dtype(), T, {
            let saved = cpu::Saved { x: xv.data::<T>(), w: wv.data(), stats: stats.data() };
            cpu::backward(&saved, dy.data(), dx.data_mut(), w || b)
        });
        let db = if b { dw.split_off(wv.len()) } else { Vec::new() };
        dw.truncate(wv.len());
        let gradient = |wanted: bool, data| wanted.then(|| Tensor::from_vec::<f32>(wv.shape(), data));
        Ok([x.then_some(dx), gradient(w, dw), gradient(b, db)])
    });
    Ok(y.recomputed_by(again))
}

/// The output, and each row's mean and 1 over its standard deviation.
fn forward(x: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    if x.gpu().is_some() {
        return Ok(cuda::forward(x, w, b, eps)?);
    }
    let mut y = Tensor::scratch(x.shape(), x.dtype());
    let mut stats = Tensor::scratch(&[x.rows(), 2], DType::F32);
    with_float!(y.dtype(), T, {
        let affine = cpu::Affine { w: w.data(), b: b.data(), eps };
        cpu::forward::<T>(x.data(), &affine, y.data_mut(), stats.data_mut());
    });
    Ok((y, stats))
}
