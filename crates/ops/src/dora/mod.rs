//! DoRA: every output channel of an adapted weight is scaled to a trained magnitude (Liu et al. 2024,
//! <https://arxiv.org/abs/2402.09353>).
//!
//! `y = m / ‖V‖ * (x Vᵀ) + bias` with `V = W + scaling * B A` and the norm of each of its rows, which counts as a constant
//! in the backward pass (section 4.3 there).

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::{FrozenMatrix, linear::no_bias, product};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{DType, Error, Tensor, with_float};

const OP: &str = "dora_scale";

/// `u (rows, n) * magnitude (n) / norm (n) + bias (n)` in the dtype of `u`.
///
/// The gradient of the magnitude is f32. Fails if the shapes do not fit.
pub fn dora_scale(tape: &Tape<'_>, u: &Var, magnitude: &Var, norm: Vec<f32>, bias: Option<&Var>) -> Result<Var> {
    let n = u.value().cols();
    product::check_float(OP, u.value())?;
    product::check_bias(OP, bias.map(Var::value), n)?;
    if magnitude.value().shape() != [n] || norm.len() != n {
        return Err(Error::shape(
            OP,
            format!("a magnitude and a norm for each of {n} channels"),
            magnitude.value().shape(),
        )
        .into());
    }
    let factor: Vec<f32> = magnitude.value().read_f32()?.iter().zip(&norm).map(|(m, n)| m / n).collect();
    let shift = bias.map(|it| it.value().read_f32()).transpose()?;
    let y = scaled(u.value(), &factor, shift.as_deref())?;
    let saved = magnitude.requires_grad().then(|| u.value().clone());
    let none = no_bias();
    Ok(tape.record(OP, [u, magnitude, bias.unwrap_or(&none)], y, move |dy, [u, m, bias]| {
        let dm = saved.filter(|_| m).map(|u| {
            if u.gpu().is_some() {
                return cuda::magnitude_gradient(&dy, &u, &norm);
            }
            let mut dm = Tensor::zeros(&[n], DType::F32);
            with_float!(dy.dtype(), T, cpu::sum_of_products(dy.data::<T>(), u.data::<T>(), dm.data_mut()));
            dm.data_mut::<f32>().iter_mut().zip(&norm).for_each(|(sum, norm)| *sum /= norm);
            Ok(dm)
        });
        let db = bias.then(|| match dy.gpu() {
            Some(_) => crate::gpu_product::cuda::column_sums(&dy),
            None => Ok(product::backward_bias(&dy)),
        });
        Ok([u.then(|| scaled(&dy, &factor, None)).transpose()?, dm.transpose()?, db.transpose()?])
    }))
}

fn scaled(x: &Tensor, factor: &[f32], shift: Option<&[f32]>) -> halfbyte_tensor::Result<Tensor> {
    if x.gpu().is_some() {
        return cuda::scale_columns(x, factor, shift);
    }
    let mut y = Tensor::scratch(x.shape(), x.dtype());
    with_float!(x.dtype(), T, cpu::scale_columns(x.data::<T>(), factor, shift, y.data_mut::<T>()));
    Ok(y)
}

/// The Euclidean norm of every row of `W + scaling * B A`, in f32; of `W` alone without an update `(a, b, scaling)`.
pub fn row_norms(w: &dyn FrozenMatrix, update: Option<(&Tensor, &Tensor, f32)>) -> Result<Vec<f32>> {
    let (out, inner) = w.dims();
    if w.on_gpu().is_some() {
        return cuda::row_norms(w, update);
    }
    let mut norms = vec![0.0; out];
    let update = update.map(|(a, b, scaling)| (a.to_f32_vec(), b.to_f32_vec(), scaling));
    let update = update.as_ref().map(|(a, b, scaling)| cpu::Update { a, b, scaling: *scaling });
    cpu::row_norms(&*w.source(), inner, update, &mut norms);
    Ok(norms)
}
