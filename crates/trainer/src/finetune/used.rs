//! What a run takes from its files where these leave room for guesses: said before an hour of training, and written down.

use crate::{
    load::BaseModel,
    sources::{Rows, Source},
};
use halfbyte_data::Tokenizer;
use halfbyte_models::{Architecture, Model, ModelConfig};
use halfbyte_ops::rope::{RopeScaling, RopeSpec};
use serde::Serialize;

/// A token by its id and its name in the vocabulary.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Token {
    id: u32,
    token: Option<String>,
}

/// What was chosen.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Used {
    /// The columns that were read.
    columns: String,
    /// How a row is laid out: the text with the columns in braces, or the chat template that writes it.
    template: String,
    /// What counts in the loss.
    loss_on: String,
    /// Whether the end-of-text token closes each row.
    append_eos: bool,
    bos: Option<Token>,
    eos: Option<Token>,
    pad: Option<Token>,
    /// What goes before and after every text that is tokenised.
    before_text: Vec<Token>,
    after_text: Vec<Token>,
    /// At these a continued text ends.
    end_ids: Vec<u32>,
    architecture: String,
    /// How positions are rotated; `None` where they are learned.
    rope: Option<String>,
    /// For every layer, how many keys a query sees.
    windows: Vec<Option<usize>>,
    tied_head: bool,
    /// The linear layers that stay dense beside quantised ones.
    kept_dense: Vec<String>,
    /// Of a mixture, what was chosen for each source; above it stands what was for the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<UsedSource>,
}

/// What was chosen for a source of a mixture.
#[derive(Clone, Debug, Serialize)]
struct UsedSource {
    data: String,
    weight: Option<f64>,
    columns: String,
    template: String,
    loss_on: String,
    append_eos: bool,
}

impl UsedSource {
    fn of(source: &Source) -> UsedSource {
        let data = &source.config;
        UsedSource {
            data: source.files.described(),
            weight: source.weight,
            columns: data.columns.to_string(),
            template: match (&data.template, data.columns.template()) {
                (Some(template), _) => format!("chat template {}", template.origin()),
                (None, laid_out) => laid_out.unwrap_or_default(),
            },
            loss_on: format!("{:?}", data.learns()).to_lowercase(),
            append_eos: data.appends_eos(),
        }
    }
}

/// For people: what becomes of the rows of a source.
pub(crate) fn row_line_of(source: &Source) -> String {
    let it = UsedSource::of(source);
    row_line(&it.template, it.append_eos, &it.loss_on)
}

/// For people: what becomes of a row.
fn row_line(template: &str, append_eos: bool, loss_on: &str) -> String {
    let end = if append_eos { "and" } else { "without" };
    format!("rows as {template:?}, {end} the end-of-text token after each; loss on {loss_on}")
}

impl Used {
    /// What is known before the weights are loaded.
    pub(crate) fn of(base: &BaseModel, rows: &Rows) -> Used {
        let mut sources: Vec<UsedSource> = rows.sources.iter().map(UsedSource::of).collect();
        let first = sources[0].clone();
        if sources.len() == 1 {
            sources.clear();
        }
        let (tokenizer, config) = (&base.tokenizer, base.folder.config());
        let special = tokenizer.special();
        let token = |id: u32| Token { id, token: tokenizer.id_to_token(id) };
        Used {
            columns: first.columns,
            template: first.template,
            loss_on: first.loss_on,
            append_eos: first.append_eos,
            bos: special.bos.map(token),
            eos: special.eos.map(token),
            pad: special.pad.map(token),
            before_text: around(tokenizer, true).iter().map(|it| token(*it)).collect(),
            after_text: around(tokenizer, false).iter().map(|it| token(*it)).collect(),
            end_ids: tokenizer.stop_ids().to_vec(),
            architecture: config.architecture_name().to_owned(),
            rope: rope(config),
            windows: config.windows(),
            tied_head: config.tie_word_embeddings,
            kept_dense: Vec::new(),
            sources,
        }
    }

    /// Takes down which layers of a loaded model are dense though others are not.
    pub(crate) fn loaded(&mut self, model: &dyn Model) {
        let is_dense = |format: &str| ["f32", "f16", "bf16"].contains(&format);
        let (linears, _) = model.parts();
        if linears.iter().any(|it| !is_dense(&it.format())) {
            let dense = linears.iter().filter(|it| is_dense(&it.format()));
            self.kept_dense = dense.map(|it| it.path().to_owned()).collect();
        }
    }

