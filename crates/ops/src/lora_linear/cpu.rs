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
    let hs = projections(&left, layers)?;
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
    // Side by side, the end of one product is filled with another. What a format computes by itself needs room of its own, so
    // there one follows the other, unless products are over before all threads have joined them.
    let ys: Result<Vec<Tensor>> = if x.rows() <= FEW_ROWS || !layers.iter().any(|it| it.w.multiplies_itself()) {
        layers.par_iter().zip(&hs).map(forward).collect()
    } else {
        layers.iter().zip(&hs).map(forward).collect()
    };
    Ok((ys?, Projected::Each(hs)))
}

/// [`forward`] where nobody reads the outputs: the projections, which the backward pass wants.
pub(super) fn unread(x: &Tensor, layers: &[Layer<'_, '_>]) -> Result<(Vec<Tensor>, Projected)> {
    let hs = projections(&Left::new(x), layers)?;
    Ok((layers.iter().map(|it| it.unread(x)).collect(), Projected::Each(hs)))
}

/// The projections of every layer that has an update.
fn projections(x: &Left<'_>, layers: &[Layer<'_, '_>]) -> Result<Vec<Option<Tensor>>> {
    layers.par_iter().map(|it| it.lora.as_ref().map(|lora| project(x, lora)).transpose()).collect()
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
    let towards = |(layer, dy): (&SavedLayer<'_>, &Option<Left<'_>>)| match (&layer.low_rank, dy) {
        (Some(low_rank), Some(dy)) => low_rank.towards_a(dy),
        _ => Ok(None),
    };
    let dhs: Vec<Option<Tensor>> = saved.layers.par_iter().zip(&lefts).map(towards).collect::<Result<_>>()?;
    let one = |i: usize| match (&saved.layers[i].low_rank, &lefts[i]) {
        (Some(low_rank), Some(dy)) => low_rank.gradients(x, dy.tensor(), hs[i].as_ref(), dhs[i].as_ref()),
        _ => Ok(Thin::default()),
    };
    let thin = || (0..saved.layers.len()).into_par_iter().map(one).collect::<Result<Vec<Thin>>>();
    let dx = || wanted.then(|| input_gradient(&saved.layers, &lefts, &dhs, (k, dtype))).transpose();
    // Thin products cannot keep every thread busy, but what waits for the end of another one. With masks there are copies of `x`,
    // which do not live as long as `dx`.
    let (thin, dx) = if saved.layers.iter().filter_map(|it| it.low_rank.as_ref()).all(|it| it.dropout.is_off()) {
        rayon::join(thin, dx)
    } else {
        (thin(), dx())
    };
    Ok(Found { dx: dx?, thin: thin? })
}

impl SavedLowRank {
    /// `dh = s dy B`, `(rows, rank)`, where a wanted gradient depends on it.
    fn towards_a(&self, dy: &Left<'_>) -> Result<Option<Tensor>> {
        let kept = product::compute_dtype(dy.tensor().dtype());
        self.b.as_ref().map(|b| product::backward_x(self.scaling, dy, Right::Dense(b), kept)).transpose()
    }

    /// `dB = dyᵀ h` and `dA = dhᵀ drop(x)`.
    fn gradients(&self, x: Option<&Tensor>, dy: &Tensor, h: Option<&Tensor>, dh: Option<&Tensor>) -> Result<Thin> {
        let db = || h.map(|h| product::backward_w(1.0, dy, h, dy.dtype())).transpose();
        let da = || {
            let x = x.filter(|_| self.want_da).map(|x| dropout::apply(x, self.dropout)).transpose()?;
            x.zip(dh).map(|(x, dh)| product::backward_w(1.0, dh, &x, dy.dtype())).transpose()
        };
        let (db, da) = rayon::join(db, da);
        Ok(Thin { da: da?, db: db? })
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
