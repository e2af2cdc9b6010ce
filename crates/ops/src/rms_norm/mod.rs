//! Root mean square normalisation, rounded where transformers' `LlamaRMSNorm` rounds.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod tests;

use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{DType, Error, Tensor, with_float};

/// `w * round(x / sqrt(mean(x^2) + eps))` over the last extent, in the shape and dtype of `x`; `w` is `(channels)`.
///
/// The mean is taken in f32, the normalised value rounded to the dtype of `x` before it meets the weight. A trainable
/// `w` gets an f32 gradient. Saves `x`, `w` and one number a row; who needs the output later computes it again from `x`.
pub fn rms_norm(tape: &Tape<'_>, x: &Var, w: &Var, eps: f32) -> Result<Var> {
    let (xv, wv) = (x.value().clone(), as_weight("rms_norm", x.value(), w.value())?);
    let (y, rstd) = forward(&xv, &wv, eps)?;
    let again = {
        let (xv, wv) = (xv.clone(), wv.clone());
        move || Ok(forward(&xv, &wv, eps)?.0)
    };
    let y = tape.record("rms_norm", [x, w], y, move |dy, [x, w]| {
        if xv.gpu().is_some() {
            let (dx, dw) = cuda::backward(&xv, &wv, &rstd, &dy, w)?;
            return Ok([x.then_some(dx), dw]);
        }
        let mut dx = Tensor::scratch(xv.shape(), xv.dtype());
        let dw = with_float!(dx.dtype(), T, {
            let saved = cpu::Saved { x: xv.data::<T>(), w: wv.data(), rstd: rstd.data() };
            cpu::backward(&saved, dy.data(), dx.data_mut(), w)
        });
        Ok([x.then_some(dx), w.then(|| Tensor::from_vec(wv.shape(), dw))])
    });
    Ok(y.recomputed_by(again))
}

/// The output, and 1 over each row's root mean square.
fn forward(x: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    if x.gpu().is_some() {
        return Ok(cuda::forward(x, w, eps)?);
    }
    let mut y = Tensor::scratch(x.shape(), x.dtype());
    let mut rstd = Tensor::scratch(&[x.rows()], DType::F32);
    with_float!(y.dtype(), T, cpu::forward::<T>(x.data(), (w.data(), eps), y.data_mut(), rstd.data_mut()));
    Ok((y, rstd))
}

/// The weight of a norm over `x` in f32. Refuses what is not `(channels)` floating-point numbers.
pub(crate) fn as_weight(op: &'static str, x: &Tensor, w: &Tensor) -> Result<Tensor> {
    crate::product::check_float(op, x)?;
    crate::product::check_float(op, w)?;
    if x.shape().is_empty() || x.cols() == 0 {
        return Err(Error::shape(op, "activations of shape (rows, channels)", x.shape()).into());
    }
    if w.shape() != [x.cols()] {
        return Err(Error::shape(op, format!("a weight of shape ({}), one a channel", x.cols()), w.shape()).into());
    }
    Ok(w.to_dtype(DType::F32))
}
