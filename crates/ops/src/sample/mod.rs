//! The next tokens out of logits, where these are: only ids go to the host.
//!
//! The settings apply in the order of transformers: repetition penalty, temperature, top-k, top-p. Tokens come by falling logit, of equal
//! ones the first first. What a token weighs is a whole number, `exp(logit - largest)` of f64 in units of 2^-40, so that sums of weights are
//! the same in any order, on any device: a draw differs between two devices where their `exp` differs in such a unit, and where logits do.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::place::{Cost, fill};
use halfbyte_autograd::Result;
use halfbyte_tensor::{DType, Device, Error, Tensor};

/// How a token is chosen, by transformers' names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most probable token; 1 draws from the model's own distribution.
    pub temperature: f32,
    /// Draw among so many of the most probable tokens; 0 means all.
    pub top_k: usize,
    /// Draw among the most probable tokens that reach this probability together, but at least one; 1 means all.
    pub top_p: f32,
    /// Above 1, tokens that occurred become less probable.
    pub repetition_penalty: f32,
}

/// What the choice after a row depends on beside its logits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draw {
    /// Random bits, of which the upper 24 say where in the distribution it is drawn.
    pub bits: u32,
    /// The ids that occurred, each once; looked at where there is a penalty.
    pub seen: Vec<u32>,
}

/// Tokens, in host memory and where they were chosen.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// One a row.
    pub ids: Vec<u32>,
    /// The same, u32.
    pub there: Tensor,
}

/// Stands for a row that holds NaN or infinity.
const NOTHING: u32 = u32::MAX;

/// Chooses a token for every row of `logits` (f32, `(rows, cols)`), among the first `vocab` columns, with a draw for each row. Gives none if
/// any row holds NaN or infinity, of which nothing can be told.
///
/// # Errors
/// Logits that are no f32 matrix of that many columns, draws that are not one a row or name ids outside of the vocabulary, and a GPU that
/// fails.
pub fn sample(logits: Tensor, vocab: usize, how: &Sampling, draws: &[Draw]) -> Result<Option<Chosen>> {
    if logits.dtype() != DType::F32 {
        return Err(Error::DType { op: "sample", expected: "f32 logits", got: logits.dtype() }.into());
    }
    let (rows, cols) = (draws.len(), logits.cols());
    if logits.shape() != [rows, cols] || vocab == 0 || vocab > cols {
        let message = format!("logits (rows, vocab) for {rows} draws from {vocab} tokens");
        return Err(Error::shape("sample", message, logits.shape()).into());
    }
    if let Some(id) = draws.iter().flat_map(|it| &it.seen).find(|it| **it as usize >= vocab) {
        return Err(Error::invalid("sample", format!("token id {id} is outside the vocabulary of {vocab}")).into());
    }
    // The logits are written, too, and so are nobody else's.
    let (here, logits) = (logits.scratch_like(&[0], DType::U32), logits.into_unique());
    let out = logits.scratch_like(&[rows], DType::U32);
    let cost = Cost::of(1, &[&logits, &out]);
    let host = |(logits, out): &mut (Tensor, Tensor)| {
        cpu::sample(logits.data_mut(), (cols, vocab), (how, draws), out.data_mut());
        Ok(())
    };
    let gpu = |gpu: &_, (logits, out): &mut (Tensor, Tensor)| cuda::sample(gpu, logits, vocab, (how, draws), out);
    let (_, there) = fill(&here, cost, (logits, out), host, gpu)?;
    let ids = there.to_device(&Device::Cpu)?.data::<u32>().to_vec();
    Ok((!ids.contains(&NOTHING)).then_some(Chosen { ids, there }))
}
