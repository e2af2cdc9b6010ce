//! How far a merged model is from base + adapter: on a text, the divergence of their predictions.

use crate::{
    failure::user_error, load::BaseModel, rows::RowFlags, sources::Rows, streamed_matrix::Streamed, templates::Voice,
};
use halfbyte_autograd::Tape;
use halfbyte_data::Part;
use halfbyte_lora::Context;
use halfbyte_models::{Loading, Model, ModelFolder, Pass};
use halfbyte_ops::{Ids, Layout};
use halfbyte_tensor::{DType, Device, Tensor};
use serde::Serialize;
use std::path::Path;

/// Tokens that are compared at most: more would not change the verdict, and every one keeps a vocabulary of logits.
const MAX_TOKENS: usize = 256;
/// Nats a token from which on a merge is refused. Rounding to bf16 costs some 1e-4.
pub(crate) const WORST_KL: f64 = 0.02;
/// The share of tokens whose most probable successor must stay the same.
pub(crate) const LEAST_AGREEMENT: f64 = 0.95;
const TEXT: &str = include_str!("merge_sample.txt");

/// Two models' predictions after every token of a text.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Agreement {
    /// Mean Kullback-Leibler divergence of the merged model's predictions from those of base + adapter, in nats a token.
    pub(crate) kl_divergence: f64,
    /// Share of tokens with the same most probable successor.
    pub(crate) top1_agreement: f64,
    pub(crate) tokens: usize,
}

impl Agreement {
    /// Whether the merged model can stand in for base + adapter. A divergence that is no number counts as bad.
    pub(crate) fn is_good(&self) -> bool {
        self.kl_divergence <= WORST_KL && self.top1_agreement >= LEAST_AGREEMENT
    }

    /// Of f32 logits `(tokens, vocab)`.
    pub(crate) fn of(both: &Tensor, merged: &Tensor) -> Agreement {
        let (mut kl, mut same) = (0.0, 0usize);
        let (tokens, vocab) = (both.rows(), both.cols());
        for (p, q) in both.data::<f32>().chunks(vocab).zip(merged.data::<f32>().chunks(vocab)) {
            let (p_max, p_sum) = softmax_scale(p);
            let (q_max, q_sum) = softmax_scale(q);
            let shift = (q_max + q_sum.ln()) - (p_max + p_sum.ln());
            let terms = p.iter().zip(q).map(|(p, q)| {
                let (p, q) = (f64::from(*p), f64::from(*q));
                (p - p_max).exp() / p_sum * (p - q + shift)
            });
            kl += terms.sum::<f64>();
            same += usize::from(top(p) == top(q));
        }
        let share = |it: f64| it / tokens.max(1) as f64;
        // Rounding may leave a little below zero; NaN stays NaN.
        let kl = if kl < 0.0 { 0.0 } else { kl };
        Agreement { kl_divergence: share(kl), top1_agreement: share(same as f64), tokens }
    }
}

fn softmax_scale(row: &[f32]) -> (f64, f64) {
    let max = row.iter().fold(f64::NEG_INFINITY, |m, it| m.max(f64::from(*it)));
    (max, row.iter().map(|it| (f64::from(*it) - max).exp()).sum())
}

fn top(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, it)| if *it > row[best] { i } else { best })
}

/// The token ids of the text to compare on: the first rows of a file, conversations among them as `voice` writes them, or a text of
/// our own.
pub(crate) fn sample(
    (base, voice): (&BaseModel, &[Voice]),
    data: Option<&Path>,
    positions: usize,
) -> anyhow::Result<Vec<u32>> {
    let tokenizer = &base.tokenizer;
    let limit = MAX_TOKENS.min(positions);
    let mut ids = match data {
        None => tokenizer.encode_prompt(TEXT)?,
        Some(path) => {
            let flags = RowFlags::default();
            let mut found = Rows::find(&[path.into()], Part::HeldOut, (&flags, limit, None), (base, voice))?;
            found.sources.iter_mut().for_each(|it| it.config.rows = Some(0..8));
            let rows = found.load(tokenizer)?.dataset;
            rows.rows().flat_map(|it| it.ids.to_vec()).collect()
        }
    };
    ids.truncate(limit);
    if ids.is_empty() {
        return Err(user_error("--check-data: the first rows hold no text; name a file with some"));
    }
    Ok(ids)
}

