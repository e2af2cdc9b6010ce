//! Rows on their way to experts and back.

use super::{Routes, cuda};
use crate::place::{Cost, fill};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{DType, Float, Tensor, load_f32, store_f32, with_float};
use rayon::prelude::*;

/// For each expert that has tokens its rows of `x (tokens, channels)`. Keeps nothing; who needs the rows later gathers them again.
///
/// # Errors
/// If `x` holds no floating-point numbers, or a GPU fails.
pub fn to_experts(tape: &Tape<'_>, x: &Var, routes: &Routes) -> Result<Vec<Var>> {
    crate::product::check_float("to_experts", x.value())?;
    assert_eq!(x.value().rows(), routes.tokens(), "the routes are those of these tokens");
    let ys: Vec<Tensor> = routes.busy().map(|e| taken(x.value(), routes, e)).collect::<Result<_>>()?;
    let (own, shape, dtype) = (routes.clone(), x.value().shape().to_vec(), x.value().dtype());
    let kept = x.keep();
    let ys = tape.record_many("to_experts", &[x], ys, move |dys, _| {
        let dys: Vec<Option<&Tensor>> = dys.iter().map(Option::as_ref).collect();
        Ok(vec![Some(summed(&dys, &own, dtype)?.reshape(&shape)?)])
    });
    let again = |(e, y): (usize, Var)| {
        let (kept, routes) = (kept.clone(), routes.clone());
        tape.recomputed(y, move || taken(&kept.clone().value()?, &routes, e))
    };
    Ok(routes.busy().zip(ys).map(again).collect())
}

/// The sum of what each token is due, in f32 and rounded once: `(tokens, channels)` from the rows of each expert that has tokens.
///
/// `idle` are weights of experts that have none, whose gradients are zero.
///
/// # Errors
/// If a GPU fails.
pub fn from_experts(tape: &Tape<'_>, parts: &[Var], routes: &Routes, idle: &[Var]) -> Result<Var> {
    assert_eq!(parts.len(), routes.busy().count(), "a part for every expert that has tokens");
    let values: Vec<Option<&Tensor>> = parts.iter().map(|it| Some(it.value())).collect();
    let Some(dtype) = parts.first().map(|it| it.value().dtype()) else { unreachable!("some expert has tokens") };
    let y = summed(&values, routes, dtype)?;
    let parents: Vec<&Var> = parts.iter().chain(idle).collect();
    let (own, zeros) = (routes.clone(), idle.iter().map(|it| it.value().shape().to_vec()).collect::<Vec<_>>());
    let mut ys = tape.record_many("from_experts", &parents, vec![y], move |mut dys, needs| {
        let Some(Some(dy)) = dys.pop() else { unreachable!("from_experts: one output that has a gradient") };
        let experts: Vec<usize> = own.busy().collect();
        let one = |(i, need): (usize, &bool)| match (need, experts.get(i)) {
            (false, _) => Ok(None),
            (true, Some(e)) => taken(&dy, &own, *e).map(Some),
            (true, None) => Ok(Some(Tensor::zeros_on(&dy.device(), &zeros[i - experts.len()], DType::F32))),
        };
        needs.iter().enumerate().map(one).collect()
    });
    Ok(ys.pop().unwrap_or_else(|| unreachable!("from_experts: one output, one variable")))
}

/// The rows of an expert.
fn taken(x: &Tensor, routes: &Routes, expert: usize) -> Result<Tensor> {
    let (tokens, channels) = (routes.tokens_of(expert), x.cols());
    let y = x.scratch_like(&[tokens.len(), channels], x.dtype());
    let cost = Cost::of(0, &[&y, &y]);
    let host = |y: &mut Tensor| {
        with_float!(x.dtype(), T, {
            let x = x.data::<T>();
            let rows = y.data_mut::<T>().par_chunks_mut(channels).zip(tokens);
            rows.for_each(|(y, token)| y.copy_from_slice(&x[*token as usize * channels..][..channels]));
        });
        Ok(())
    };
    fill(x, cost, y, host, |gpu, y| cuda::take(gpu, x, (routes, expert), y))
}

/// The sum of the rows of each token, in the order of the experts; those of an expert that has no part are zero.
fn summed(parts: &[Option<&Tensor>], routes: &Routes, dtype: DType) -> Result<Tensor> {
    let Some(like) = parts.iter().flatten().next() else { unreachable!("some expert has a part") };
    let y = like.scratch_like(&[routes.tokens(), like.cols()], dtype);
    let read: usize = parts.iter().flatten().map(|it| it.bytes()).sum();
    let cost = Cost::new(routes.rows() * like.cols(), read + y.bytes());
    let host = |y: &mut Tensor| {
        with_float!(like.dtype(), T, sum_rows::<T>(parts, routes, y));
        Ok(())
    };
    fill(like, cost, y, host, |gpu, y| cuda::sum(gpu, parts, routes, y))
}

fn sum_rows<T: Float>(parts: &[Option<&Tensor>], routes: &Routes, y: &mut Tensor) {
    let channels = y.cols();
    // Of every row where it lies.
    let of_row: Vec<Option<&[T]>> = routes
        .busy()
        .zip(parts)
        .flat_map(|(e, part)| {
            let values = part.map(|it| it.data::<T>());
            (0..routes.range(e).len()).map(move |i| values.map(|it| &it[i * channels..][..channels]))
        })
        .collect();
    y.data_mut::<T>().par_chunks_mut(channels).enumerate().for_each(|(token, y)| {
        let (mut sum, mut wide) = (vec![0.0f32; channels], vec![0.0f32; channels]);
        for row in routes.rows_of(token).iter().filter_map(|it| of_row[*it as usize]) {
            load_f32(row, &mut wide);
            sum.iter_mut().zip(&wide).for_each(|(s, v)| *s += v);
        }
        store_f32(&sum, y);
    });
}
