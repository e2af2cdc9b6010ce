//! The settings of a run, with every default filled in and every contradiction refused.

use super::{
    adapter_flags,
    args::FinetuneArgs,
    reads,
    rhythm::Cadence,
    scheduler,
    values::{CheckpointingArg, Method, OptimArg},
};
use crate::{
    base_record::{BaseFlags, BaseRecord},
    cli::{ComputeArg, DeviceArg, QuantArg, Switch},
    failure::user_error,
    load::BaseModel,
    places,
    sources::Rows,
    templates::Voice,
};
use halfbyte_data::Part;
use halfbyte_lora::LoraConfig;
use halfbyte_models::ModelFolder;
use halfbyte_paged_optim::{AdamWConfig, Schedule};
use halfbyte_train::EarlyStopping;
use std::path::{Path, PathBuf};

/// A run. `args` are the same settings as flags, to be written beside the result.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) args: FinetuneArgs,
    /// The flags before the adapter's defaults were filled in.
    pub(crate) given: FinetuneArgs,
    pub(crate) model: PathBuf,
    pub(crate) output: PathBuf,
    pub(crate) method: Method,
    pub(crate) base: BaseRecord,
    pub(crate) compute: ComputeArg,
    pub(crate) lora: LoraConfig,
    pub(crate) batch_size: usize,
    pub(crate) accumulation: usize,
    pub(crate) epochs: f64,
    pub(crate) max_length: usize,
    pub(crate) packing: Switch,
    pub(crate) seed: u64,
    pub(crate) adamw: AdamWConfig,
    pub(crate) optim: OptimArg,
    pub(crate) schedule: Schedule,
    pub(crate) learning_rate: f64,
    pub(crate) max_grad_norm: f32,
    pub(crate) save_dtype: ComputeArg,
    pub(crate) save_total_limit: usize,
    /// None where `--warmup-ratio` says it.
    pub(crate) warmup_steps: Option<Cadence>,
    pub(crate) logging_steps: Cadence,
    pub(crate) save_steps: Cadence,
    pub(crate) eval_steps: Cadence,
    pub(crate) early_stopping: Option<EarlyStopping>,
    pub(crate) device: DeviceArg,
    pub(crate) checkpointing: CheckpointingArg,
    pub(crate) offloading: CheckpointingArg,
}

