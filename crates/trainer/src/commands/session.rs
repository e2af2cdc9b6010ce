//! A base model beside any number of adapters, ready to continue text.

use super::{lines::Answer, settings::settings};
use crate::{
    base_record::BaseRecord,
    cli::{BaseArgs, SamplingArgs},
    console,
    failure::user_error,
    fingerprint::Fingerprint,
    load::{self, BaseModel, NO_ADAPTER, Waiting},
    plan::{Asked, Plan, Untrained, compared},
    templates::Voice,
};
use halfbyte_data::{Continuation, Tokenizer};
use halfbyte_frozen::Format;
use halfbyte_lora::{Adapter, Context};
use halfbyte_models::{GenerateConfig, Generated, KeptText, Listener, Model, Rehearsed, generate_within};
use halfbyte_tensor::Device;
use serde_json::{Map, Value};
use std::{ffi::OsString, io::Write, sync::Arc};

/// All but the weights: what can be wrong is found before these are loaded.
pub(super) struct Opened {
    base: BaseModel,
    waiting: Waiting,
    record: BaseRecord,
    device: Device,
    /// The adapters, if there are any, and the base alone.
    voices: Vec<Voice>,
    config: GenerateConfig,
}

pub(super) struct Session {
    pub(super) model: Box<dyn Model>,
    base: BaseModel,
    format: Format,
    device: Device,
    adapters: Vec<Arc<Adapter>>,
    ctx: Context,
    config: GenerateConfig,
    /// What the model has seen of the last text, with the adapter in use.
    kept: KeptText,
    /// The longest text that there is memory for.
    longest: usize,
    plan: Plan,
}

impl Opened {
    /// Opens base and adapters.
    pub(super) fn open(base: &BaseArgs, adapters: &[OsString], sampling: &SamplingArgs) -> anyhow::Result<Opened> {
        check_sampling(sampling)?;
        let named = adapters.iter().map(|it| load::parse_adapter(it)).collect::<anyhow::Result<Vec<_>>>()?;
        let opened = load::open(&base.model, &named)?;
        differences(opened.tokenizer.continuation_asked(), sampling).iter().for_each(|it| console::warn(it));
        let first = named.first().map(|it| it.1.as_path());
        let record = BaseRecord::resolve(&opened.folder, &base.flags(), first)?;
        let device = load::device(base.device)?;
        let waiting = Waiting::read(&named, &opened.folder, record)?;
        let config = GenerateConfig {
            max_new_tokens: sampling.max_new_tokens,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            repetition_penalty: sampling.repetition_penalty,
            seed: sampling.seed,
            first_number: 0,
            eos_token_ids: opened.tokenizer.stop_ids().to_vec(),
            compute: base.compute(),
            repeating: true,
        };
        let mut voices = Voice::all(&named, &opened);
        if !named.is_empty() {
            voices.push(Voice::of_base(&opened));
        }
        Ok(Opened { base: opened, waiting, record, device, voices, config })
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.base.tokenizer
    }

    /// The adapters and the base alone, with their chat templates.
    pub(super) fn voices(&self) -> &[Voice] {
        &self.voices
    }

    /// Ends texts at these tokens, too.
    pub(super) fn stop_at(&mut self, ids: &[u32]) {
        self.config.eos_token_ids.extend(ids);
    }

    /// The adapters that a command goes through, by name: those that there are, or the base alone.
    pub(super) fn adapters(&self) -> Vec<String> {
        let all: Vec<String> = self.waiting.names().map(str::to_owned).collect();
        if all.is_empty() { vec![NO_ADAPTER.to_owned()] } else { all }
    }

    /// One that there is; `none` is the base alone.
    pub(super) fn adapter(&self, name: &str) -> anyhow::Result<String> {
        if name != NO_ADAPTER && !self.waiting.names().any(|it| it == name) {
            return Err(unknown(name, self.waiting.names()));
        }
        Ok(name.to_owned())
    }

    /// What continuations hang on beside prompts and adapters.
    pub(super) fn settings(&self) -> anyhow::Result<Map<String, Value>> {
        settings(&self.base.folder, self.record, &self.config)
    }

    /// By what an adapter's weights are known; none of the base alone.
    pub(super) fn weights_of(&self, name: &str) -> anyhow::Result<Option<Fingerprint>> {
        let voice = self.voices.iter().find(|it| it.name == name && name != NO_ADAPTER);
        voice.map(|it| Fingerprint::of_adapter(it.dir())).transpose()
    }

    /// Positions that the model has.
    pub(super) fn positions(&self) -> usize {
        self.base.folder.config().max_position_embeddings
    }

    /// Loads what there is memory for: the weights, and a prompt of so many tokens with what continues it. No adapter is used yet.
    pub(super) fn load(self, prompt: usize) -> anyhow::Result<Session> {
        Ok(self.load_for(&[prompt], Some(1))?.0)
    }

