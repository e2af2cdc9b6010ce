//! How the base of an adapter is kept: in which format, and who decides.

use crate::{
    cli::{QuantArg, Switch},
    console,
    failure::user_error,
    fingerprint::Fingerprint,
};
use clap::ValueEnum;
use halfbyte_files::{read_text, write_atomic};
use halfbyte_frozen::{Format, Quant, bitsandbytes};
use halfbyte_models::ModelFolder;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file beside an adapter that says what its base was kept as while it was trained.
const BASE_RECORD: &str = "halfbyte_base.json";

/// What the base was kept as while an adapter was trained: a merge has to happen onto the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BaseRecord {
    pub(crate) quant: QuantArg,
    pub(crate) double_quant: Switch,
    pub(crate) block_size: usize,
    /// By what its weights are known, where they are not stored quantised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) weights: Option<Fingerprint>,
}

/// The flags that say how to keep the base, as far as they were given.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BaseFlags {
    pub(crate) quant: Option<QuantArg>,
    pub(crate) double_quant: Option<Switch>,
    pub(crate) block_size: Option<usize>,
}

impl std::fmt::Display for BaseRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quant = self.quant.to_possible_value().map_or_else(String::new, |it| it.get_name().to_owned());
        match self.quant {
            QuantArg::None => f.write_str("loaded (quant none)"),
            QuantArg::Int8 => f.write_str(&quant),
            _ if self.double_quant == Switch::On => {
                write!(f, "{quant}, blocks of {}, doubly quantised", self.block_size)
            }
            _ => write!(f, "{quant}, blocks of {}", self.block_size),
        }
    }
}

impl BaseRecord {
    /// The record beside an adapter, if Halfbyte wrote it.
    pub(crate) fn read(adapter: &Path) -> anyhow::Result<Option<BaseRecord>> {
        let path = adapter.join(BASE_RECORD);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_text(&path)?;
        serde_json::from_str(&text).map(Some).map_err(|e| user_error(format!("{}: {e}", path.display())))
    }

    /// Writes the record beside an adapter.
    pub(crate) fn write(&self, adapter: &Path) -> anyhow::Result<()> {
        Ok(write_atomic(&adapter.join(BASE_RECORD), serde_json::to_string_pretty(self)?.as_bytes())?)
    }

    /// The storage format.
    pub(crate) fn format(&self) -> Format {
        self.quant.format(self.double_quant == Switch::On, self.block_size)
    }

    /// Warns where an adapter was trained on other weights than these, or on a base that was kept in another way: its losses will
    /// differ from those it was trained to.
    pub(crate) fn compare(
        &self,
        adapter: &Path,
        (folder, weights): (&ModelFolder, Option<Fingerprint>),
    ) -> anyhow::Result<()> {
        let Some(trained) = BaseRecord::read(adapter)? else { return Ok(()) };
        if trained.format() != self.format() {
            console::warn(&format!(
                "{} was trained on a base kept as {trained}, this one is {self}",
                adapter.display(),
            ));
        }
        if let (Some(then), Some(now)) = (trained.weights, weights)
            && then != now
        {
            console::warn(&format!(
                "{} was trained on other weights than those of {}: another model of this shape, one that an adapter is merged into, or the same in another precision",
                adapter.display(),
                folder.dir().display()
            ));
        }
        Ok(())
    }

    /// What a folder's linear layers are stored as, where they are quantised already.
    pub(crate) fn stored(folder: &ModelFolder) -> anyhow::Result<Option<BaseRecord>> {
        if !folder.is_quantized() {
            return Ok(None);
        }
        let format = bitsandbytes::stored_format(folder.files())
            .map_err(|e| user_error(format!("{}: {e}", folder.dir().display())))?;
        let Some(format) = format else {
            return Err(user_error(format!(
                "{}: config.json says that the weights are quantised (quantization_config), but every layer is dense; if these are the weights that are meant, remove quantization_config from config.json (--quant nf4 then quantises them), or fetch the quantised ones",
                folder.dir().display()
            )));
        };
        let quant = match format.quant {
            Quant::Fp4 => QuantArg::Fp4,
            Quant::Int8 => QuantArg::Int8,
            _ => QuantArg::Nf4,
        };
        let double_quant = if format.double_quant { Switch::On } else { Switch::Off };
        Ok(Some(BaseRecord { quant, double_quant, block_size: format.block_size, weights: None }))
    }

    /// Fails if a flag asks for another format than that in which the weights are stored.
    pub(crate) fn refuse_others(&self, flags: &BaseFlags, model: &Path) -> anyhow::Result<()> {
        let four_bit = self.quant != QuantArg::Int8;
        let other = [
            ("--quant", flags.quant.is_some_and(|it| it != self.quant)),
            ("--double-quant", four_bit && flags.double_quant.is_some_and(|it| it != self.double_quant)),
            ("--block-size", four_bit && flags.block_size.is_some_and(|it| it != self.block_size)),
        ];
        match other.iter().find(|it| it.1) {
            None => Ok(()),
            Some((flag, _)) => Err(user_error(format!(
                "{flag}: {} is stored quantised already, as {self}, and is used as it is; leave the flag out, or take the original weights",
                model.display()
            ))),
        }
    }

    /// How the base is kept: as stored, where it is quantised already; else by the flags; else as written beside the first
    /// adapter; else dense. `quant` alone means QLoRA's block size and double quantisation.
    pub(crate) fn resolve(
        folder: &ModelFolder,
        flags: &BaseFlags,
        adapter: Option<&Path>,
    ) -> anyhow::Result<BaseRecord> {
        if let Some(stored) = BaseRecord::stored(folder)? {
            stored.refuse_others(flags, folder.dir())?;
            return Ok(stored);
        }
        let recorded = adapter.map(BaseRecord::read).transpose()?.flatten();
        if let (Some(dir), None, None) = (adapter, recorded, flags.quant) {
            console::warn(&format!(
                "nothing beside the adapter {} says how its base was quantised; the base is used as loaded (--quant says otherwise)",
                dir.display()
            ));
        }
        let fallback = recorded.unwrap_or(BaseRecord {
            quant: QuantArg::None,
            double_quant: Switch::On,
            block_size: 64,
            weights: None,
        });
        Ok(BaseRecord {
            quant: flags.quant.unwrap_or(fallback.quant),
            double_quant: flags.double_quant.unwrap_or(fallback.double_quant),
            block_size: flags.block_size.unwrap_or(fallback.block_size),
            weights: None,
        })
    }
}