impl Settings {
    /// Fills the defaults in and checks what can be checked without opening a file, but for what the hub has to be asked for.
    pub(crate) fn resolve(mut a: FinetuneArgs) -> anyhow::Result<Settings> {
        let need = |value: &Option<PathBuf>, flag: &str, what: &str| {
            value.clone().ok_or_else(|| user_error(format!("{flag} is missing: {what}")))
        };
        let model = need(&a.model, "--model", "the base model, a folder or a name on the hub")?;
        if a.data.is_empty() {
            return Err(user_error("--data is missing: files of rows to train on"));
        }
        let output = need(&a.output, "--output", "the folder for the adapter, logs and checkpoints")?;
        check_paths(&a)?;
        let told = places::told(&model);
        let model = places::model(&model)?;
        // So that the run goes on with what it began with.
        a.model = Some(model.pinned);
        let model = model.path;
        for (named, part) in [(&mut a.data, Part::Train), (&mut a.eval_data, Part::HeldOut)] {
            named.iter_mut().try_for_each(|it| places::pinned(it, part).map(|found| *it = found))?;
        }
        take_stored_format(&mut a, &model)?;
        let (method, quant) = method_and_quant(&a)?;
        (a.method, a.quant) = (Some(method), Some(quant));
        let base = BaseRecord {
            quant,
            double_quant: *a.double_quant.get_or_insert(Switch::On),
            block_size: *a.block_size.get_or_insert(64),
            weights: None,
        };
        let compute = compute(&a);
        (a.compute_dtype, a.bf16, a.fp16) = (Some(compute), false, false);
        let given = a.clone();
        let lora = adapter_flags::config(&mut a, told)?;
        let learning_rate = *a.learning_rate.get_or_insert(2e-4);
        let settings = Settings {
            model,
            output,
            method,
            base,
            compute,
            lora,
            batch_size: positive(&mut a.per_device_train_batch_size, 4, "--per-device-train-batch-size")?,
            accumulation: positive(&mut a.gradient_accumulation_steps, 1, "--gradient-accumulation-steps")?,
            epochs: *a.num_train_epochs.get_or_insert(1.0),
            max_length: *a.max_length.get_or_insert(512),
            packing: *a.packing.get_or_insert(Switch::Off),
            seed: *a.seed.get_or_insert(42),
            adamw: AdamWConfig {
                beta1: *a.adam_beta1.get_or_insert(0.9),
                beta2: *a.adam_beta2.get_or_insert(0.999),
                eps: *a.adam_epsilon.get_or_insert(1e-8),
                weight_decay: *a.weight_decay.get_or_insert(0.0),
            },
            optim: *a.optim.get_or_insert(OptimArg::AdamwTorch),
            schedule: scheduler::schedule(&mut a, learning_rate)?,
            learning_rate,
            // What is a share of the run becomes a number of steps when these are known.
            warmup_steps: warmup_steps(&mut a),
            logging_steps: *a.logging_steps.get_or_insert(Cadence::Steps(1)),
            save_steps: *a.save_steps.get_or_insert(Cadence::Steps(500)),
            eval_steps: *a.eval_steps.get_or_insert(Cadence::Steps(0)),
            max_grad_norm: *a.max_grad_norm.get_or_insert(1.0),
            save_dtype: *a.save_dtype.get_or_insert(ComputeArg::Bf16),
            save_total_limit: positive(&mut a.save_total_limit, 2, "--save-total-limit")?,
            early_stopping: early_stopping(&a)?,
            device: *a.device.get_or_insert(DeviceArg::Auto),
            checkpointing: *a.gradient_checkpointing.get_or_insert(CheckpointingArg::Auto),
            offloading: *a.offload_activations.get_or_insert(CheckpointingArg::Auto),
            args: a,
            given,
        };
        settings.check()?;
        Ok(settings)
    }

    /// The rows to train on, or those that are held out; refused where the run would write over them.
    pub(crate) fn rows(&self, part: Part, base: &BaseModel) -> anyhow::Result<Rows> {
        let (named, range) = match part {
            Part::Train => (&self.args.data, &self.args.rows),
            Part::HeldOut => (&self.args.eval_data, &self.args.eval_rows),
        };
        let flags = (&self.args.row_flags(), self.max_length, range.as_deref());
        let rows = Rows::find(named, part, flags, (base, &[Voice::of_training(base)]))?;
        let mut files = rows.sources.iter().flat_map(|it| it.files.paths());
        files.try_for_each(|it| reads::refuse(&self.output, it))?;
        Ok(rows)
    }

    /// Whether the held-out loss is measured on the way.
    fn evaluates(&self) -> bool {
        !self.eval_steps.is_never()
    }

    /// Whether the state with the lowest held-out loss is the result.
    pub(crate) fn wants_best(&self) -> bool {
        self.args.load_best_model_at_end || self.early_stopping.is_some()
    }

    /// The share of the rows that may be doubtful.
    pub(crate) fn doubtful_share(&self) -> f64 {
        self.args.max_doubtful_rows.unwrap_or(0.1)
    }

