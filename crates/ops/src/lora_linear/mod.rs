//! A frozen product and its low-rank update in one op.
//!
//! The update is summed with the base's product before the output is written, so there is no pass over a second
//! `(rows, out)` array, and only `x` and the `(rows, rank)` projection are kept for the backward pass.

mod cpu;
#[cfg(test)]
mod tests;

use crate::{FrozenMatrix, dropout, dropout::Dropout, linear::no_bias, product};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::Error;

/// A low-rank update `scaling * B A`, applied to the (perhaps dropped out) input.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// `(rank, in_features)`.
    pub a: &'a Var,
    /// `(out_features, rank)`.
    pub b: &'a Var,
    /// The factor on the update.
    pub scaling: f32,
    /// Dropout on the update's input; the base sees `x` itself.
    pub dropout: Dropout,
}

/// `x Wᵀ + bias + scaling * (drop(x) Aᵀ) Bᵀ` for `x (rows, in_features)`: `(rows, out_features)` in the dtype of `x`.
///
/// Gradients of A, B and the bias are f32. Fails if the shapes do not fit or the dropout probability is out of range.
pub fn lora_linear<'m>(
    tape: &Tape<'m>,
    x: &Var,
    w: &'m dyn FrozenMatrix,
    bias: Option<&Var>,
    lora: LowRank<'_>,
) -> Result<Var> {
    const OP: &str = "lora_linear";
    let (n, k) = w.dims();
    product::check_input(OP, x.value(), k)?;
    product::check_bias(OP, bias.map(Var::value), n)?;
    check(&lora, n, k)?;

    let (dtype, shape) = (x.value().dtype(), x.value().shape().to_vec());
    // The projection carries the factor, so that the update is a plain product that joins the base's.
    let h = {
        let dropped = dropout::apply(x.value(), lora.dropout);
        product::scaled_forward(lora.scaling, &dropped, lora.a.value(), product::compute_dtype(dtype))
    };
    let y = product::updated_forward(x.value(), w, (&h, lora.b.value()), bias.map(Var::value))?;

    let saved = cpu::Saved {
        x: lora.a.requires_grad().then(|| x.value().clone()),
        h: lora.b.requires_grad().then_some(h),
        a: x.requires_grad().then(|| lora.a.value().clone()),
        b: (x.requires_grad() || lora.a.requires_grad()).then(|| lora.b.value().clone()),
        scaling: lora.scaling,
        dropout: lora.dropout,
        dtype,
    };
    let none = no_bias();
    let parents = [x, lora.a, lora.b, bias.unwrap_or(&none)];
    Ok(tape.record(OP, parents, y, move |dy, [_, _, _, bias]| {
        let db = bias.then(|| product::backward_bias(&dy));
        let (dx, da, db_low_rank) = cpu::backward(&dy, w, saved);
        Ok([dx.map(|it| it.reshape(&shape)).transpose()?, da, db_low_rank, db])
    }))
}

fn check(lora: &LowRank<'_>, n: usize, k: usize) -> Result<()> {
    let (rank, a_cols) = product::check_matrix("lora_linear", lora.a.value())?;
    let (b_rows, b_cols) = product::check_matrix("lora_linear", lora.b.value())?;
    if a_cols != k {
        return Err(Error::shape("lora_linear", format!("A of shape (rank, {k})"), lora.a.value().shape()).into());
    }
    if (b_rows, b_cols) != (n, rank) {
        return Err(Error::shape("lora_linear", format!("B of shape ({n}, {rank})"), lora.b.value().shape()).into());
    }
    lora.dropout.check("lora_linear")
}
