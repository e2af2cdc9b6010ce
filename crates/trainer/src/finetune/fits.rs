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
    plan::{Plan, RUNTIME_BYTES, Rehearsal, Room, rehearsal::Stage},
};
use halfbyte_data::{BatchConfig, Stream};
use halfbyte_frozen::Format;
use halfbyte_lora::LoraConfig;
use halfbyte_models::ModelFolder;
use halfbyte_tensor::Device;
use halfbyte_train::{OptimConfig, StepConfig};

/// What the backward pass finds of the activations.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// All of them.
    All,
    /// All but the outputs of cheap ops, which are computed again.
    Costly,
    /// The inputs of the blocks, which are run again: then with the outputs of cheap ops, or without them; and in host memory, or not.
    Inputs { cheap: bool, away: bool },
}

/// With less memory of a GPU than any other way that leaves host memory alone.
const LEAST: Kept = Kept::Inputs { cheap: false, away: false };
/// With the least memory of a GPU.
const AWAY: Kept = Kept::Inputs { cheap: false, away: true };

impl Kept {
    /// Whether blocks are run again.
    fn checkpointing(self) -> bool {
        matches!(self, Kept::Inputs { .. })
    }

    /// Whether their inputs wait in host memory.
    fn offloading(self) -> bool {
        matches!(self, Kept::Inputs { away: true, .. })
    }

    /// Whether the outputs of cheap ops are kept, too.
    fn keeps_cheap(self) -> bool {
        matches!(self, Kept::All | Kept::Inputs { cheap: true, .. })
    }

    /// How a run's steps are computed that keeps so much.
    pub(super) fn step(self, settings: &Settings) -> StepConfig {
        StepConfig {
            compute: settings.compute.dtype(),
            checkpointing: self.checkpointing(),
            offloading: self.offloading(),
            keeps_cheap: self.keeps_cheap(),
            max_grad_norm: settings.max_grad_norm,
            seed: settings.seed,
            // The time of each op is to be had only of kernels that are started by themselves.
            repeating: !settings.args.profile,
        }
    }

    /// For people.
    pub(super) fn word(self) -> &'static str {
        match self {
            Kept::All => "all kept",
            Kept::Costly => "kept",
            Kept::Inputs { away: false, .. } => "recomputed",
            Kept::Inputs { away: true, .. } => "recomputed from inputs in host memory",
        }
    }
}

/// A run that fits.
pub(super) struct Settled {
    pub(super) plan: Plan,
    pub(super) kept: Kept,
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
    kept: Kept,
}

/// Plans the run and chooses whether activations are kept, if that was left open.
///
/// Refuses one that needs more than is free, with what would fit.
pub(super) fn settle(it: &Question<'_>) -> anyhow::Result<Settled> {
    let settings = it.settings;
    let way = |kept| Way { format: settings.base.format(), batch_size: settings.batch_size, kept };
    let room = Room::on(it.device)?;
    let settled = |kept: Kept| Ok::<_, anyhow::Error>(Settled { plan: it.plan(way(kept))?, kept });
    // On a CPU other programs want memory, too; a GPU's memory is there to be used.
    let share = if *it.device == Device::Cpu { (4, 5) } else { (9, 10) };
    let is_held = |found: &Settled| room.is_none_or(|room| found.plan.total() <= room.free);
    let is_roomy = |found: &Settled| room.is_none_or(|room| found.plan.total() <= room.free / share.1 * share.0);
    let ways = ways(settings, it.device);
    let (last, roomier) = ways.split_last().expect("there is a way");
    let mut found = None;
    for kept in roomier {
        // Host memory is asked for where nothing else will do.
        let fits = |found: &Settled| if *kept == LEAST { is_held(found) } else { is_roomy(found) };
        found = Some(settled(*kept)?).filter(fits);
        if found.is_some() {
            break;
        }
    }
    let found = match found {
        Some(found) => found,
        None => settled(*last)?,
    };
    match room {
        Some(room) if found.plan.total() > room.free => Err(it.refused(&found, &room)?),
        _ => {
            check_host(&found.plan)?;
            Ok(found)
        }
    }
}