    fn check(&self) -> anyhow::Result<()> {
        if self.method != Method::Full {
            self.lora.validate()?;
        }
        if !(self.learning_rate.is_finite() && self.learning_rate >= 0.0) {
            return Err(user_error(format!(
                "--learning-rate must be a number of at least 0, got {}",
                self.learning_rate
            )));
        }
        if !(self.epochs.is_finite() && self.epochs > 0.0) {
            return Err(user_error(format!("--num-train-epochs must be above 0, got {}", self.epochs)));
        }
        self.check_optimizer()?;
        if let Some(ratio) = self.args.warmup_ratio {
            if self.args.warmup_steps.is_some() {
                return Err(user_error("--warmup-ratio and --warmup-steps say the same in two ways; leave one out"));
            }
            if !(0.0..=1.0).contains(&ratio) {
                return Err(user_error(format!("--warmup-ratio must be between 0 and 1, got {ratio}")));
            }
        }
        let doubtful = self.doubtful_share();
        if !(0.0..=1.0).contains(&doubtful) {
            return Err(user_error(format!("--max-doubtful-rows must be between 0 and 1, got {doubtful}")));
        }
        if self.args.max_steps == Some(0) {
            return Err(user_error("--max-steps must be at least 1"));
        }
        let needs_eval_data = [
            ("--eval-labels", self.args.eval_labels.is_some()),
            ("--samples", self.args.samples > Some(0)),
            ("--eval-rows", self.args.eval_rows.is_some()),
            ("--eval-steps", self.evaluates()),
            ("--load-best-model-at-end", self.args.load_best_model_at_end),
            ("--early-stopping-patience", self.early_stopping.is_some()),
        ];
        if let Some((flag, _)) = needs_eval_data.iter().find(|it| it.1 && !self.holds_out(it.0)) {
            return Err(user_error(format!(
                "{flag} is about held-out rows, but there are none; add --eval-data FILE, or --eval-split 0.05"
            )));
        }
        self.check_data()?;
        if self.wants_best() && !self.evaluates() {
            return Err(user_error(
                "the best state is found by its held-out loss, which is measured only before and after; add --eval-steps N",
            ));
        }
        if self.logging_steps.is_never() {
            return Err(user_error("--logging-steps must be at least 1"));
        }
        if self.args.max_minutes.is_some_and(|it| !(it > 0.0 && it.is_finite())) {
            return Err(user_error("--max-minutes must be above 0"));
        }
        if (self.checkpointing, self.offloading) == (CheckpointingArg::Off, CheckpointingArg::On) {
            return Err(user_error(
                "--offload-activations on keeps the inputs of blocks that are recomputed, and --gradient-checkpointing off recomputes none; leave one out",
            ));
        }
        if self.args.overwrite && self.args.resume {
            return Err(user_error("--overwrite starts again and --resume goes on; choose one"));
        }
        Ok(())
    }
}

impl Settings {
    /// What AdamW would refuse, too, but after the model was loaded and without the names of the flags.
    fn check_optimizer(&self) -> anyhow::Result<()> {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.adamw;
        let clip = f64::from(self.max_grad_norm);
        let resident = self.args.optim_resident_mib.unwrap_or(1.0);
        let rules = [
            ("--adam-beta1", beta1, "at least 0 and below 1", (0.0..1.0).contains(&beta1)),
            ("--adam-beta2", beta2, "at least 0 and below 1", (0.0..1.0).contains(&beta2)),
            (
                "--adam-epsilon",
                eps,
                "above 0 and within the range of f32",
                eps as f32 > 0.0 && (eps as f32).is_finite(),
            ),
            ("--weight-decay", weight_decay, "at least 0", weight_decay >= 0.0 && weight_decay.is_finite()),
            ("--max-grad-norm", clip, "at least 0 (0 leaves gradients as they are)", clip >= 0.0),
            ("--optim-resident-mib", resident, "above 0", resident > 0.0 && resident.is_finite()),
        ];
        for (flag, value, wanted, holds) in rules {
            if !holds {
                return Err(user_error(format!("{flag} must be {wanted}, got {value}")));
            }
        }
        Ok(())
    }
}

fn warmup_steps(a: &mut FinetuneArgs) -> Option<Cadence> {
    match a.warmup_ratio {
        // That both are given is refused with the other contradictions.
        Some(_) => a.warmup_steps,
        None => Some(*a.warmup_steps.get_or_insert(Cadence::Steps(0))),
    }
}

