use crate::{Error, KvCache, Model, Result, sampling::pick};
use halfbyte_autograd::Tape;
use halfbyte_lora::Context;
use halfbyte_ops::cross_entropy::logits;
use halfbyte_tensor::{DType, Device, Tensor, cuda, with_float};

/// How text is continued, by transformers' names.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateConfig {
    /// At most so many tokens.
    pub max_new_tokens: usize,
    /// 0 takes the most probable token; 1 samples from the model's own distribution.
    pub temperature: f32,
    /// Sample among so many of the most probable tokens; 0 means all.
    pub top_k: usize,
    /// Sample among the most probable tokens that reach this probability together; 1 means all.
    pub top_p: f32,
    /// Above 1, tokens that occurred become less probable.
    pub repetition_penalty: f32,
    /// Seeds the sampling.
    pub seed: u64,
    /// Ids that end the text.
    pub eos_token_ids: Vec<u32>,
    /// Dtype of the activations.
    pub compute: DType,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        GenerateConfig {
            max_new_tokens: 64,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: 42,
            eos_token_ids: Vec::new(),
            compute: DType::F32,
        }
    }
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended the text.
    Eos,
    /// `max_new_tokens` was reached.
    MaxNewTokens,
    /// The model's last position was reached.
    MaxPosition,
    /// The caller had enough.
    Caller,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The new ids, without the one that ended the text.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
}

/// Continues a prompt with the adapter of `ctx`, telling `on_token` each new id as it comes; it returns whether to go on.
pub fn generate(
    model: &dyn Model,
    prompt: &[u32],
    (config, ctx): (&GenerateConfig, &Context),
    on_token: &mut dyn FnMut(u32) -> bool,
) -> Result<Generated> {
    let (vocab, limit) = (model.config().vocab_size, model.config().max_position_embeddings);
    if prompt.is_empty() {
        return Err(Error::Input("the prompt has no token; give the model something to continue".into()));
    }
    if prompt.len() >= limit {
        return Err(Error::Input(format!(
            "the prompt has {} tokens, the model has positions for {limit}",
            prompt.len()
        )));
    }
    let mut cache = KvCache::new(model.config(), config.compute);
    let mut seen = prompt.to_vec();
    let mut ids = Vec::new();
    let mut hidden = model.extend(prompt, &mut cache, ctx)?;
    let stop = loop {
        if ids.len() == config.max_new_tokens {
            break StopReason::MaxNewTokens;
        }
        if seen.len() == limit {
            break StopReason::MaxPosition;
        }
        let tape = Tape::disabled();
        let scores = logits(&last_row(&hidden)?, model.head(&tape, ctx).as_head())?.to_device(&Device::Cpu)?;
        let id = pick(&mut scores.data::<f32>()[..vocab].to_vec(), &seen, config);
        if config.eos_token_ids.contains(&id) {
            break StopReason::Eos;
        }
        ids.push(id);
        seen.push(id);
        if !on_token(id) {
            break StopReason::Caller;
        }
        hidden = model.extend(&[id], &mut cache, ctx)?;
    };
    Ok(Generated { ids, stop })
}

fn last_row(hidden: &Tensor) -> Result<Tensor> {
    let (rows, cols) = (hidden.rows(), hidden.cols());
    if hidden.gpu().is_some() {
        let mut row = hidden.scratch_like(&[1, cols], hidden.dtype());
        cuda::copy_rows(&mut row, 0, hidden, rows - 1, 1)?;
        return Ok(row);
    }
    Ok(with_float!(hidden.dtype(), T, Tensor::from_vec(&[1, cols], hidden.data::<T>()[(rows - 1) * cols..].to_vec())))
}
