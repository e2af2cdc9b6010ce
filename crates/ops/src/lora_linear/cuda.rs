//! The same on a GPU: a product for the base, two thin ones for the update, the second added to the first.

use super::cpu::{Saved, SavedLowRank};
use super::{Layer, LowRank};
use crate::{
    dropout,
    gpu_product::cuda::{Operand, add_bias, column_sums, decode, multiply, product},
};
use halfbyte_autograd::{Result, Var};
use halfbyte_tensor::{DType, Tensor};

/// The outputs of all layers, and the projections `s drop(x) Aᵀ` of those that have an update.
pub(super) fn forward(x: &Tensor, layers: &[Layer<'_, '_>]) -> Result<(Vec<Tensor>, Vec<Option<Tensor>>)> {
    let (mut ys, mut hs) = (Vec::new(), Vec::new());
    for layer in layers {
        let mut y = match layer.w.forward(x) {
            Some(y) => y?.to_dtype(x.dtype()).into_unique(),
            None => {
                let w = decode(layer.w, x.dtype())?;
                product(1.0, Operand::new(x), Operand::new(&w).t(), x.dtype())?
            }
        };
        let h = layer.lora.as_ref().map(|lora| project(x, lora)).transpose()?;
        if let (Some(h), Some(lora)) = (&h, &layer.lora) {
            let b = lora.b.value().to_dtype(x.dtype());
            multiply(1.0, Operand::new(h), Operand::new(&b).t(), 1.0, &mut y)?;
        }
        add_bias(&mut y, layer.bias.map(Var::value))?;
        ys.push(y);
        hs.push(h);
    }
    Ok((ys, hs))
}

fn project(x: &Tensor, lora: &LowRank<'_>) -> Result<Tensor> {
    let dropped = dropout::apply(x, lora.dropout)?;
    let a = lora.a.value().to_dtype(x.dtype());
    Ok(product(lora.scaling, Operand::new(&dropped), Operand::new(&a).t(), x.dtype())?)
}

/// The gradient of the input, summed over layers, and for every layer those of A, B and the bias; each if wanted.
pub(super) fn backward(
    all: &[Saved<'_>],
    x: Option<&Tensor>,
    dys: &[Option<Tensor>],
    needs: &[bool],
) -> Result<Vec<Option<Tensor>>> {
    let mut dx: Option<Tensor> = None;
    let mut of_layers = Vec::new();
    for ((saved, dy), needs_of) in all.iter().zip(dys).zip(needs[1..].chunks(3)) {
        let Some(dy) = dy else {
            of_layers.extend([None, None, None]);
            continue;
        };
        let thin = saved.low_rank.as_ref().map(|it| thin(it, x, dy)).transpose()?;
        let (da, db, dh) = thin.unwrap_or_default();
        if needs[0] {
            add_input_gradient(saved, dy, dh.as_ref(), &mut dx)?;
        }
        let bias = needs_of[2].then(|| column_sums(dy)).transpose()?;
        of_layers.extend([da, db, bias]);
    }
    Ok(std::iter::once(dx).chain(of_layers).collect())
}

/// `dA = dhᵀ drop(x)`, `dB = dyᵀ h`, and `dh = s dy B`.
fn thin(
    saved: &SavedLowRank,
    x: Option<&Tensor>,
    dy: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
    let db = saved.h.as_ref().map(|h| product(1.0, Operand::new(dy).t(), Operand::new(h), DType::F32)).transpose()?;
    let Some(b) = &saved.b else { return Ok((None, db, None)) };
    let b = b.to_dtype(dy.dtype());
    let dh = product(saved.scaling, Operand::new(dy), Operand::new(&b), dy.dtype())?;
    let da = match x.filter(|_| saved.want_da) {
        None => None,
        Some(x) => {
            let dropped = dropout::apply(x, saved.dropout)?;
            Some(product(1.0, Operand::new(&dh).t(), Operand::new(&dropped), DType::F32)?)
        }
    };
    Ok((da, db, Some(dh)))
}

/// Adds `dy W + mask(dh A)`.
fn add_input_gradient(saved: &Saved<'_>, dy: &Tensor, dh: Option<&Tensor>, dx: &mut Option<Tensor>) -> Result<()> {
    let dtype = dy.dtype();
    let w = decode(saved.w, dtype)?;
    let sum = match dx {
        Some(sum) => {
            multiply(1.0, Operand::new(dy), Operand::new(&w), 1.0, sum)?;
            sum
        }
        None => dx.insert(product(1.0, Operand::new(dy), Operand::new(&w), dtype)?),
    };
    let Some((low_rank, dh)) = saved.low_rank.as_ref().zip(dh) else { return Ok(()) };
    let Some(a) = &low_rank.a else { return Ok(()) };
    let a = a.to_dtype(dtype);
    if low_rank.dropout.is_off() {
        multiply(1.0, Operand::new(dh), Operand::new(&a), 1.0, sum)?;
        return Ok(());
    }
    let mut part = product(1.0, Operand::new(dh), Operand::new(&a), dtype)?;
    dropout::apply_in_place(&mut part, low_rank.dropout)?;
    sum.add_assign(&part);
    Ok(())
}
