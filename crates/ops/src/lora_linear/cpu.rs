use crate::{FrozenMatrix, dropout, dropout::Dropout, product};
use halfbyte_tensor::{DType, Tensor};

/// What the backward pass needs; an operand is absent where no wanted gradient reads it.
pub(super) struct Saved {
    /// `(rows, in_features)`, before dropout.
    pub(super) x: Option<Tensor>,
    /// `s drop(x) Aᵀ`, `(rows, rank)`.
    pub(super) h: Option<Tensor>,
    pub(super) a: Option<Tensor>,
    pub(super) b: Option<Tensor>,
    pub(super) scaling: f32,
    pub(super) dropout: Dropout,
    pub(super) dtype: DType,
}

/// With `dh = s dy B`: `dB = dyᵀ h`, `dA = dhᵀ drop(x)`, `dx = dy W + mask(dh A)`. Gives (dx, dA, dB).
pub(super) fn backward(
    dy: &Tensor,
    w: &dyn FrozenMatrix,
    saved: Saved,
) -> (Option<Tensor>, Option<Tensor>, Option<Tensor>) {
    let Saved { x, h, a, b, scaling, dropout, dtype } = saved;
    let db = h.map(|h| product::backward_w(1.0, dy, &h, dtype));
    let Some(b) = b else { return (None, None, db) };
    let dh = product::backward_x(scaling, dy, &*product::source(&b), product::compute_dtype(dtype));
    let da = x.map(|x| product::backward_w(1.0, &dh, &dropout::apply(&x, dropout), dtype));
    let dx = a.map(|a| input_gradient(dy, &dh, w, &a, dropout));
    (dx, da, db)
}

/// `dy W + mask(dh A)`. A mask is applied to the update's part in place, before the base's part is added to it.
fn input_gradient(dy: &Tensor, dh: &Tensor, w: &dyn FrozenMatrix, a: &Tensor, dropout: Dropout) -> Tensor {
    if dropout.is_off() {
        product::updated_backward_x(dy, &*w.source(), (dh, a))
    } else {
        let mut dx = product::backward_x(1.0, dh, &*product::source(a), dy.dtype());
        dropout::apply_in_place(&mut dx, dropout);
        product::accumulate_backward_x(&mut dx, dy, &*w.source());
        dx
    }
}
