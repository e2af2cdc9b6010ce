//! Rows of a table by token id.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::product;
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{DType, Error, Tensor, with_float};

/// Row `ids[i]` of `weight (vocab, channels)` for every `i`: `(ids.len(), channels)`, rounded to `dtype`.
///
/// The gradient of the table is f32 and dense. Fails if an id is out of range or the table is no matrix.
pub fn embedding(tape: &Tape<'_>, weight: &Var, ids: &[u32], dtype: DType) -> Result<Var> {
    let (vocab, channels) = product::check_matrix("embedding", weight.value())?;
    if !dtype.is_float() {
        return Err(Error::DType { op: "embedding", expected: "f32, bf16 or f16 as output", got: dtype }.into());
    }
    if let Some((at, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
        let message = format!(
            "token id {id} at position {at} is outside the vocabulary of {vocab}; tokenizer and model must belong together"
        );
        return Err(Error::invalid("embedding", message).into());
    }
    let y = if weight.value().gpu().is_some() {
        cuda::gather(weight.value(), ids, dtype)?
    } else {
        let mut y = Tensor::scratch(&[ids.len(), channels], dtype);
        with_float!(weight.value().dtype(), S, {
            with_float!(dtype, D, cpu::gather(weight.value().data::<S>(), ids, y.data_mut::<D>(), channels))
        });
        y
    };
    let saved = weight.requires_grad().then(|| ids.to_vec());
    Ok(tape.record("embedding", [weight], y, move |dy, _| {
        let ids = saved.expect("the ids are kept when the table trains");
        if dy.gpu().is_some() {
            return Ok([Some(cuda::scatter_add(&dy, &ids, vocab)?)]);
        }
        let mut dw = Tensor::zeros(&[vocab, channels], DType::F32);
        with_float!(dy.dtype(), T, cpu::scatter_add(dy.data::<T>(), &ids, dw.data_mut(), channels));
        Ok([Some(dw)])
    }))
}
