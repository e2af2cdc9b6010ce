//! LoRA that begins with a part of the base, which is frozen without it. PEFT's file then holds an update of the base as it
//! was published: what was learned, and what was taken subtracted again.

use super::{Lora, Module, Numbers, Place, Update, What, on_host};
use crate::{LoraConfig, Result};
use halfbyte_autograd::{Param, Result as OpResult, Tape, Var};
use halfbyte_tensor::Tensor;

/// A part of a matrix as a low-rank product `scaling * B A`.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// `(rank, in_features)`.
    pub(crate) a: Vec<f32>,
    /// `(out_features, rank)`.
    pub(crate) b: Vec<f32>,
}

/// LoRA beside a base that lacks the part with which it began.
#[derive(Debug)]
struct Taken {
    lora: Lora,
    begun: Part,
}

pub(super) fn begin(place: &Place<'_>, numbers: &mut Numbers<'_>) -> Result<Option<Box<dyn Update>>> {
    let (What::Linear(_), Some(part)) = (&place.what, numbers.part(&place.path)) else { return Ok(None) };
    let Some(lora) = Lora::begin(place, numbers)? else { return Ok(None) };
    if let Numbers::File(_) = numbers {
        // The base is whole, and what the file's update lacks of it is put beside.
        let (a, b) = joined(&lora, &part)?;
        let (a, b) = (Param::new(lora.a.name(), a), Param::new(lora.b.name(), b));
        return Ok(Some(Box::new(Lora { a, b, ..lora })));
    }
    lora.a.set(Tensor::from_vec(lora.a.value().shape(), part.a.clone()));
    lora.b.set(Tensor::from_vec(lora.b.value().shape(), part.b.clone()));
    Ok(Some(Box::new(Taken { lora, begun: part })))
}

/// `[A; A0]` and `[B, -B0]`, whose product is `B A - B0 A0`.
fn joined(lora: &Lora, begun: &Part) -> OpResult<(Tensor, Tensor)> {
    let (a, b) = (on_host(&lora.a)?, on_host(&lora.b)?);
    let (rank, inner, out) = (a.rows(), a.cols(), b.rows());
    let a = [a.data::<f32>(), &begun.a].concat();
    let rows = b.data::<f32>().chunks(rank).zip(begun.b.chunks(rank));
    let b = rows.flat_map(|(now, then)| now.iter().copied().chain(then.iter().map(|it| -it))).collect();
    Ok((Tensor::from_vec(&[2 * rank, inner], a), Tensor::from_vec(&[out, 2 * rank], b)))
}

impl LoraConfig {
    /// The settings of the plain LoRA that stands for an adapter that began with a part of the base: of twice the rank, with
    /// the same factor.
    pub(crate) fn on_the_whole_base(&self) -> LoraConfig {
        let more = if self.use_rslora { 2f32.sqrt() } else { 2.0 };
        LoraConfig {
            rank: 2 * self.rank,
            lora_alpha: more * self.lora_alpha,
            rank_pattern: self.rank_pattern.iter().map(|it| (it.0.clone(), 2 * it.1)).collect(),
            // An alpha without a rank of its own belongs to the common rank, which is doubled, too.
            alpha_pattern: self.alpha_pattern.iter().map(|it| (it.0.clone(), more * it.1)).collect(),
            init_lora_weights: None,
            ..self.clone()
        }
    }
}

impl Update for Taken {
    fn forward<'m>(&self, tape: &Tape<'m>, module: Module<'_, 'm>, dropout: Option<u64>) -> OpResult<Var> {
        self.lora.forward(tape, module, dropout)
    }

    fn low_rank(&self) -> Option<&Lora> {
        Some(&self.lora)
    }

    fn params(&self) -> Vec<Param> {
        self.lora.params()
    }

    fn merge(&self, base: Tensor) -> OpResult<Tensor> {
        self.lora.merge(base)
    }

    fn stored(&self) -> OpResult<Vec<(String, Tensor)>> {
        let (a, b) = joined(&self.lora, &self.begun)?;
        Ok(vec![(self.lora.a.name().to_owned(), a), (self.lora.b.name().to_owned(), b)])
    }
}
