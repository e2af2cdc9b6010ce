//! What goes from the forward pass of the op to its backward pass, and what comes out of that.

use super::Layer;
use crate::{FrozenMatrix, dropout::Dropout};
use halfbyte_autograd::Var;
use halfbyte_tensor::Tensor;

/// The projections of the input by the layers' A.
pub(super) enum Projected {
    /// `s drop(x) Aᵀ` of every layer that has an update, `(rows, rank)`.
    Each(Vec<Option<Tensor>>),
    /// `drop(x) Aᵀ` of all layers side by side, where any has an update.
    Together(Option<Tensor>),
}

/// What the backward pass needs; an operand is absent where no wanted gradient reads it.
pub(super) struct Saved<'m> {
    pub(super) layers: Vec<SavedLayer<'m>>,
    pub(super) projected: Projected,
}

pub(super) struct SavedLayer<'m> {
    pub(super) w: &'m dyn FrozenMatrix,
    pub(super) low_rank: Option<SavedLowRank>,
}

pub(super) struct SavedLowRank {
    pub(super) rank: usize,
    pub(super) a: Option<Tensor>,
    pub(super) b: Option<Tensor>,
    pub(super) want_da: bool,
    pub(super) want_db: bool,
    pub(super) scaling: f32,
    pub(super) dropout: Dropout,
}

/// The gradients of a layer's A and B, f32.
#[derive(Default)]
pub(super) struct Thin {
    pub(super) da: Option<Tensor>,
    pub(super) db: Option<Tensor>,
}

/// All gradients but those of biases.
pub(super) struct Found {
    pub(super) dx: Option<Tensor>,
    pub(super) thin: Vec<Thin>,
}

impl<'m> Saved<'m> {
    pub(super) fn of(x: &Var, layers: &[Layer<'_, 'm>], projected: Projected) -> Saved<'m> {
        let layers: Vec<_> = layers.iter().map(|it| it.saved(x)).collect();
        let wants = |it: &SavedLayer<'_>| it.low_rank.as_ref().is_some_and(|it| it.want_db);
        let projected = match projected {
            Projected::Each(hs) => {
                Projected::Each(hs.into_iter().zip(&layers).map(|(h, it)| h.filter(|_| wants(it))).collect())
            }
            Projected::Together(h) => Projected::Together(h.filter(|_| layers.iter().any(wants))),
        };
        Saved { layers, projected }
    }
}

impl<'m> Layer<'_, 'm> {
    /// What stands in the place of an output that nobody reads.
    pub(super) fn unread(&self, x: &Tensor) -> Tensor {
        match self.onto {
            Some(onto) => onto.value().clone(),
            None => x.scratch_like(&[x.rows(), self.w.dims().0], x.dtype()),
        }
    }

    fn saved(&self, x: &Var) -> SavedLayer<'m> {
        let low_rank = self.lora.map(|lora| SavedLowRank {
            rank: lora.a.value().rows(),
            a: x.requires_grad().then(|| lora.a.value().clone()),
            b: (x.requires_grad() || lora.a.requires_grad()).then(|| lora.b.value().clone()),
            want_da: lora.a.requires_grad(),
            want_db: lora.b.requires_grad(),
            scaling: lora.scaling,
            dropout: lora.dropout,
        });
        SavedLayer { w: self.w, low_rank }
    }
}
