//! Whether a run fits, and whether its activations are kept: settled by rehearsals before the model is loaded.

use super::{
    data::Train,
    settings::Settings,
    values::{CheckpointingArg, Method},
};
use crate::{
    console::mib,
    failure::user_error,
    memory,
    plan::{Plan, Rehearsal, rehearsal::Stage},
};
use halfbyte_data::{BatchConfig, Stream};
use halfbyte_frozen::Format;
use halfbyte_lora::LoraConfig;
use halfbyte_models::ModelFolder;
use halfbyte_tensor::Device;
use halfbyte_train::{OptimConfig, StepConfig};

/// Measured on an idle process with a tokenizer of 49,152 entries loaded.
pub(crate) const RUNTIME_BYTES: usize = 72 << 20;

/// A run that fits.
pub(super) struct Settled {
    pub(super) plan: Plan,
    /// Whether blocks are recomputed in the backward pass.
    pub(super) checkpointing: bool,
}

/// What the plans of a run have in common.
pub(super) struct Question<'a> {
    pub(super) settings: &'a Settings,
    pub(super) folder: &'a ModelFolder,
    pub(super) data: &'a Train,
    /// Bytes of all data sets.
    pub(super) data_bytes: usize,
    /// The adapter that will train.
    pub(super) lora: &'a LoraConfig,
    pub(super) device: &'a Device,
}

/// One way to run it.
#[derive(Clone, Copy)]
struct Way {
    format: Format,
    batch_size: usize,
    checkpointing: bool,
}

/// Plans the run and chooses whether activations are kept, if that was left open.
///
/// Refuses one that needs more than is free, with what would fit.
pub(super) fn settle(it: &Question<'_>) -> anyhow::Result<Settled> {
    let settings = it.settings;
    let kept = Way { format: settings.base.format(), batch_size: settings.batch_size, checkpointing: false };
    let recomputed = Way { checkpointing: true, ..kept };
    let free = it.free()?;
    let settled = |way: Way| Ok::<_, anyhow::Error>(Settled { plan: it.plan(way)?, checkpointing: way.checkpointing });
    let found = match settings.checkpointing {
        CheckpointingArg::On => settled(recomputed)?,
        CheckpointingArg::Off => settled(kept)?,
        CheckpointingArg::Auto => {
            let found = settled(kept)?;
            // On a CPU other programs want memory, too.
            let share = if *it.device == Device::Cpu { (4, 5) } else { (9, 10) };
            match free {
                Some((free, _)) if found.plan.total() > free / share.1 * share.0 => settled(recomputed)?,
                _ => found,
            }
        }
    };
    match free {
        Some(memory) if found.plan.total() > memory.0 => Err(it.refused(&found, memory)?),
        _ => Ok(found),
    }
}

impl Question<'_> {
    fn plan(&self, way: Way) -> anyhow::Result<Plan> {
        let Question { settings, folder, data, .. } = *self;
        let full = settings.method == Method::Full;
        let config = BatchConfig { batch_size: way.batch_size, ..settings.batch_config() };
        let rehearsal = Rehearsal {
            folder,
            format: (!full).then_some(way.format),
            lora: (!full).then_some(self.lora),
            step: StepConfig {
                compute: settings.compute.dtype(),
                checkpointing: way.checkpointing,
                max_grad_norm: settings.max_grad_norm,
                seed: settings.seed,
            },
            optim: OptimConfig { adamw: settings.adamw, state: settings.optimizer_state(), ..OptimConfig::default() },
            lengths: data.largest(&config, settings.max_length)?,
            accumulates: settings.accumulation > 1,
        };
        let mut plan = rehearsal.plan(&Stage::like(self.device))?;
        if *self.device == Device::Cpu {
            (plan.data, plan.runtime) = (self.data_bytes, RUNTIME_BYTES);
        }
        Ok(plan)
    }

    /// Bytes that can be had, and that there are; none where the system does not tell.
    fn free(&self) -> anyhow::Result<Option<(usize, Option<usize>)>> {
        Ok(match self.device {
            Device::Cuda(gpu) => {
                let (free, total) = gpu.memory()?;
                Some((free, Some(total)))
            }
            Device::Cpu | Device::Dry(_) => memory::available().map(|it| (it, None)),
        })
    }

    /// What a run would need if its rows were read as it goes, where that is less.
    fn streamed(&self, total: usize) -> Option<usize> {
        let Train::Held(dataset, _) = self.data else { return None };
        let buffers = Stream::bytes_of(self.settings.shuffle_buffer().min(dataset.len()), self.settings.max_length);
        (buffers < dataset.bytes()).then(|| total - dataset.bytes() + buffers)
    }

    fn refused(&self, asked: &Settled, (free, total): (usize, Option<usize>)) -> anyhow::Result<anyhow::Error> {
        let (plan, format) = (&asked.plan, self.settings.base.format());
        let way = |format, batch_size, checkpointing| Way { format, batch_size, checkpointing };
        let all = self.settings.batch_size;
        let alternatives = [
            ("--gradient-checkpointing on", way(format, all, true)),
            ("--per-device-train-batch-size 1", way(format, 1, asked.checkpointing)),
            ("both", way(format, 1, true)),
            ("--quant nf4 with both", way(Format::QLORA, 1, true)),
        ];
        let elsewhere = if total.is_some() { " or --device cpu" } else { "" };
        if let Some(streamed) = self.streamed(plan.total()).filter(|it| *it <= free && total.is_none()) {
            return Ok(user_error(format!(
                "{} of memory are free, and this run needs about {} ({} for the rows); --streaming, which reads rows as training goes, would need {} and fit",
                mib(free),
                mib(plan.total()),
                mib(self.data_bytes),
                mib(streamed)
            )));
        }
        let mut advice = format!("nothing short of a smaller model, a shorter --max-length{elsewhere} fits");
        for (flags, way) in alternatives {
            let plan = self.plan(way)?;
            if plan.total() <= free {
                advice = format!("{flags} would need {} and fit", mib(plan.total()));
                break;
            }
        }
        let has = match total {
            Some(total) => format!("the GPU has {} of {} free", mib(free), mib(total)),
            None => format!("{} of memory are free", mib(free)),
        };
        Ok(user_error(format!(
            "{has}, and this run needs about {} ({} for the weights, {} for activations); {advice}",
            mib(plan.total()),
            mib(plan.frozen_matrices + plan.dense_weights + plan.trainable),
            mib(plan.activations)
        )))
    }
}
