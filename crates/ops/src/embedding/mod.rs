//! Rows of a table by token id.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::{
    ids::Ids,
    place::{Cost, fill},
    product,
};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{DType, Error, Tensor, with_float};

/// Row `ids[i]` of `weight (vocab, channels)` for every `i`: `(ids.len(), channels)`, rounded to `dtype`.
///
/// The gradient of the table is f32 and dense. Fails if an id is out of range or the table is no matrix.
pub fn embedding(tape: &Tape<'_>, weight: &Var, ids: &Ids, dtype: DType) -> Result<Var> {
    let (vocab, channels) = product::check_matrix("embedding", weight.value())?;
    if !dtype.is_float() {
        return Err(Error::DType { op: "embedding", expected: "f32, bf16 or f16 as output", got: dtype }.into());
    }
    if let Some((at, id)) = ids.outside(vocab) {
        let message = format!(
            "token id {id} at position {at} is outside the vocabulary of {vocab}; tokenizer and model must belong together"
        );
        return Err(Error::invalid("embedding", message).into());
    }
    let y = gather(weight.value(), ids, dtype)?;
    let saved = weight.requires_grad().then(|| ids.clone());
    Ok(tape.record("embedding", [weight], y, move |dy, _| {
        let ids = saved.expect("the ids are kept when the table trains");
        Ok([Some(scatter_add(&dy, &ids, (vocab, channels))?)])
    }))
}

fn gather(table: &Tensor, ids: &Ids, dtype: DType) -> Result<Tensor> {
    let channels = table.cols();
    let y = table.scratch_like(&[ids.len(), channels], dtype);
    let cost = Cost::of(0, &[&y, &y]);
    let host = |y: &mut Tensor| {
        with_float!(table.dtype(), S, {
            with_float!(dtype, D, cpu::gather(table.data::<S>(), ids.values(), y.data_mut::<D>(), channels))
        });
        Ok(())
    };
    fill(table, cost, y, host, |gpu, y| cuda::gather(gpu, table, ids, y))
}

fn scatter_add(dy: &Tensor, ids: &Ids, (vocab, channels): (usize, usize)) -> Result<Tensor> {
    let dw = Tensor::zeros_on(&dy.device(), &[vocab, channels], DType::F32);
    let cost = Cost::of(1, &[dy, &dw]);
    let host = |dw: &mut Tensor| {
        with_float!(dy.dtype(), T, cpu::scatter_add(dy.data::<T>(), ids, dw.data_mut(), channels));
        Ok(())
    };
    fill(dy, cost, dw, host, |gpu, dw| cuda::scatter_add(gpu, dy, ids, dw))
}
