use super::cuda;
use crate::place::{Cost, fill};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{DType, Error, Float, Tensor, load_f32, store_f32, with_float};
use rayon::prelude::*;

/// `y[r] = w[r] x[r]` for `x (rows, channels)` and `w (rows, 1)`, f32; then `dx[r] = w[r] dy[r]` and `dw[r] = sum(dy[r] x[r])`.
///
/// # Errors
/// If there is not a weight a row.
pub fn weigh(tape: &Tape<'_>, x: &Var, w: &Var) -> Result<Var> {
    let rows = x.value().rows();
    if w.value().shape() != [rows, 1] || w.value().dtype() != DType::F32 {
        return Err(Error::shape("weigh", format!("f32 weights of shape ({rows}, 1)"), w.value().shape()).into());
    }
    let y = weighed(x.value(), w.value())?;
    let (weights, kept) = (w.value().clone(), x.keep());
    let again = {
        let (weights, kept) = (weights.clone(), kept.clone());
        move || weighed(&kept.clone().value()?, &weights)
    };
    let kept = w.requires_grad().then_some(kept);
    let y = tape.record("weigh", [x, w], y, move |dy, [of_x, _]| {
        let dx = of_x.then(|| weighed(&dy, &weights)).transpose()?;
        let dw = kept.map(|x| dots(&dy, &x.value()?)).transpose()?;
        Ok([dx, dw])
    });
    Ok(tape.recomputed(y, again))
}

fn weighed(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let y = x.scratch_like(x.shape(), x.dtype());
    let host = |y: &mut Tensor| {
        with_float!(x.dtype(), T, scale_rows::<T>(x, w, y));
        Ok(())
    };
    fill(x, Cost::of(1, &[x, &y]), y, host, |gpu, y| cuda::weigh(gpu, [x, w], y))
}

fn scale_rows<T: Float>(x: &Tensor, w: &Tensor, y: &mut Tensor) {
    let channels = x.cols();
    let rows = y.data_mut::<T>().par_chunks_mut(channels).zip(x.data::<T>().par_chunks(channels));
    rows.zip(w.data::<f32>()).for_each(|((y, x), w)| {
        let mut wide = vec![0.0; channels];
        load_f32(x, &mut wide);
        wide.iter_mut().for_each(|it| *it *= w);
        store_f32(&wide, y);
    });
}

/// The product of every row of `dy` with that of `x`, f32 `(rows, 1)`.
fn dots(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let dw = dy.scratch_like(&[dy.rows(), 1], DType::F32);
    let host = |dw: &mut Tensor| {
        with_float!(dy.dtype(), T, dot_rows::<T>(dy, x, dw));
        Ok(())
    };
    fill(dy, Cost::of(2, &[dy, x]), dw, host, |gpu, dw| cuda::dots(gpu, [dy, x], dw))
}

fn dot_rows<T: Float>(dy: &Tensor, x: &Tensor, dw: &mut Tensor) {
    let channels = x.cols();
    let rows = dy.data::<T>().par_chunks(channels).zip(x.data::<T>().par_chunks(channels));
    dw.data_mut::<f32>().par_iter_mut().zip(rows).for_each(|(dw, (dy, x))| {
        let mut wide = [vec![0.0; channels], vec![0.0; channels]];
        [dy, x].into_iter().zip(&mut wide).for_each(|(from, to)| load_f32(from, to));
        *dw = wide[0].iter().zip(&wide[1]).map(|(a, b)| a * b).sum();
    });
}
