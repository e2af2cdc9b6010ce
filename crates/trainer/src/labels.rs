//! Which of several continuations of a text a model finds most probable.
//!
//! The text goes through the model once, for several texts together; each continuation then goes on from a copy of its keys and
//! values.

use crate::failure::user_error;
use halfbyte_data::Tokenizer;
use halfbyte_lora::Context;
use halfbyte_models::{KvCache, Model, extend, scores};
use halfbyte_ops::Ids;
use halfbyte_tensor::DType;

/// So many questions go through the model together.
pub(crate) const TOGETHER: usize = 8;

/// A text and its continuations, as tokens.
pub(crate) struct Question {
    /// For each continuation the whole text, and how many of its tokens are those of the text alone.
    wholes: Vec<(Vec<u32>, usize)>,
}

impl Question {
    /// `prompt`, followed by a space and one of the labels.
    pub(crate) fn new(tokenizer: &Tokenizer, prompt: &str, labels: &[String]) -> anyhow::Result<Question> {
        let before = tokenizer.encode(prompt)?;
        let whole = |label: &String| {
            let whole = tokenizer.encode(&format!("{prompt} {label}"))?;
            let shared = before.iter().zip(&whole).take_while(|(a, b)| a == b).count();
            if shared == 0 || shared == whole.len() {
                return Err(user_error(format!("--eval-labels: `{label}` adds no token of its own")));
            }
            Ok((whole, shared))
        };
        Ok(Question { wholes: labels.iter().map(whole).collect::<anyhow::Result<_>>()? })
    }

    /// The tokens that all continuations share, but for the last, which the first token of each is predicted from.
    fn prefix(&self) -> &[u32] {
        let shared = self.wholes.iter().map(|it| it.1).min().unwrap_or(1);
        self.wholes.first().map_or(&[], |it| &it.0[..shared - 1])
    }
}

/// For each question the number of the continuation whose own tokens have the highest probability together.
pub(crate) fn most_probable(
    what: (&dyn Model, &Context),
    questions: &[Question],
    compute: DType,
) -> anyhow::Result<Vec<usize>> {
    let best = |sums: Vec<f64>| (0..sums.len()).max_by(|a, b| sums[*a].total_cmp(&sums[*b])).unwrap_or(0);
    Ok(log_probabilities(what, questions, compute)?.into_iter().map(best).collect())
}

/// For each question and continuation the log-probability of the continuation's own tokens.
fn log_probabilities(
    (model, ctx): (&dyn Model, &Context),
    questions: &[Question],
    compute: DType,
) -> anyhow::Result<Vec<Vec<f64>>> {
    let prefixes: Vec<&[u32]> = questions.iter().map(Question::prefix).collect();
    let mut cache = KvCache::new(model.config(), compute, questions.len());
    if prefixes.iter().any(|it| !it.is_empty()) {
        let layout = cache.begin(&prefixes.iter().map(|it| it.len()).collect::<Vec<_>>())?;
        extend(model, &Ids::new(prefixes.concat()), &layout, &mut cache, ctx)?;
    }
    let of: Vec<usize> = questions.iter().enumerate().flat_map(|(i, it)| vec![i; it.wholes.len()]).collect();
    let mut cache = cache.fork(&of);
    // The last token of each predicts nothing more.
    let wholes =
        questions.iter().zip(&prefixes).flat_map(|(it, prefix)| it.wholes.iter().map(|whole| (whole, prefix.len())));
    let rest: Vec<&[u32]> = wholes.clone().map(|((ids, _), from)| &ids[from..ids.len() - 1]).collect();
    let layout = cache.begin(&rest.iter().map(|it| it.len()).collect::<Vec<_>>())?;
    let hidden = extend(model, &Ids::new(rest.concat()), &layout, &mut cache, ctx)?;
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (((ids, shared), from), segment) in wholes.clone().zip(layout.segments()) {
        rows.extend((shared - 1..ids.len() - 1).map(|t| (segment.first + t - from) as u32));
        targets.extend_from_slice(&ids[*shared..]);
    }
    let scores = scores(model, &hidden, rows, ctx)?;
    let mut each = scores.data::<f32>().chunks(scores.cols()).zip(targets).map(|(row, id)| log_probability(row, id));
    let mut sums = wholes.map(|((ids, shared), _)| each.by_ref().take(ids.len() - shared).sum::<f64>());
    Ok(questions.iter().map(|it| sums.by_ref().take(it.wholes.len()).collect()).collect())
}

fn log_probability(logits: &[f32], id: u32) -> f64 {
    let top = logits.iter().fold(f64::NEG_INFINITY, |m, it| m.max(f64::from(*it)));
    let sum: f64 = logits.iter().map(|it| (f64::from(*it) - top).exp()).sum();
    f64::from(logits[id as usize]) - top - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load;
    use halfbyte_autograd::Tape;
    use halfbyte_frozen::Format;
    use halfbyte_models::Pass;
    use halfbyte_ops::Layout;
    use halfbyte_tensor::Device;
    use std::path::Path;

    /// Without a cache: the whole text, from its beginning.
    fn alone(model: &dyn Model, (ids, shared): &(Vec<u32>, usize)) -> f64 {
        let (layout, ctx) = (Layout::new(&[ids.len()]).unwrap(), Context::default());
        let whole = Ids::new(ids.clone());
        let mut pass = Pass::new(&whole, &layout, &ctx, DType::F32);
        let hidden = model.forward(&Tape::disabled(), &mut pass).unwrap().into_value();
        let scores = scores(model, &hidden, (0..ids.len() as u32).collect(), &ctx).unwrap();
        let rows: Vec<&[f32]> = scores.data::<f32>().chunks(scores.cols()).collect();
        (*shared..ids.len()).map(|t| log_probability(rows[t - 1], ids[t])).sum()
    }

    #[test]
    fn continuations_of_one_beginning_score_as_the_whole_texts() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models/tiny-llama");
        let base = load::open(&dir, &[]).unwrap();
        let model = load::load(&base.folder, Format::DENSE, &Device::Cpu, None).unwrap();
        let labels = ["positive", "negative", "nothing of the kind"].map(str::to_owned);
        let prompts = ["The film was long and dull. Its label is", "A good story", "x"];
        let questions = prompts.map(|it| Question::new(&base.tokenizer, it, &labels).unwrap());
        let found = log_probabilities((model.as_ref(), &Context::default()), &questions, DType::F32).unwrap();
        for (question, found) in questions.iter().zip(&found) {
            let expected: Vec<f64> = question.wholes.iter().map(|it| alone(model.as_ref(), it)).collect();
            for (got, wanted) in found.iter().zip(&expected) {
                assert!((got - wanted).abs() < 1e-5 * wanted.abs(), "{found:?}, alone {expected:?}");
            }
        }
        let best = most_probable((model.as_ref(), &Context::default()), &questions, DType::F32).unwrap();
        assert!(best.iter().zip(&found).all(|(best, all)| all.iter().all(|it| *it <= all[*best])), "{best:?}");
    }

    #[test]
    fn a_log_probability_is_that_of_the_softmax() {
        let logits = [1f32.ln(), 3f32.ln(), 4f32.ln()].map(|it| it + 7.0);
        assert!((log_probability(&logits, 1) - (3.0f64 / 8.0).ln()).abs() < 1e-6);
    }
}