/// Logits in f32 after every token.
pub(crate) fn predictions(model: &dyn Model, ids: &[u32], ctx: &Context) -> anyhow::Result<Tensor> {
    let (layout, ids) = (Layout::new(&[ids.len()])?, Ids::new(ids.to_vec()));
    let tape = Tape::disabled();
    let hidden = model.forward(&tape, &mut Pass::new(&ids, &layout, ctx, DType::F32))?;
    Ok(model.head(&tape, ctx).logits(hidden.value())?)
}

/// [`predictions`] of a merged folder, whose matrices stay in their files.
pub(crate) fn predictions_of_folder(dir: &Path, ids: &[u32]) -> anyhow::Result<Tensor> {
    let (folder, streamed) = (ModelFolder::open(dir)?, Streamed::default());
    let model = folder.load(Loading::Frozen { format: &streamed, prepare: None }, &Device::Cpu, &mut |_| {})?;
    predictions_read(model.as_ref(), ids, &streamed)
}

/// Logits of a model that reads its matrices from files: an error if a file did not give what it should.
fn predictions_read(model: &dyn Model, ids: &[u32], streamed: &Streamed) -> anyhow::Result<Tensor> {
    let logits = predictions(model, ids, &Context::default());
    streamed.failed().check()?;
    logits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreement(p: &[f32], q: &[f32]) -> Agreement {
        let logits = |it: &[f32]| Tensor::from_vec(&[it.len() / 2, 2], it.to_vec());
        Agreement::of(&logits(p), &logits(q))
    }

    #[test]
    fn the_divergence_is_that_of_the_formula() {
        // Probabilities (3/4, 1/4) against (1/2, 1/2), and a shift of all logits, which changes nothing.
        let found = agreement(&[3f32.ln(), 0.0, 1.0, 1.0], &[7.0, 7.0, -2.0, -2.0]);
        let expected = 0.75 * (0.75f64 / 0.5).ln() + 0.25 * (0.25f64 / 0.5).ln();
        assert!((found.kl_divergence - expected / 2.0).abs() < 1e-7, "{found:?}");
        assert_eq!((found.tokens, found.top1_agreement), (2, 1.0));
        assert!(!found.is_good());
    }

    #[test]
    fn a_file_that_is_cut_while_its_model_runs_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models/tiny-llama");
        for file in std::fs::read_dir(&tiny).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
        }
        let (folder, streamed) = (ModelFolder::open(dir.path()).unwrap(), Streamed::default());
        let loading = Loading::Frozen { format: &streamed, prepare: None };
        let model = folder.load(loading, &Device::Cpu, &mut |_| {}).unwrap();
        let whole = predictions_read(model.as_ref(), &[1, 2, 3], &streamed).unwrap();
        assert!(whole.is_finite().unwrap());
        let weights = std::fs::OpenOptions::new().write(true).open(dir.path().join("model.safetensors")).unwrap();
        weights.set_len(weights.metadata().unwrap().len() / 2).unwrap();
        let error = predictions_read(model.as_ref(), &[1, 2, 3], &streamed).unwrap_err().to_string();
        assert!(error.contains("model.safetensors"), "{error}");
    }

    #[test]
    fn another_most_probable_token_and_nan_are_seen() {
        assert_eq!(agreement(&[1.0, 0.0, 1.0, 0.0], &[1.0, 0.0, 0.0, 1.0]).top1_agreement, 0.5);
        let broken = agreement(&[1.0, 0.0], &[f32::NAN, 0.0]);
        assert!(broken.kl_divergence.is_nan() && !broken.is_good());
        assert!(agreement(&[1.0, 0.0], &[1.0, 0.0]).is_good());
    }
}