fn early_stopping(a: &FinetuneArgs) -> anyhow::Result<Option<EarlyStopping>> {
    let threshold = a.early_stopping_threshold.unwrap_or(0.0);
    if !(threshold >= 0.0 && threshold.is_finite()) {
        return Err(user_error(format!("--early-stopping-threshold must be at least 0, got {threshold}")));
    }
    match a.early_stopping_patience {
        Some(0) => Err(user_error("--early-stopping-patience must be at least 1")),
        patience => Ok(patience.map(|patience| EarlyStopping { patience, threshold })),
    }
}

/// Paths are written into the run's files, which are text.
fn check_paths(a: &FinetuneArgs) -> anyhow::Result<()> {
    let single = [("--model", &a.model), ("--output", &a.output), ("--init-adapter", &a.init_adapter)];
    let single = single.iter().flat_map(|(flag, path)| path.iter().map(move |it| (flag, it)));
    let several = [("--data", &a.data), ("--eval-data", &a.eval_data)];
    let several = several.iter().flat_map(|(flag, paths)| paths.iter().map(move |it| (flag, it)));
    match single.chain(several).find(|it| it.1.to_str().is_none()) {
        None => Ok(()),
        Some((flag, path)) => Err(user_error(format!(
            "{flag}: the path {} is not UTF-8, and the run's settings are saved as text; give it another name",
            path.display()
        ))),
    }
}

/// A base that is stored quantised is used as it is; an adapter on it is QLoRA, whatever the flag calls it.
fn take_stored_format(a: &mut FinetuneArgs, model: &Path) -> anyhow::Result<()> {
    // A folder that cannot be opened is reported where it is opened in earnest.
    let Ok(folder) = ModelFolder::open(model) else { return Ok(()) };
    let Some(stored) = BaseRecord::stored(&folder)? else { return Ok(()) };
    if a.method == Some(Method::Full) {
        return Ok(());
    }
    let flags = BaseFlags { quant: a.quant, double_quant: a.double_quant, block_size: a.block_size };
    stored.refuse_others(&flags, model)?;
    a.method = Some(Method::Qlora);
    (a.quant, a.double_quant) = (Some(stored.quant), Some(stored.double_quant));
    a.block_size = Some(stored.block_size);
    Ok(())
}

fn method_and_quant(a: &FinetuneArgs) -> anyhow::Result<(Method, QuantArg)> {
    Ok(match (a.method, a.quant) {
        (None, None) => (Method::Qlora, QuantArg::Nf4),
        (None, Some(QuantArg::None)) => (Method::Lora, QuantArg::None),
        (None, Some(quant)) => (Method::Qlora, quant),
        (Some(Method::Qlora), None) => (Method::Qlora, QuantArg::Nf4),
        (Some(method), None) => (method, QuantArg::None),
        (Some(Method::Qlora), Some(QuantArg::None)) => {
            return Err(user_error(
                "--method qlora is LoRA on a quantised base, but --quant is none; choose a format, or --method lora",
            ));
        }
        (Some(Method::Qlora), Some(quant)) => (Method::Qlora, quant),
        (Some(method), Some(QuantArg::None)) => (method, QuantArg::None),
        (Some(Method::Lora), Some(_)) => {
            return Err(user_error(
                "--method lora keeps the base as loaded, but --quant asks for a quantised one; use --method qlora",
            ));
        }
        (Some(Method::Full), Some(_)) => {
            return Err(user_error("--method full trains all weights, which cannot be quantised; leave --quant out"));
        }
    })
}

fn compute(a: &FinetuneArgs) -> ComputeArg {
    match (a.compute_dtype, a.fp16) {
        (Some(it), _) => it,
        (None, true) => ComputeArg::F16,
        (None, false) => ComputeArg::Bf16,
    }
}

fn positive(value: &mut Option<usize>, default: usize, flag: &str) -> anyhow::Result<usize> {
    match *value.get_or_insert(default) {
        0 => Err(user_error(format!("{flag} must be at least 1"))),
        n => Ok(n),
    }
}