/// The ways that the settings leave open, the fastest first.
fn ways(settings: &Settings, device: &Device) -> Vec<Kept> {
    let Device::Cuda(_) = device else {
        return match settings.checkpointing {
            CheckpointingArg::On => vec![LEAST],
            CheckpointingArg::Off => vec![Kept::Costly],
            CheckpointingArg::Auto => vec![Kept::Costly, LEAST],
        };
    };
    let kept = [Kept::All, Kept::Costly];
    let recomputed = [Kept::Inputs { cheap: true, away: false }, LEAST];
    let away = [Kept::Inputs { cheap: true, away: true }, AWAY];
    let open: [&[Kept]; 3] = match (settings.checkpointing, settings.offloading) {
        // A contradiction with an offload that is asked for was refused.
        (CheckpointingArg::Off, _) => [&kept, &[], &[]],
        (_, CheckpointingArg::On) => [&[], &[], &away],
        (CheckpointingArg::On, CheckpointingArg::Off) => [&[], &recomputed, &[]],
        (CheckpointingArg::On, CheckpointingArg::Auto) => [&[], &recomputed, &[AWAY]],
        (CheckpointingArg::Auto, CheckpointingArg::Off) => [&kept, &recomputed, &[]],
        (CheckpointingArg::Auto, CheckpointingArg::Auto) => [&kept, &recomputed, &[AWAY]],
    };
    open.concat()
}

/// Refuses a plan for more page-locked memory than the host has.
fn check_host(plan: &Plan) -> anyhow::Result<()> {
    match memory::available() {
        Some(free) if plan.page_locked > free => Err(user_error(format!(
            "the inputs of the recomputed blocks would take {} of page-locked host memory, and {} of it are free; a shorter --max-length or a smaller --per-device-train-batch-size needs less, --offload-activations off none",
            mib(plan.page_locked),
            mib(free)
        ))),
        _ => Ok(()),
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
            // A run that goes on keeps the flags that it began with, whoever took them.
            from_flags: settings.args.init_adapter.is_none() && !settings.args.resume,
            step: way.kept.step(settings),
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

    /// What a run would need if its rows were read as it goes, where that is less.
    fn streamed(&self, total: usize) -> Option<usize> {
        let Train::Held(dataset, _) = self.data else { return None };
        let buffers = Stream::bytes_of(self.settings.shuffle_buffer().min(dataset.len()), self.settings.max_length);
        (buffers < dataset.bytes()).then(|| total - dataset.bytes() + buffers)
    }

    fn refused(&self, asked: &Settled, room: &Room) -> anyhow::Result<anyhow::Error> {
        let (plan, format) = (&asked.plan, self.settings.base.format());
        let way = |format, batch_size, kept| Way { format, batch_size, kept };
        let all = self.settings.batch_size;
        let mut alternatives = vec![
            ("--gradient-checkpointing on", way(format, all, LEAST)),
            ("--per-device-train-batch-size 1", way(format, 1, asked.kept)),
            ("both", way(format, 1, LEAST)),
            ("--quant nf4 with both", way(Format::QLORA, 1, LEAST)),
        ];
        if !room.is_host() {
            alternatives.insert(1, ("--offload-activations on", way(format, all, AWAY)));
            alternatives.push(("--offload-activations on with --per-device-train-batch-size 1", way(format, 1, AWAY)));
        }
        if let Some(streamed) = self.streamed(plan.total()).filter(|it| *it <= room.free && room.is_host()) {
            return Ok(user_error(format!(
                "{}, and this run needs about {} ({} for the rows); --streaming, which reads rows as training goes, would need {} and fit",
                room.described(),
                mib(plan.total()),
                mib(self.data_bytes),
                mib(streamed)
            )));
        }
        let mut ways = Vec::new();
        for (flags, way) in alternatives {
            let plan = self.plan(way)?;
            if check_host(&plan).is_ok() {
                ways.push((flags, plan.total()));
            }
        }
        let advice = room.way_out(ways, "a smaller model, a shorter --max-length");
        Ok(room.refusal("this run", plan, &advice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_page_locked_memory_than_there_is_is_refused_in_a_sentence() {
        assert!(check_host(&Plan::default()).is_ok());
        let refused = check_host(&Plan { page_locked: usize::MAX, ..Plan::default() }).map_err(|it| it.to_string());
        // Where the system does not tell what is free, nothing is refused.
        for part in ["page-locked host memory", "are free", "--max-length", "--offload-activations off"] {
            assert!(
                memory::available().is_none() || refused.as_ref().is_err_and(|it| it.contains(part)),
                "{refused:?}"
            );
        }
    }
}
