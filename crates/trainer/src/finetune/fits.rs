//! Whether a run fits the GPU: said before the model is loaded, with what would fit.

use super::{args::Method, settings::Settings};
use crate::{
    console::mib,
    failure::user_error,
    plan::{Plan, Shape},
};
use halfbyte_data::{BatchConfig, Dataset};
use halfbyte_frozen::Format;
use halfbyte_models::ModelFolder;
use halfbyte_tensor::Device;

/// Refuses a run that needs more than the GPU has free.
pub(super) fn check(settings: &Settings, folder: &ModelFolder, data: &Dataset, device: &Device) -> anyhow::Result<()> {
    let Device::Cuda(gpu) = device else { return Ok(()) };
    let (free, total) = gpu.memory()?;
    let compute = settings.compute.dtype();
    let trains = (settings.method == Method::Full).then(|| settings.optimizer_state());
    let largest = |batch_size: usize| -> anyhow::Result<usize> {
        Ok(data.epoch_size(&BatchConfig { batch_size, ..settings.batch_config() })?.largest.iter().sum())
    };
    let (all, one) = (largest(settings.batch_size)?, largest(1)?);
    let need = |format: Format, rows: usize, checkpointing: bool| {
        let shape = Shape { rows, compute, checkpointing };
        Ok::<_, halfbyte_models::Error>(
            Plan::before_loading(folder, format, trains, shape)?.on_gpu(folder.config(), shape),
        )
    };
    let format = settings.base.format();
    let kept = settings.keeps_activations();
    let asked = need(format, all, !kept)?;
    if asked.total() <= free {
        return Ok(());
    }
    let alternatives = [
        ("--gradient-checkpointing on", need(format, all, true)?),
        ("--per-device-train-batch-size 1", need(format, one, !kept)?),
        ("both", need(format, one, true)?),
        ("--quant nf4 with both", need(Format::QLORA, one, true)?),
    ];
    let fitting = alternatives.iter().find(|it| it.1.total() <= free);
    let advice = fitting.map_or_else(
        || "nothing short of a smaller model, a shorter --max-length or --device cpu fits".to_owned(),
        |(flags, plan)| format!("{flags} would need {} and fit", mib(plan.total())),
    );
    Err(user_error(format!(
        "the GPU has {} of {} free, and this run needs about {} ({} for the weights, {} for activations); {advice}",
        mib(free),
        mib(total),
        mib(asked.total()),
        mib(asked.frozen_matrices + asked.dense_weights + asked.trainable),
        mib(asked.activations)
    )))
}
