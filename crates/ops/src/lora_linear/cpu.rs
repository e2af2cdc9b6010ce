use super::{
    Layer, LowRank,
    saved::{Found, Projected, Saved, SavedLayer, SavedLowRank, Thin},
};
use crate::{
    dropout,
    frozen::{self, Epilogue, FEW_ROWS, Side},
    product::{self, Left, Right},
};
use halfbyte_autograd::{Result, Var};
use halfbyte_tensor::{DType, Tensor};
use rayon::prelude::*;

/// The outputs of all layers, and their projections.
pub(super) fn forward(x: &Tensor, layers: &[Layer<'_, '_>]) -> Result<(Vec<Tensor>, Projected)> {
    let left = Left::shared(x);
    let project = |it: &Layer<'_, '_>| it.lora.as_ref().map(|lora| project(&left, lora)).transpose();
    let hs: Vec<Option<Tensor>> = layers.par_iter().map(project).collect::<Result<_>>()?;
    let forward = |(Layer { w, bias, lora, .. }, h): (&Layer<'_, '_>, &Option<Tensor>)| {
        let bias = bias.map(Var::value);
        match lora.as_ref().zip(h.as_ref()) {
            Some((lora, h)) => {
                let own = w.forward(x).transpose()?;
                product::updated_forward(&left, (*w, own), (h, lora.b.value()), bias)
            }
            None => frozen::multiply(&left, *w, Side::Forward, Epilogue { bias, dtype: x.dtype() }),
        }
    };
    // A product of few rows is over before all threads have joined it, so layers run side by side there.
    let ys: Result<Vec<Tensor>> = if x.rows() <= FEW_ROWS {
        layers.par_iter().zip(&hs).map(forward).collect()
    } else {
        layers.iter().zip(&hs).map(forward).collect()
    };
    Ok((ys?, Projected::Each(hs)))
}

/// `s drop(x) Aᵀ`, in the dtype in which products take it: the factor is in it, so that the update joins the base's
/// product as it is.
fn project(x: &Left<'_>, lora: &LowRank<'_>) -> Result<Tensor> {
    let dtype = product::compute_dtype(x.tensor().dtype());
    if lora.dropout.is_off() {
        return product::scaled_forward(lora.scaling, x, lora.a.value(), dtype);
    }
    let dropped = dropout::apply(x.tensor(), lora.dropout)?;
    product::scaled_forward(lora.scaling, &Left::new(&dropped), lora.a.value(), dtype)
}

/// The gradients of A and B of every layer, and that of the input if it is wanted.
pub(super) fn backward(
    saved: &Saved<'_>,
    x: Option<&Tensor>,
    dys: &[Option<Tensor>],
    (wanted, k, dtype): (bool, usize, DType),
) -> Result<Found> {
    let Projected::Each(hs) = &saved.projected else { unreachable!("projected by this half") };
    let lefts: Vec<Option<Left<'_>>> = dys.iter().map(|dy| dy.as_ref().map(Left::shared)).collect();
    let one = |((layer, h), dy): ((&SavedLayer<'_>, &Option<Tensor>), &Option<Left<'_>>)| match (&layer.low_rank, dy) {
        (Some(low_rank), Some(dy)) => low_rank.gradients(x, dy, h.as_ref()),
        _ => Ok((Thin::default(), None)),
    };
    // They are too thin to keep every thread busy one by one, and independent.
    let found: Result<Vec<_>> = saved.layers.par_iter().zip(hs).zip(&lefts).map(one).collect();
    let (thin, dhs): (Vec<_>, Vec<_>) = found?.into_iter().unzip();
    let dx = wanted.then(|| input_gradient(&saved.layers, &lefts, &dhs, (k, dtype))).transpose()?;
    Ok(Found { dx, thin })
}

impl SavedLowRank {
    /// `dB = dyᵀ h`, `dA = dhᵀ drop(x)`, and `dh = s dy B`, `(rows, rank)`.
    fn gradients(&self, x: Option<&Tensor>, dy: &Left<'_>, h: Option<&Tensor>) -> Result<(Thin, Option<Tensor>)> {
        let dtype = dy.tensor().dtype();
        let db = || h.map(|h| product::backward_w(1.0, dy.tensor(), h, dtype)).transpose();
        let towards_a = || {
            let kept = product::compute_dtype(dtype);
            let b = self.b.as_ref();
            let dh = b.map(|b| product::backward_x(self.scaling, dy, Right::Dense(b), kept)).transpose()?;
            let x = x.filter(|_| self.want_da).map(|x| dropout::apply(x, self.dropout)).transpose()?;
            let da = x.zip(dh.as_ref()).map(|(x, dh)| product::backward_w(1.0, dh, &x, dtype)).transpose()?;
            Ok((dh, da))
        };
        let (db, found): (Result<_>, Result<_>) = rayon::join(db, towards_a);
        let (dh, da) = found?;
        Ok((Thin { da, db: db? }, dh))
    }
}

/// The sum over layers of `dy W + mask(dh A)`, for `dx (rows, k)`: one product of all, unless there are masks. What those
/// apply to is summed beforehand.
fn input_gradient(
    all: &[SavedLayer<'_>],
    dys: &[Option<Left<'_>>],
    dhs: &[Option<Tensor>],
    (k, dtype): (usize, DType),
) -> Result<Tensor> {
    let mut masked: Option<Tensor> = None;
    let (mut bases, mut updates) = (Vec::new(), Vec::new());
    for ((saved, dy), dh) in all.iter().zip(dys).zip(dhs) {
        let Some(dy) = dy else { continue };
        bases.push((dy, Right::Frozen(saved.w)));
        let low_rank = saved.low_rank.as_ref().and_then(|it| Some((it, it.a.as_ref()?)));
        let Some(((low_rank, a), dh)) = low_rank.zip(dh.as_ref()) else { continue };
        let update = (Left::new(dh), Right::Dense(a));
        if low_rank.dropout.is_off() {
            updates.push(update);
            continue;
        }
        let mut part = product::backward_x(1.0, &update.0, update.1, dtype)?;
        dropout::apply_in_place(&mut part, low_rank.dropout)?;
        match &mut masked {
            Some(sum) => sum.add_assign(&part),
            None => masked = Some(part),
        }
    }
    let at = dys.iter().flatten().map(Left::tensor).next().expect("an op runs backward where an output has a gradient");
    let accumulate = masked.is_some();
    let dx = masked.unwrap_or_else(|| at.scratch_like(&[at.rows(), k], dtype));
    let updates = updates.iter().map(|(dh, a)| (dh, *a));
    product::sum_backward_x(&bases.into_iter().chain(updates).collect::<Vec<_>>(), accumulate, dx)
}
