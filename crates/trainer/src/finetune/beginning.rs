//! What a run begins with: a fresh adapter, one from disk, or the model itself.

use super::{ADAPTER, adapter_flags, settings::Settings, values::Method};
use crate::{
    console::{say, warn},
    failure::user_error,
    load::{self, Waiting},
    places,
};
use halfbyte_lora::{Adapter, LoraConfig, Prepare, Takeover, attach};
use halfbyte_models::{Model, ModelFolder};
use halfbyte_tensor::Device;
use std::{path::PathBuf, sync::Arc};

/// Settled before the base is loaded, since an adapter may begin with a part of it.
pub(super) enum Beginning {
    /// The whole model trains.
    Model,
    /// A fresh adapter, and what of the base it takes over.
    Fresh(Option<Box<Takeover>>),
    /// The adapter that `--init-adapter` names.
    File(Waiting),
}

impl Beginning {
    /// The adapter that the run begins with, if there is one.
    pub(super) fn named(settings: &Settings) -> anyhow::Result<Vec<(String, PathBuf)>> {
        let init = settings.args.init_adapter.as_ref().filter(|_| settings.method != Method::Full);
        init.map(|it| Ok((ADAPTER.to_owned(), places::adapter(it)?))).into_iter().collect()
    }

    pub(super) fn of(
        settings: &Settings,
        named: &[(String, PathBuf)],
        folder: &ModelFolder,
    ) -> anyhow::Result<Beginning> {
        if settings.method == Method::Full {
            return Ok(Beginning::Model);
        }
        if let Some((_, dir)) = named.first() {
            let waiting = Waiting::read(named, folder, settings.base)?;
            if waiting.of_token_rows().is_some() {
                return Err(user_error(format!(
                    "{}: --init-adapter was trained on some rows of a table alone (trainable_token_indices), which cannot go on here; merge it into the base (halfbyte merge) and begin another",
                    dir.display()
                )));
            }
            return Ok(Beginning::File(waiting));
        }
        let head = load::head(folder)?;
        Ok(Beginning::Fresh(Takeover::fresh(&settings.lora, head.as_deref(), settings.seed)?.map(Box::new)))
    }

    /// The adapter that will train: what its file says, or the flags.
    pub(super) fn config<'a>(&'a self, settings: &'a Settings) -> &'a LoraConfig {
        match self {
            Beginning::File(waiting) => waiting.configs().next().unwrap_or(&settings.lora),
            Beginning::Model | Beginning::Fresh(_) => &settings.lora,
        }
    }

    /// Who sees the base's matrices before they are stored.
    pub(super) fn prepare(&mut self) -> Option<&mut dyn Prepare> {
        match self {
            Beginning::Fresh(Some(takeover)) => Some(takeover.as_mut()),
            Beginning::File(waiting) => Some(waiting),
            Beginning::Model | Beginning::Fresh(None) => None,
        }
    }

    /// The adapter for the loaded base, and the settings that are then true: those of an adapter from disk replace the flags.
    pub(super) fn adapter(
        self,
        mut settings: Settings,
        model: &mut dyn Model,
        device: &Device,
    ) -> anyhow::Result<(Settings, Option<Arc<Adapter>>)> {
        let (adapter, report) = match self {
            Beginning::Model => return Ok((settings, None)),
            Beginning::File(waiting) => {
                let Some(mut adapter) = waiting.adapters(model, device)?.pop() else {
                    unreachable!("one adapter was read")
                };
                adapter.config.base_model_name_or_path = settings.lora.base_model_name_or_path.clone();
                adapter.config.revision = settings.lora.revision.clone();
                let config = &adapter.config;
                let asked = adapter_flags::asked(&settings.given, &settings.lora, config);
                adapter_flags::differences(&asked, config, &model.modules())?.iter().for_each(|it| warn(it));
                adapter_flags::adopt(&mut settings.args, config);
                settings.lora = config.clone();
                return Ok((settings, Some(Arc::new(adapter))));
            }
            Beginning::Fresh(Some(takeover)) => takeover.attach(&model.modules(), ADAPTER)?,
            Beginning::Fresh(None) => attach(&model.modules(), &settings.lora, ADAPTER, settings.seed)?,
        };
        adapter.to_device(device)?;
        settings.lora = adapter.config.clone();
        report.warnings.iter().for_each(|it| warn(it));
        say(&format!(
            "{} layers adapted, rank {}, lora_alpha {}",
            report.adapted.len(),
            settings.lora.rank,
            settings.lora.lora_alpha
        ));
        Ok((settings, Some(Arc::new(adapter))))
    }
}