    /// For people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let one = |it: &Token| format!("{} ({})", it.token.as_deref().unwrap_or("no name"), it.id);
        let some = |it: &Option<Token>| it.as_ref().map_or_else(|| "none".to_owned(), one);
        let all = |it: &[Token]| match it {
            [] => "nothing".to_owned(),
            tokens => tokens.iter().map(one).collect::<Vec<_>>().join(" "),
        };
        let ends: Vec<String> = self.end_ids.iter().map(u32::to_string).collect();
        let tied = if self.tied_head { "the output head is the embedding" } else { "an output head of its own" };
        let laid_out = match &self.sources[..] {
            [] => vec![row_line(&self.template, self.append_eos, &self.loss_on)],
            sources => sources
                .iter()
                .map(|it| format!("{}: {}", it.data, row_line(&it.template, it.append_eos, &it.loss_on)))
                .collect(),
        };
        let rest = [
            format!(
                "special tokens: bos {}, eos {}, pad {}; before a text {}, after it {}; texts end at {}",
                some(&self.bos),
                some(&self.eos),
                some(&self.pad),
                all(&self.before_text),
                all(&self.after_text),
                if ends.is_empty() { "no id".to_owned() } else { ends.join(", ") }
            ),
            format!(
                "{}: rope {}, windows {}, {tied}",
                self.architecture,
                self.rope.as_deref().unwrap_or("none"),
                windows(&self.windows)
            ),
        ];
        laid_out.into_iter().chain(rest).collect()
    }

    /// For people, once the model is loaded: the layers that are dense among quantised ones.
    pub(crate) fn dense_line(&self) -> Option<String> {
        const SHOWN: usize = 4;
        let names = self.kept_dense.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = self.kept_dense.len().saturating_sub(SHOWN);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        (!self.kept_dense.is_empty()).then(|| format!("kept dense: {names}{more}"))
    }
}

fn around(tokenizer: &Tokenizer, before: bool) -> &[u32] {
    if before { tokenizer.prefix() } else { tokenizer.suffix() }
}

/// The rotation of all layers, or which layers have which, or none.
fn rope(config: &ModelConfig) -> Option<String> {
    let spec = match &config.architecture {
        Architecture::Decoder(spec) => spec,
        Architecture::Gpt(spec) => return spec.rope.as_ref().map(described),
    };
    let on = |rope: Option<usize>| -> Vec<String> {
        let layers = spec.layers.iter().enumerate().filter(|it| it.1.rope == rope);
        layers.map(|it| it.0.to_string()).collect()
    };
    let one = |(at, rope): (usize, &RopeSpec)| match on(Some(at)) {
        layers if layers.len() == spec.layers.len() => described(rope),
        layers => format!("{} on layers {}", described(rope), layers.join(", ")),
    };
    let used = spec.ropes.iter().enumerate().filter(|it| !on(Some(it.0)).is_empty());
    Some(used.map(one).collect::<Vec<_>>().join("; "))
}

/// The rope type by transformers' name, with its numbers.
fn described(rope: &RopeSpec) -> String {
    let kind = match &rope.scaling {
        RopeScaling::None => "default".to_owned(),
        RopeScaling::Linear { factor } => format!("linear (factor {factor})"),
        RopeScaling::Dynamic { factor } => format!("dynamic (factor {factor})"),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => format!(
            "llama3 (factor {factor}, low_freq_factor {low_freq_factor}, high_freq_factor {high_freq_factor}, original length {original_max_position})"
        ),
        RopeScaling::Yarn { factor, original_max_position, beta_fast, beta_slow, .. } => format!(
            "yarn (factor {factor}, beta_fast {beta_fast}, beta_slow {beta_slow}, original length {original_max_position})"
        ),
        RopeScaling::LongRope { original_max_position, attention_factor, .. } => {
            format!("longrope (original length {original_max_position}, scores times the square of {attention_factor})")
        }
    };
    format!("{kind}, theta {}", rope.theta)
}

/// `none`, one width for all layers, or one a layer.
fn windows(widths: &[Option<usize>]) -> String {
    let one = |it: &Option<usize>| it.map_or_else(|| "none".to_owned(), |it| it.to_string());
    match widths {
        [first, rest @ ..] if rest.iter().all(|it| it == first) => one(first),
        widths => format!("{} by layer", widths.iter().map(one).collect::<Vec<_>>().join(", ")),
    }
}