    /// As [`load`](Self::load) for prompts of these lengths, of which so many are under way together; if it is not said how many, a few
    /// dozen, or as many as there is memory for. Gives how many these are.
    pub(super) fn load_for(self, prompts: &[usize], together: Option<usize>) -> anyhow::Result<(Session, usize)> {
        let Opened { base, mut waiting, record, device, config, .. } = self;
        let format = record.format();
        let (plan, together) = {
            let way = |format| Untrained {
                folder: &base.folder,
                format,
                adapters: waiting.configs().collect(),
                compute: config.compute,
            };
            let asked = |together, new| texts(&base, prompts, (together, new));
            let most = prompts.len().min(TOGETHER);
            let tries = (0..=most.ilog2()).map(|it| asked(most >> it, config.max_new_tokens));
            let chosen = match together {
                Some(together) => asked(together.clamp(1, prompts.len()), config.max_new_tokens),
                None => way(format).first_that_fits(&device, tries)?.expect("there is at least one"),
            };
            let together = under_way(&chosen);
            let mut others = Vec::new();
            if together > 1 {
                others.push(("--per-device-eval-batch-size 1", way(format), asked(1, config.max_new_tokens)));
            }
            others.push(("--max-new-tokens 32", way(format), asked(together, config.max_new_tokens.min(32))));
            if !base.folder.is_quantized() {
                others.push(("--quant nf4", way(Format::QLORA), asked(together, config.max_new_tokens)));
            }
            let what = if prompts.len() > 1 { WHAT_OF_MANY } else { WHAT };
            (way(format).fits(&device, (what, &chosen), 0, &others)?, together)
        };
        let mut model = load::load(&base.folder, format, &device, Some(&mut waiting))?;
        let adapters = waiting.adapters(model.as_mut(), &device)?.into_iter().map(Arc::new).collect();
        let longest = longest(&base, prompts.iter().copied().max().unwrap_or(0), config.max_new_tokens);
        let (ctx, kept) = (Context::default(), KeptText::new());
        Ok((Session { model, base, format, device, adapters, ctx, config, kept, longest, plan }, together))
    }
}

/// Texts that are under way together if nobody says how many: a GPU reads the weights once for all of them.
const TOGETHER: usize = 32;

/// What is refused where memory is short.
const WHAT: &str = "this text";
const WHAT_OF_MANY: &str = "continuing these texts";

/// Prompts and what continues them, so many together; the longest are, at the worst. One for which there are no positions is refused by the
/// model.
fn texts(base: &BaseModel, prompts: &[usize], (together, new): (usize, usize)) -> Asked {
    let last = base.folder.config().max_position_embeddings.saturating_sub(1);
    let mut lengths: Vec<usize> = prompts.iter().map(|it| (*it).min(last).max(1)).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let new = lengths.iter().map(|it| longest(base, *it, new) - it).max().unwrap_or(0);
    // Where positions end, so does a text; its prompt is as long as the rest of it.
    let lengths: Vec<usize> = lengths.iter().map(|it| (last + 1 - new).max(1).min(*it)).collect();
    let (first, rest) = lengths.split_at(together);
    Asked::Texts(Rehearsed { prompts: first.to_vec(), new, next: rest.iter().copied().take(together).collect() })
}

