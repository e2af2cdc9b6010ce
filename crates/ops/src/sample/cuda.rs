use super::{Draw, Sampling};
use halfbyte_cuda::{Gpu, Launch, Number, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::upload_u32};
use std::sync::Arc;

kernels! {
    const SOURCE = "sample", "kernel.cu", over Tensor;
    penalise as Penalise { logits: *mut f32, seen: *const u32, first: i32, n: i32, cols: i32, penalty: f32 }
    sample as Sample {
        logits: *const f32, bits: Option<*const u32>, ids: *mut u32, cols: i32, vocab: i32, temperature: f32, top_k: i32, top_p: f32,
    }
}

/// Threads of a row: one block goes over it again and again.
const THREADS: u32 = 512;

/// Chooses for every row; see [`sample`](super::sample).
pub(super) fn sample(
    gpu: &Arc<Gpu>,
    logits: &mut Tensor,
    vocab: usize,
    (how, draws): (&Sampling, &[Draw]),
    ids: &mut Tensor,
) -> Result<()> {
    let (rows, cols) = (draws.len(), logits.cols());
    if rows == 0 {
        return Ok(());
    }
    let penalised = how.repetition_penalty != 1.0;
    let greedy = how.temperature <= 0.0;
    // The bits of all rows, then the rows and the ids of what occurred: one copy for all of it, and for plain greedy tokens none.
    let mut told: Vec<u32> = if greedy { Vec::new() } else { draws.iter().map(|it| it.bits).collect() };
    let first = told.len();
    if penalised {
        told.extend((0..).zip(draws).flat_map(|(row, it)| vec![row; it.seen.len()]));
        told.extend(draws.iter().flat_map(|it| &it.seen));
    }
    let n = (told.len() - first) / 2;
    let told = if told.is_empty() { None } else { Some(upload_u32(gpu, &told)?) };
    if let Some(seen) = told.as_ref().filter(|_| n > 0) {
        let kernel = Penalise { logits, seen, first, n, cols, penalty: how.repetition_penalty };
        // SAFETY: behind `first` are `n` rows and as many ids, which the caller checked; no id of a row is there twice.
        unsafe { kernel.launch(gpu, Number::F32, Launch::elements(n)) }?;
    }
    let bits = told.as_ref().filter(|_| !greedy);
    let (temperature, top_p) = (how.temperature, how.top_p);
    let top_k = if how.top_k < vocab { how.top_k } else { 0 };
    let kernel = Sample { logits, bits, ids, cols, vocab, temperature, top_k, top_p };
    // SAFETY: a block a row, with a word of bits for each unless the largest logit is taken.
    unsafe { kernel.launch(gpu, Number::F32, Launch::rows(rows, THREADS)) }
}
