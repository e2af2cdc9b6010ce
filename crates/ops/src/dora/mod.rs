//! DoRA: every output channel of an adapted weight is scaled to a trained magnitude (Liu et al. 2024,
//! <https://arxiv.org/abs/2402.09353>).
//!
//! `y = m / ‖V‖ * (x Vᵀ) + bias` with `V = W + scaling * B A` and the norm of each of its rows, which counts as a constant
//! in the backward pass (section 4.3 there).

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::{
    FrozenMatrix, frozen,
    gpu_product::{Operand, multiply},
    linear::no_bias,
    place::{Cost, fill, on_gpu},
    product,
};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{DType, Device, Error, Tensor, with_float};

const OP: &str = "dora_scale";

/// `u (rows, n) * magnitude (n) / norm (n) + bias (n)` in the dtype of `u`; `norm` is f32, as [`row_norms`] gives it.
///
/// The gradient of the magnitude is f32. Fails if the shapes do not fit.
pub fn dora_scale(tape: &Tape<'_>, u: &Var, magnitude: &Var, norm: &Tensor, bias: Option<&Var>) -> Result<Var> {
    let n = u.value().cols();
    product::check_float(OP, u.value())?;
    product::check_bias(OP, bias.map(Var::value), n)?;
    for given in [magnitude.value(), norm] {
        if given.shape() != [n] || given.dtype() != DType::F32 {
            let expected = format!("an f32 magnitude and norm for each of {n} channels");
            return Err(Error::shape(OP, expected, given.shape()).into());
        }
    }
    let scale = [magnitude.value().clone(), norm.clone()];
    let y = scaled(u.value(), &scale, bias.map(Var::value))?;
    let saved = magnitude.requires_grad().then(|| u.value().clone());
    let none = no_bias();
    Ok(tape.record(OP, [u, magnitude, bias.unwrap_or(&none)], y, move |dy, [u, _, bias]| {
        let dm = saved.map(|u| magnitude_gradient(&dy, &u, &scale[1])).transpose()?;
        let db = bias.then(|| product::bias_gradient(&dy)).transpose()?;
        Ok([u.then(|| scaled(&dy, &scale, None)).transpose()?, dm, db])
    }))
}

/// `x * magnitude / norm + shift`, a factor and perhaps a shift a column.
fn scaled(x: &Tensor, [magnitude, norm]: &[Tensor; 2], shift: Option<&Tensor>) -> Result<Tensor> {
    let y = x.scratch_like(x.shape(), x.dtype());
    let cost = Cost::of(2, &[x, &y]);
    let host = |y: &mut Tensor| {
        let pairs = magnitude.data::<f32>().iter().zip(norm.data::<f32>());
        let factor: Vec<f32> = pairs.map(|(m, n)| m / n).collect();
        let shift = shift.map(Tensor::to_f32_vec);
        with_float!(x.dtype(), T, cpu::scale_columns(x.data::<T>(), &factor, shift.as_deref(), y.data_mut::<T>()));
        Ok(())
    };
    fill(x, cost, y, host, |gpu, y| cuda::scale_columns(gpu, x, [magnitude, norm], shift, y))
}

/// The sums over rows of `dy u / norm`, f32.
fn magnitude_gradient(dy: &Tensor, u: &Tensor, norm: &Tensor) -> Result<Tensor> {
    let dm = dy.scratch_like(norm.shape(), DType::F32);
    let cost = Cost::of(2, &[dy, u]);
    let host = |dm: &mut Tensor| {
        let sums = dm.data_mut::<f32>();
        with_float!(dy.dtype(), T, cpu::sum_of_products(dy.data::<T>(), u.data::<T>(), sums));
        sums.iter_mut().zip(norm.data::<f32>()).for_each(|(sum, norm)| *sum /= norm);
        Ok(())
    };
    fill(dy, cost, dm, host, |gpu, dm| cuda::magnitude_gradient(gpu, dy, u, norm, dm))
}

/// The Euclidean norm of every row of `W + scaling * B A`, f32 `(out_features)` where the matrix is; of `W` alone without an update
/// `(a, b, scaling)`.
///
/// Fails if the device does.
pub fn row_norms(w: &dyn FrozenMatrix, update: Option<(&Tensor, &Tensor, f32)>) -> Result<Tensor> {
    let (out, inner) = w.dims();
    let device = w.on_device().map_or(Device::Cpu, |it| it.device());
    let norms = Tensor::scratch_on(&device, &[out], DType::F32);
    // On a GPU the rows are formed in a workspace, on a CPU one by one.
    let formed = on_gpu(&norms).then(|| formed(w, update)).transpose()?;
    let rank = update.map_or(0, |it| it.0.rows());
    let cost = Cost::new(2 * out * inner * (1 + rank), w.bytes());
    let at = norms.scratch_like(&[0], DType::F32);
    let host = |norms: &mut Tensor| {
        let update = update.map(|(a, b, scaling)| (a.to_f32_vec(), b.to_f32_vec(), scaling));
        let update = update.as_ref().map(|(a, b, scaling)| cpu::Update { a, b, scaling: *scaling });
        cpu::row_norms(&*w.source(), inner, update, norms.data_mut());
        Ok(())
    };
    fill(&at, cost, norms, host, |gpu, norms| {
        let formed = formed.as_ref().expect("formed above on a GPU");
        cuda::row_norms(gpu, formed, norms)
    })
}

/// `W + scaling * B A` in f32, in a workspace.
fn formed(w: &dyn FrozenMatrix, update: Option<(&Tensor, &Tensor, f32)>) -> Result<Tensor> {
    let mut v = frozen::decoded(w, DType::F32)?;
    if let Some((a, b, scaling)) = update {
        v = v.into_unique();
        let (a, b) = (a.to_dtype(DType::F32), b.to_dtype(DType::F32));
        multiply(scaling, Operand::new(&b), Operand::new(&a), 1.0, &mut v)?;
    }
    Ok(v)
}
