//! DoRA: the magnitude of every output channel trains beside the update's direction (Liu et al. 2024,
//! <https://arxiv.org/abs/2402.09353>).

use super::{Lora, Module, Numbers, Place, Update, What};
use crate::Result;
use halfbyte_autograd::{Param, Result as OpResult, Tape, Var};
use halfbyte_ops::{
    add, add_scaled, dora_scale,
    dropout::{Dropout, dropout},
    frozen_linear::frozen_linear,
    lora_linear::{LowRank, lora_linear},
    row_norms,
};
use halfbyte_tensor::Tensor;

/// A low-rank update whose sum with the base has its rows scaled to trained lengths.
#[derive(Clone, Debug)]
pub struct Dora {
    /// The update of the direction.
    pub lora: Lora,
    /// `(out_features)`.
    pub magnitude: Param,
}

pub(super) fn begin(place: &Place<'_>, numbers: &mut Numbers<'_>) -> Result<Option<Box<dyn Update>>> {
    let What::Linear(linear) = &place.what else { return Ok(None) };
    if !place.config.use_dora {
        return Ok(None);
    }
    // Fresh magnitudes are the base's, and are found first, since that can fail.
    let norms = if let Numbers::Fresh { .. } = numbers { linear.row_norms()? } else { Vec::new() };
    let Some(lora) = Lora::begin(place, numbers)? else { return Ok(None) };
    // Unlike PEFT's other names, without `.weight`.
    let name = format!("{}.lora_magnitude_vector", place.path);
    let out = linear.dims().0;
    let magnitude = numbers.param(&name, &[out], |_| Tensor::from_vec(&[out], norms))?;
    Ok(Some(Box::new(Dora { lora, magnitude })))
}

impl Update for Dora {
    /// `x Wᵀ + bias`, rescaled. With dropout the base's product stays that of `x`, and the correction is that of the
    /// dropped-out input, as in PEFT: `x Wᵀ + (m / n - 1) drop(x) Wᵀ + m / n * scaling * drop(x) Aᵀ Bᵀ`.
    fn forward<'m>(&self, tape: &Tape<'m>, module: Module<'_, 'm>, seed: Option<u64>) -> OpResult<Var> {
        let Lora { a, b, scaling, .. } = &self.lora;
        let Module::Linear { x, w, bias } = module else { unreachable!("{}: DoRA of a linear layer", a.name()) };
        let (a, b) = (tape.param(a), tape.param(b));
        let magnitude = tape.param(&self.magnitude);
        let norms = row_norms(w, Some((a.value(), b.value(), *scaling)))?;
        let mask = self.lora.mask(seed);
        let dropped = dropout(tape, x, mask)?;
        let update = LowRank { a: &a, b: &b, scaling: *scaling, dropout: Dropout::default() };
        let u = lora_linear(tape, &dropped, w, None, update)?;
        let y = dora_scale(tape, &u, &magnitude, &norms, bias)?;
        if mask.is_off() {
            return Ok(y);
        }
        let lost = add_scaled(tape, x, &dropped, -1.0)?;
        add(tape, &y, &frozen_linear(tape, &lost, w, None)?)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.lora.a.clone(), self.lora.b.clone(), self.magnitude.clone()]
    }

    /// `W + scaling * B A` with its rows scaled to their magnitudes.
    fn merge(&self, base: Tensor) -> OpResult<Tensor> {
        let inner = base.cols();
        let merged = self.lora.merge(base)?;
        let mut w = merged.read_f32()?;
        for (row, m) in w.chunks_mut(inner).zip(self.magnitude.value().read_f32()?) {
            let norm = row.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>().sqrt() as f32;
            row.iter_mut().for_each(|it| *it *= m / norm);
        }
        Ok(Tensor::from_vec(merged.shape(), w))
    }
}
