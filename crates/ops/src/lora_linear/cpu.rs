use super::LowRank;
use crate::{
    FrozenMatrix,
    dropout::{self, Dropout},
    product::{self, Left},
};
use halfbyte_autograd::Result;
use halfbyte_tensor::{DType, Tensor};
use rayon::prelude::*;

/// What the backward pass needs of one layer; an operand is absent where no wanted gradient reads it.
pub(super) struct Saved<'m> {
    pub(super) w: &'m dyn FrozenMatrix,
    pub(super) low_rank: Option<SavedLowRank>,
}

pub(super) struct SavedLowRank {
    /// `s drop(x) Aᵀ`, `(rows, rank)`.
    pub(super) h: Option<Tensor>,
    pub(super) a: Option<Tensor>,
    pub(super) b: Option<Tensor>,
    pub(super) want_da: bool,
    pub(super) scaling: f32,
    pub(super) dropout: Dropout,
}

/// The gradients of A and B, and `dh = s dy B`, `(rows, rank)`.
#[derive(Default)]
pub(super) struct Thin {
    pub(super) da: Option<Tensor>,
    pub(super) db: Option<Tensor>,
    dh: Option<Tensor>,
}

/// `s drop(x) Aᵀ`, in the dtype in which products take it: the factor is in it, so that the update joins the base's
/// product as it is.
pub(super) fn project(x: &Left<'_>, lora: &LowRank<'_>) -> Result<Tensor> {
    let dtype = product::compute_dtype(x.tensor().dtype());
    if lora.dropout.is_off() {
        return Ok(product::scaled_forward(lora.scaling, x, lora.a.value(), dtype));
    }
    let dropped = dropout::apply(x.tensor(), lora.dropout)?;
    Ok(product::scaled_forward(lora.scaling, &Left::new(&dropped), lora.a.value(), dtype))
}

/// The gradients of A and B of every layer. They are too thin to keep every thread busy one by one, and independent.
pub(super) fn thin(all: &[Saved<'_>], x: Option<&Tensor>, dys: &[Option<Left<'_>>]) -> Result<Vec<Thin>> {
    let one = |(saved, dy): (&Saved<'_>, &Option<Left<'_>>)| match (&saved.low_rank, dy) {
        (Some(low_rank), Some(dy)) => low_rank.gradients(x, dy),
        _ => Ok(Thin::default()),
    };
    all.par_iter().zip(dys).map(one).collect()
}

impl SavedLowRank {
    /// `dB = dyᵀ h`, `dA = dhᵀ drop(x)`.
    fn gradients(&self, x: Option<&Tensor>, dy: &Left<'_>) -> Result<Thin> {
        let dtype = dy.tensor().dtype();
        let db = || self.h.as_ref().map(|h| product::backward_w(1.0, dy.tensor(), h, dtype));
        let towards_a = || {
            let kept = product::compute_dtype(dtype);
            let dh = self.b.as_ref().map(|b| product::backward_x(self.scaling, dy, &*product::source(b), kept));
            let x = x.filter(|_| self.want_da).map(|x| dropout::apply(x, self.dropout)).transpose()?;
            let da = x.zip(dh.as_ref()).map(|(x, dh)| product::backward_w(1.0, dh, &x, dtype));
            Ok((dh, da))
        };
        let (db, found): (_, Result<_>) = rayon::join(db, towards_a);
        let (dh, da) = found?;
        Ok(Thin { da, db, dh })
    }
}

/// The sum over layers of `dy W + mask(dh A)`, for `dx (rows, k)`: one product of all, unless there are masks. What those
/// apply to is summed beforehand.
pub(super) fn input_gradient(
    all: &[Saved<'_>],
    dys: &[Option<Left<'_>>],
    thin: &[Thin],
    (k, dtype): (usize, DType),
) -> Result<Tensor> {
    let mut masked: Option<Tensor> = None;
    let (mut bases, mut updates) = (Vec::new(), Vec::new());
    for ((saved, dy), thin) in all.iter().zip(dys).zip(thin) {
        let Some(dy) = dy else { continue };
        bases.push((dy, saved.w.source()));
        let low_rank = saved.low_rank.as_ref().and_then(|it| Some((it, it.a.as_ref()?)));
        let Some(((low_rank, a), dh)) = low_rank.zip(thin.dh.as_ref()) else { continue };
        let update = (Left::new(dh), product::source(a));
        if low_rank.dropout.is_off() {
            updates.push(update);
            continue;
        }
        let mut part = product::backward_x(1.0, &update.0, &*update.1, dtype);
        dropout::apply_in_place(&mut part, low_rank.dropout)?;
        match &mut masked {
            Some(sum) => sum.add_assign(&part),
            None => masked = Some(part),
        }
    }
    let bases = bases.iter().map(|(dy, w)| (*dy, &**w));
    let updates = updates.iter().map(|(dh, a)| (dh, &**a));
    let accumulate = masked.is_some();
    let rows = dys.iter().flatten().map(|it| it.tensor().rows()).next().unwrap_or(0);
    let mut dx = masked.unwrap_or_else(|| Tensor::scratch(&[rows, k], dtype));
    product::sum_backward_x(&bases.chain(updates).collect::<Vec<_>>(), accumulate, &mut dx);
    Ok(dx)
}
