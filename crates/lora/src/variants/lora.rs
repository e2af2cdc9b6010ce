//! LoRA: a low-rank product beside the base's (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>).

use super::{Module, Numbers, Place, Update, What};
use crate::Result;
use halfbyte_autograd::{Param, Result as OpResult, Tape, Var};
use halfbyte_ops::{
    dropout::Dropout,
    lora_linear::{LowRank, lora_linear},
};
use halfbyte_tensor::{DType, Device, Tensor, philox, vectorised};
use rayon::prelude::*;

/// A low-rank update `scaling * B A` of a linear layer.
#[derive(Clone, Debug)]
pub struct Lora {
    /// `(rank, in_features)`.
    pub a: Param,
    /// `(out_features, rank)`.
    pub b: Param,
    /// `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub scaling: f32,
    /// Probability of dropping an element of the update's input while training.
    pub dropout: f32,
    /// Distinguishes this layer's dropout mask from the others'.
    pub site: u64,
}

pub(super) fn begin(place: &Place<'_>, numbers: &mut Numbers<'_>) -> Result<Option<Box<dyn Update>>> {
    Ok(Lora::begin(place, numbers)?.map(|it| Box::new(it) as Box<dyn Update>))
}

impl Lora {
    /// `A` is uniform in `±1/sqrt(in_features)` (Kaiming's rule with `a = sqrt(5)`, as PEFT does) and `B` is zero, so the
    /// adapted layer starts as the base.
    pub(super) fn begin(place: &Place<'_>, numbers: &mut Numbers<'_>) -> Result<Option<Lora>> {
        let What::Linear(linear) = &place.what else { return Ok(None) };
        let ((out, inner), rank, site) = (linear.dims(), place.rank, place.index);
        let (name_a, name_b) = Lora::names(&place.path);
        let a = numbers.param(&name_a, &[rank, inner], |seed| {
            let mut a = vec![0.0; rank * inner];
            let bound = 1.0 / (inner as f32).sqrt();
            // The upper bits keep these numbers apart from the dropout masks of the same layer.
            philox::fill_uniform(seed, site | 1 << 48, -bound, bound, &mut a);
            Tensor::from_vec(&[rank, inner], a)
        })?;
        let b = numbers.param(&name_b, &[out, rank], |_| Tensor::zeros(&[out, rank], DType::F32))?;
        Ok(Some(Lora { a, b, scaling: place.scaling, dropout: place.config.lora_dropout, site }))
    }

    /// What PEFT calls `A` and `B`.
    pub(in crate::variants) fn names(path: &str) -> (String, String) {
        (format!("{path}.lora_A.weight"), format!("{path}.lora_B.weight"))
    }

    /// For the op, with `A` and `B` on the tape; `dropout` seeds the mask.
    pub(crate) fn on<'v>(&self, (a, b): (&'v Var, &'v Var), dropout: Option<u64>) -> LowRank<'v> {
        LowRank { a, b, scaling: self.scaling, dropout: self.mask(dropout) }
    }

    /// Which elements of the input are dropped.
    pub(crate) fn mask(&self, dropout: Option<u64>) -> Dropout {
        let p = if dropout.is_some() { self.dropout } else { 0.0 };
        Dropout { p, seed: dropout.unwrap_or_default(), site: self.site }
    }
}

impl Update for Lora {
    fn forward<'m>(&self, tape: &Tape<'m>, module: Module<'_, 'm>, dropout: Option<u64>) -> OpResult<Var> {
        let Module::Linear { x, w, bias } = module else { unreachable!("{}: LoRA of a linear layer", self.a.name()) };
        let (a, b) = (tape.param(&self.a), tape.param(&self.b));
        lora_linear(tape, x, w, bias, self.on((&a, &b), dropout))
    }

    fn low_rank(&self) -> Option<&Lora> {
        Some(self)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.a.clone(), self.b.clone()]
    }

    fn merge(&self, base: Tensor) -> OpResult<Tensor> {
        sum(base, [&self.a.value(), &self.b.value()], self.scaling)
    }
}

/// `W + scaling * B A`, summed in f32 as PEFT's merge does.
pub(super) fn sum(base: Tensor, [a, b]: [&Tensor; 2], scaling: f32) -> OpResult<Tensor> {
    /// Columns whose update is summed before the next ones: the sums stay in the nearest cache.
    const STRIP: usize = 512;
    let mut w = base.to_device(&Device::Cpu)?.into_dtype(DType::F32).into_unique();
    let (inner, a, b) = (w.cols(), a.read_f32()?, b.read_f32()?);
    let rank = a.len() / inner;
    w.data_mut::<f32>().par_chunks_mut(inner).zip(b.par_chunks(rank)).for_each(|(row, b)| {
        vectorised!({
            let mut update = [0.0f32; STRIP];
            for (i, row) in row.chunks_mut(STRIP).enumerate() {
                let update = &mut update[..row.len()];
                update.fill(0.0);
                for (b, a) in b.iter().zip(a.chunks(inner)) {
                    for (u, a) in update.iter_mut().zip(&a[i * STRIP..]) {
                        *u += b * a;
                    }
                }
                for (w, u) in row.iter_mut().zip(update) {
                    *w += scaling * *u;
                }
            }
        });
    });
    Ok(w)
}
