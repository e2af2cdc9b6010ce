//! LoRA of an embedding: a low-rank product that is looked up rather than multiplied out.

use super::{Module, Numbers, Place, Update, What, on_host, transpose};
use crate::Result;
use halfbyte_autograd::{Param, Result as OpResult, Tape, Var};
use halfbyte_ops::{add_scaled, embedding::embedding, linear::linear};
use halfbyte_tensor::{DType, Tensor, philox};

/// A low-rank update of an embedding: row `i` gets `scaling * A[i] Bᵀ`. A head that is tied to it stays on the base, as in
/// PEFT.
///
/// PEFT keeps `A` the other way round, `(rank, vocabulary)`; rows lie together here, since a row is what is looked up.
#[derive(Clone, Debug)]
pub struct EmbeddingLora {
    /// `(vocabulary, rank)`.
    pub a: Param,
    /// `(channels, rank)`.
    pub b: Param,
    /// `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub scaling: f32,
}

/// `A` is zero and `B` normal, as PEFT begins them.
pub(super) fn begin(place: &Place<'_>, numbers: &mut Numbers<'_>) -> Result<Option<Box<dyn Update>>> {
    let What::Embedding(weight) = &place.what else { return Ok(None) };
    let ((vocab, channels), rank) = ((weight.value().rows(), weight.value().cols()), place.rank);
    let names = [format!("{}.lora_embedding_A", place.path), format!("{}.lora_embedding_B", place.path)];
    let fresh_b = |seed| {
        let mut b = vec![0.0; channels * rank];
        // Apart from the sites of linear layers.
        philox::fill_normal(seed, place.index | 1 << 49, 1.0, &mut b);
        Tensor::from_vec(&[channels, rank], b)
    };
    let a = numbers.transposed(&names[0], [vocab, rank], |_| Tensor::zeros(&[vocab, rank], DType::F32))?;
    let b = numbers.param(&names[1], &[channels, rank], fresh_b)?;
    Ok(Some(Box::new(EmbeddingLora { a, b, scaling: place.scaling })))
}

impl Update for EmbeddingLora {
    fn forward<'m>(&self, tape: &Tape<'m>, module: Module<'_, 'm>, _dropout: Option<u64>) -> OpResult<Var> {
        let Module::Embedding { table, ids, dtype } = module else {
            unreachable!("{}: an update of an embedding", self.a.name())
        };
        let x = embedding(tape, table, ids, dtype)?;
        let h = embedding(tape, &tape.param(&self.a), ids, dtype)?;
        add_scaled(tape, &x, &linear(tape, &h, &tape.param(&self.b), None)?, self.scaling)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.a.clone(), self.b.clone()]
    }

    fn merge(&self, base: Tensor) -> OpResult<Tensor> {
        let (a, b) = (self.a.value().read_f32()?, self.b.value().read_f32()?);
        let (channels, rank) = (base.cols(), self.a.value().cols());
        let mut rows = base.read_f32()?;
        for (row, a) in rows.chunks_mut(channels).zip(a.chunks(rank)) {
            for (x, b) in row.iter_mut().zip(b.chunks(rank)) {
                *x += self.scaling * a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            }
        }
        Ok(Tensor::from_vec(base.shape(), rows))
    }

    fn stored(&self) -> OpResult<Vec<(String, Tensor)>> {
        Ok(vec![
            (self.a.name().to_owned(), transpose(&on_host(&self.a)?)),
            (self.b.name().to_owned(), on_host(&self.b)?),
        ])
    }
}
