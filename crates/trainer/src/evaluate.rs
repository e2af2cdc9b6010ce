//! Loss and accuracy on rows that are not trained on.

use crate::{console, failure::user_error};
use halfbyte_autograd::Tape;
use halfbyte_data::{Dataset, IGNORE, Tokenizer};
use halfbyte_lora::Context;
use halfbyte_models::{Input, Model};
use halfbyte_ops::{Ids, Layout, Targets, cross_entropy::cross_entropy};
use halfbyte_tensor::DType;
use halfbyte_train::{EvalLoss, objective::CausalLm};
use serde::Serialize;

/// Measures the loss of a data set in file order, behind a bar.
pub(crate) fn loss(
    (model, ctx): (&dyn Model, &Context),
    data: &Dataset,
    batch_size: usize,
    compute: DType,
    what: &str,
) -> anyhow::Result<EvalLoss> {
    let bar = console::step_bar(data.len() as u64, what);
    let found = halfbyte_train::evaluate((model, ctx), &CausalLm, data, (batch_size, compute), &mut |done, _| {
        bar.set_position(done as u64);
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok(found)
}

/// A row that ends in one of several labels, and what the model would have put there.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answer {
    pub(crate) prompt: String,
    pub(crate) expected: String,
    pub(crate) given: String,
}

/// Asks the model, for every row that ends in a label, which label is the most probable one after the row's beginning.
pub(crate) fn answers(
    (model, ctx): (&dyn Model, &Context),
    tokenizer: &Tokenizer,
    data: &Dataset,
    labels: &[String],
    compute: DType,
) -> anyhow::Result<Vec<Answer>> {
    let bar = console::step_bar(data.len() as u64, "asking for labels");
    let mut found = Vec::new();
    for row in data.rows() {
        bar.inc(1);
        let text = tokenizer.decode(row.ids, true)?;
        let text = text.trim_end();
        let Some(expected) = labels.iter().find(|it| text.ends_with(it.as_str())) else { continue };
        let prompt = text[..text.len() - expected.len()].trim_end().to_owned();
        let scores = labels
            .iter()
            .map(|it| log_probability((model, ctx), tokenizer, &prompt, it, compute))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let best = (0..labels.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap_or(0);
        found.push(Answer { prompt, expected: expected.clone(), given: labels[best].clone() });
    }
    bar.finish_and_clear();
    if found.is_empty() {
        return Err(user_error(format!("--eval-labels {}: no held-out row ends in one of them", labels.join(","))));
    }
    Ok(found)
}

/// The share of right answers.
pub(crate) fn accuracy(answers: &[Answer]) -> f64 {
    answers.iter().filter(|it| it.given == it.expected).count() as f64 / answers.len().max(1) as f64
}

/// Log-probability of the tokens by which `prompt + " " + label` is longer than what it shares with `prompt`.
fn log_probability(
    (model, ctx): (&dyn Model, &Context),
    tokenizer: &Tokenizer,
    prompt: &str,
    label: &str,
    compute: DType,
) -> anyhow::Result<f64> {
    let (before, whole) = (tokenizer.encode(prompt)?, tokenizer.encode(&format!("{prompt} {label}"))?);
    let shared = before.iter().zip(&whole).take_while(|(a, b)| a == b).count();
    if shared == 0 || shared == whole.len() {
        return Err(user_error(format!("--eval-labels: `{label}` adds no token of its own")));
    }
    let tape = Tape::disabled();
    let layout = Layout::new(&[whole.len()])?;
    let input = Input { ids: &Ids::new(whole.clone()), layout: &layout, compute, checkpointing: false };
    let hidden = model.hidden(&tape, &input, ctx)?;
    let mut targets = vec![IGNORE; whole.len()];
    for (t, target) in targets.iter_mut().enumerate().take(whole.len() - 1).skip(shared - 1) {
        *target = whole[t + 1];
    }
    let nll = cross_entropy(&tape, &hidden, model.head(&tape, ctx).as_head(), &Targets::new(targets), 1.0)?;
    Ok(-f64::from(nll.value().to_f32_vec()[0]))
}
