//! What the flags of `halfbyte finetune` may say.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// An adapter on a quantised base.
    Qlora,
    /// An adapter on a base kept as loaded.
    Lora,
    /// All weights.
    Full,
}

/// Which biases train along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BiasArg {
    /// None.
    None,
    /// Every bias of the model.
    All,
    /// The biases of the adapted layers.
    #[value(name = "lora_only")]
    LoraOnly,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerArg {
    /// It does not.
    #[value(alias = "constant_with_warmup")]
    Constant,
    /// Linearly to zero.
    Linear,
    /// Along half a cosine to zero; `num_cycles` waves with --lr-scheduler-kwargs.
    Cosine,
    /// Along half a cosine to `min_lr`, or `min_lr_rate` of the largest.
    #[value(name = "cosine_with_min_lr")]
    CosineWithMinLr,
    /// Along half a cosine to zero, `num_cycles` times.
    #[value(name = "cosine_with_restarts")]
    CosineWithRestarts,
    /// Along a `power` of what is left, to `lr_end`.
    Polynomial,
    /// With the root of the steps.
    #[value(name = "inverse_sqrt")]
    InverseSqrt,
    /// Over the last `num_decay_steps` steps, to `min_lr_ratio` of the largest.
    #[value(name = "warmup_stable_decay")]
    WarmupStableDecay,
}

impl fmt::Display for SchedulerArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().expect("none is hidden").get_name())
    }
}

/// How the optimizer keeps its state. Where it lies is `optim_resident_mib`'s matter, so the names that say "paged" in
/// transformers mean the same as those that do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum OptimArg {
    /// AdamW with two f32 numbers a parameter.
    #[value(name = "adamw_torch", aliases = ["adamw_torch_fused", "paged_adamw", "paged_adamw_32bit"])]
    #[serde(rename = "adamw_torch", alias = "adamw_torch_fused", alias = "paged_adamw", alias = "paged_adamw_32bit")]
    AdamwTorch,
    /// AdamW with two bytes a parameter, as bitsandbytes has it.
    #[value(name = "adamw_8bit", aliases = ["adamw_bnb_8bit", "paged_adamw_8bit"])]
    #[serde(rename = "adamw_8bit", alias = "adamw_bnb_8bit", alias = "paged_adamw_8bit")]
    Adamw8bit,
}

/// Whether blocks are recomputed in the backward pass instead of being kept, and whether their inputs wait in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointingArg {
    /// If the plan does not fit into the free memory otherwise.
    Auto,
    /// Yes.
    #[value(alias = "true")]
    On,
    /// No.
    #[value(alias = "false")]
    Off,
}
