//! A base model with any number of adapters, ready to continue text.

use crate::{
    base_record::BaseRecord,
    cli::{BaseArgs, SamplingArgs},
    failure::user_error,
    load,
};
use halfbyte_data::Tokenizer;
use halfbyte_models::{GenerateConfig, Generated, Model, generate};
use std::io::Write;

/// The name that stands for the base without an adapter.
pub(super) const NO_ADAPTER: &str = "none";

pub(super) struct Session {
    pub(super) model: Box<dyn Model>,
    pub(super) tokenizer: Tokenizer,
    pub(super) adapters: Vec<String>,
    config: GenerateConfig,
}

impl Session {
    /// Loads base and adapters; no adapter is active yet.
    pub(super) fn open(base: &BaseArgs, adapters: &[String], sampling: &SamplingArgs) -> anyhow::Result<Session> {
        check_sampling(sampling)?;
        let named = adapters.iter().map(|it| load::parse_adapter(it)).collect::<anyhow::Result<Vec<_>>>()?;
        let opened = load::open(&base.model)?;
        let first = named.first().map(|it| it.1.as_path());
        let record = BaseRecord::resolve(&opened.folder, &base.flags(), first)?;
        let device = load::device(base.device)?;
        let mut model = load::load(&opened.folder, record.format(), &device)?;
        for (i, (name, dir)) in named.iter().enumerate() {
            if name == NO_ADAPTER || named[..i].iter().any(|it| it.0 == *name) {
                return Err(user_error(format!(
                    "--adapter: the name `{name}` is taken; write NAME=DIR with another name"
                )));
            }
            load::add_adapter(model.as_mut(), dir, name, record)?;
        }
        model.modules().to_device(&device)?;
        let config = GenerateConfig {
            max_new_tokens: sampling.max_new_tokens,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            repetition_penalty: sampling.repetition_penalty,
            seed: sampling.seed,
            eos_token_ids: opened.tokenizer.stop_ids().to_vec(),
            compute: base.compute(),
        };
        let adapters = named.into_iter().map(|it| it.0).collect();
        Ok(Session { model, tokenizer: opened.tokenizer, adapters, config })
    }

    /// Uses an adapter by name; `none` is the base alone.
    pub(super) fn activate(&mut self, name: &str) -> anyhow::Result<()> {
        if name != NO_ADAPTER && !self.adapters.iter().any(|it| it == name) {
            let known = self.adapters.iter().map(String::as_str).chain([NO_ADAPTER]).collect::<Vec<_>>().join(", ");
            return Err(user_error(format!("there is no adapter `{name}`; there is {known}")));
        }
        self.model.modules().set_active(Some(name).filter(|it| *it != NO_ADAPTER));
        Ok(())
    }

    /// Continues a prompt, writing the text to `out` as it comes.
    pub(super) fn stream(&self, prompt: &str, out: &mut dyn Write) -> anyhow::Result<Generated> {
        let ids = self.tokenizer.encode_prompt(prompt)?;
        let (mut text, mut failed) = (self.tokenizer.stream(true), None);
        let generated = generate(self.model.as_ref(), &ids, &self.config, &mut |id| {
            let written = text.push(id).map_err(anyhow::Error::from).and_then(|piece| {
                out.write_all(piece.as_bytes())?;
                Ok(out.flush()?)
            });
            failed = written.err();
            failed.is_none()
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        writeln!(out, "{}", text.finish()?)?;
        Ok(generated)
    }
}

fn check_sampling(it: &SamplingArgs) -> anyhow::Result<()> {
    let fine = it.temperature >= 0.0
        && it.temperature.is_finite()
        && (0.0..=1.0).contains(&it.top_p)
        && it.repetition_penalty > 0.0;
    if fine {
        return Ok(());
    }
    Err(user_error(format!(
        "--temperature must be at least 0, --top-p between 0 and 1 and --repetition-penalty above 0; got {}, {} and {}",
        it.temperature, it.top_p, it.repetition_penalty
    )))
}
