use super::cuda;
use crate::{
    exp::tanh,
    place::{Cost, fill},
};
use halfbyte_autograd::Result;
use halfbyte_tensor::{Error, Tensor, vectorised};
use rayon::prelude::*;

/// What makes a logit of a product with the head: `cap tanh(factor z / cap)`, or `factor z` without a cap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shaping {
    /// On every product: what Granite divides by, the other way up.
    pub factor: f32,
    /// Logits stay below this in size, as in Gemma 2.
    pub cap: Option<f32>,
}

impl Default for Shaping {
    /// Products as they are.
    fn default() -> Shaping {
        Shaping { factor: 1.0, cap: None }
    }
}

impl Shaping {
    pub(super) fn check(&self, op: &'static str) -> Result<()> {
        let fine = |it: f32| it.is_finite() && it > 0.0;
        if fine(self.factor) && self.cap.is_none_or(fine) {
            return Ok(());
        }
        Err(Error::invalid(op, format!("factor and cap of logits must be positive and finite, got {self:?}")).into())
    }

    /// Makes logits of a row of products that have met the factor already.
    #[inline(always)]
    pub(super) fn bend(&self, row: &mut [f32]) {
        if let Some(cap) = self.cap {
            row.iter_mut().for_each(|v| *v = cap * tanh(*v / cap));
        }
    }

    /// How a logit changes with its product, the factor apart: `1 - (l / cap)^2`.
    #[inline(always)]
    pub(super) fn slope(&self, logit: f32) -> f32 {
        self.cap.map_or(1.0, |cap| 1.0 - (logit / cap) * (logit / cap))
    }

    /// Makes logits of products in f32.
    pub(super) fn of_products(&self, products: Tensor) -> Result<Tensor> {
        if *self == Shaping::default() {
            return Ok(products);
        }
        let y = products.scratch_like(products.shape(), products.dtype());
        let cost = Cost::of(8, &[&products, &y]);
        let host = |y: &mut Tensor| {
            let rows = y.data_mut::<f32>().par_chunks_mut(ROW).zip(products.data::<f32>().par_chunks(ROW));
            rows.for_each(|(y, z)| {
                vectorised!({
                    y.iter_mut().zip(z).for_each(|(y, z)| *y = self.factor * z);
                    self.bend(y);
                })
            });
            Ok(())
        };
        fill(&products, cost, y, host, |gpu, y| cuda::shape(gpu, &products, *self, y))
    }
}

/// Logits that a thread takes at once.
const ROW: usize = 1 << 12;