/// How many texts go together.
fn under_way(asked: &Asked) -> usize {
    if let Asked::Texts(it) = asked { it.prompts.len() } else { 1 }
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> anyhow::Error {
    let known = known.chain([NO_ADAPTER]).collect::<Vec<_>>().join(", ");
    user_error(format!("there is no adapter `{name}`; there is {known}"))
}

fn longest(base: &BaseModel, prompt: usize, new: usize) -> usize {
    prompt.saturating_add(new).min(base.folder.config().max_position_embeddings)
}

impl Session {
    /// The names of the adapters.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.adapters.iter().map(|it| it.name.as_str())
    }

    /// The name of the adapter in use; `none` is the base alone.
    pub(super) fn active(&self) -> &str {
        self.ctx.routing.adapter().map_or(NO_ADAPTER, |it| &it.name)
    }

    /// Uses an adapter by name; `none` is the base alone.
    pub(super) fn activate(&mut self, name: &str) -> anyhow::Result<()> {
        let adapter = if name == NO_ADAPTER { None } else { Some(self.adapters[self.find(name)?].clone()) };
        (self.ctx, self.kept) = (Context::new(adapter), KeptText::new());
        Ok(())
    }

    /// Ends texts at these tokens, and where the tokenizer says, and nowhere else.
    pub(super) fn stop_only_at(&mut self, ids: &[u32]) {
        self.config.eos_token_ids = [self.base.tokenizer.stop_ids(), ids].concat();
    }

    /// Gives an adapter's memory back. If it was in use, the base alone is from now on.
    pub(super) fn unload(&mut self, name: &str) -> anyhow::Result<()> {
        let adapter = self.adapters.remove(self.find(name)?);
        if self.active() == adapter.name {
            (self.ctx, self.kept) = (Context::default(), KeptText::new());
        }
        Ok(())
    }

    fn find(&self, name: &str) -> anyhow::Result<usize> {
        self.names().position(|it| it == name).ok_or_else(|| unknown(name, self.names()))
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.base.tokenizer
    }

    /// Continues prompts, so many together, the first of which is the `number`th of a list; see [`generate_within`].
    pub(super) fn continue_all(
        &self,
        (prompts, number): (&[Vec<u32>], usize),
        together: usize,
        listener: &mut Listener<'_>,
    ) -> anyhow::Result<()> {
        let config = GenerateConfig { first_number: number, ..self.config.clone() };
        generate_within(self.model.as_ref(), prompts, together, (&config, &self.ctx), listener)?;
        compared(WHAT_OF_MANY, &self.plan);
        Ok(())
    }

    /// Refuses a text that grew beyond what there is memory for.
    fn check_room(&mut self, prompt: usize) -> anyhow::Result<()> {
        let longest = longest(&self.base, prompt, self.config.max_new_tokens);
        if longest <= self.longest || prompt >= self.base.folder.config().max_position_embeddings {
            return Ok(());
        }
        let way = Untrained {
            folder: &self.base.folder,
            format: self.format,
            adapters: self.adapters.iter().map(|it| &it.config).collect(),
            compute: self.config.compute,
        };
        let needed = way.grows(
            &self.device,
            (WHAT, &texts(&self.base, &[prompt], (1, self.config.max_new_tokens))),
            self.plan.activations,
        )?;
        (self.longest, self.plan.activations) = (longest, needed);
        Ok(())
    }

    /// Continues a text, and writes what comes to `out`; see [`stream_ids`](Self::stream_ids).
    pub(super) fn stream(&mut self, prompt: &str, out: &mut dyn Write) -> anyhow::Result<(Generated, String)> {
        self.stream_ids(self.tokenizer().encode_prompt(prompt)?, out)
    }

    /// Continues tokens, from where they leave the text before, writing the text to `out` as it comes. The text that is returned begins with what stands between
    /// prompt and continuation, such as the space before a word, so that the two can be put together.
    pub(super) fn stream_ids(&mut self, ids: Vec<u32>, out: &mut dyn Write) -> anyhow::Result<(Generated, String)> {
        self.check_room(ids.len())?;
        let (mut text, mut failed) = (self.base.tokenizer.stream(true), None);
        let (model, answer) = (self.model.as_ref(), Answer::begin());
        let generated = self.kept.generate(model, &ids, (&self.config, &self.ctx), &mut |id| {
            let written = text.push(id).map_err(anyhow::Error::from).and_then(|piece| {
                out.write_all(piece.as_bytes())?;
                Ok(out.flush()?)
            });
            failed = written.err();
            failed.is_none() && !answer.is_enough()
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        writeln!(out, "{}", text.finish()?)?;
        compared(WHAT, &self.plan);
        let said = self.tokenizer().continuation(&ids, &generated.ids)?;
        Ok((generated, said))
    }
}

/// Where the flags continue texts otherwise than `generation_config.json` would have it.
fn differences(asked: &Continuation, flags: &SamplingArgs) -> Vec<String> {
    let given = (flags.temperature, flags.top_k, flags.top_p, flags.repetition_penalty);
    let mut notes = Vec::new();
    if given != (asked.temperature, asked.top_k, asked.top_p, asked.repetition_penalty) {
        notes.push(format!(
            "generation_config.json would have texts continued with --temperature {} --top-k {} --top-p {} --repetition-penalty {}; the flags and their defaults count",
            asked.temperature, asked.top_k, asked.top_p, asked.repetition_penalty
        ));
    }
    if !asked.others.is_empty() {
        notes.push(format!("generation_config.json: not applied: {}", asked.others.join(", ")));
    }
    notes
}

fn check_sampling(it: &SamplingArgs) -> anyhow::Result<()> {
    let fine = it.temperature >= 0.0
        && it.temperature.is_finite()
        && (0.0..=1.0).contains(&it.top_p)
        && it.repetition_penalty > 0.0
        && it.repetition_penalty.is_finite();
    if fine {
        return Ok(());
    }
    Err(user_error(format!(
        "--temperature must be at least 0, --top-p between 0 and 1 and --repetition-penalty above 0; got {}, {} and {}",
        it.temperature, it.top_p, it.repetition_penalty
    )))
}
