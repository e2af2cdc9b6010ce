//! Loss and accuracy on rows that are not trained on.

use crate::{
    console,
    failure::user_error,
    labels::{self, Question},
};
use halfbyte_data::{Dataset, Tokenizer};
use halfbyte_lora::Context;
use halfbyte_models::Model;
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

/// Tokens of each sequence of the largest batch of [`loss`].
pub(crate) fn largest(data: &Dataset, batch_size: usize) -> Vec<usize> {
    let batches = data.in_order(batch_size * data.longest());
    batches.max_by_key(|it| it.tokens).map_or_else(Vec::new, |it| it.lengths)
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
    names: &[String],
    compute: DType,
) -> anyhow::Result<Vec<Answer>> {
    let mut found = Vec::new();
    let mut asked: Vec<Question> = Vec::new();
    for row in data.rows() {
        let text = tokenizer.decode(row.ids, true)?;
        let text = text.trim_end();
        let Some(expected) = names.iter().find(|it| text.ends_with(it.as_str())) else { continue };
        let prompt = text[..text.len() - expected.len()].trim_end().to_owned();
        asked.push(Question::new(tokenizer, &prompt, names)?);
        found.push(Answer { prompt, expected: expected.clone(), given: String::new() });
    }
    let bar = console::step_bar(asked.len() as u64, "asking for labels");
    for (questions, answers) in asked.chunks(labels::TOGETHER).zip(found.chunks_mut(labels::TOGETHER)) {
        for (answer, best) in answers.iter_mut().zip(labels::most_probable((model, ctx), questions, compute)?) {
            answer.given = names[best].clone();
        }
        bar.inc(questions.len() as u64);
    }
    bar.finish_and_clear();
    if found.is_empty() {
        return Err(user_error(format!("--eval-labels {}: no held-out row ends in one of them", names.join(","))));
    }
    Ok(found)
}

/// The share of right answers.
pub(crate) fn accuracy(answers: &[Answer]) -> f64 {
    answers.iter().filter(|it| it.given == it.expected).count() as f64 / answers.len().max(1) as f64
}
