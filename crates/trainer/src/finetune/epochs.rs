//! What a step, an epoch and a run come to, known from the lengths of the rows alone and said before the first step.

use super::{data::Train, settings::Settings};
use crate::{cli::Switch, console::thousands};
use halfbyte_data::{BatchConfig, Dataset, EpochSize, Examples, Packing, Stream};
use halfbyte_tensor::Device;
use halfbyte_train::{Alone, Length, Ranks};

impl Settings {
    /// How the rows become batches.
    pub(super) fn batch_config(&self) -> BatchConfig {
        BatchConfig {
            batch_size: self.batch_size,
            shuffle: (!self.args.no_shuffle).then_some(self.seed),
            drop_last: self.args.drop_last,
            packing: if self.packing == Switch::On { self.packed() } else { Packing::Off },
        }
    }

    fn packed(&self) -> Packing {
        Packing::On { max_length: self.max_length }
    }

    pub(super) fn length(&self) -> Length {
        Length { accumulation: self.accumulation, epochs: self.epochs, max_steps: self.args.max_steps }
    }

    /// Steps of an epoch, and of the run.
    pub(super) fn steps(&self, data: Examples<'_>) -> anyhow::Result<(usize, usize)> {
        // Where a pass is not counted, the number of steps is given.
        Ok(self.steps_of(data.batches_per_pass(&self.batch_config())?.unwrap_or(usize::MAX)))
    }

    /// Steps of an epoch that has so many batches, and of the run. Every epoch has as many batches as the others, packed or
    /// not.
    fn steps_of(&self, batches_per_epoch: usize) -> (usize, usize) {
        self.length().steps(batches_per_epoch, Alone.world())
    }
}

/// Tokens that take as long as what a batch costs besides its tokens: decoding the weights, launches. On the CPU a thirtieth of
/// a batch of 512 tokens (`docs/performance.md`); on an H100, where LLaMA-7B took 258 ms for 2,048 tokens and 793 ms for 8,192,
/// what is left when the tokens' share is taken away.
fn overhead(device: &Device) -> usize {
    match device {
        Device::Cuda(_) => 920,
        _ => 16,
    }
}

/// Lines for people.
pub(super) fn lines(settings: &Settings, data: &Train, device: &Device) -> anyhow::Result<Vec<String>> {
    let config = settings.batch_config();
    let data = match data {
        Train::Held(dataset, _) => dataset,
        Train::Streamed(stream) => return Ok(vec![stream_line(settings, stream, settings.steps(stream.into())?.1)]),
    };
    let size = data.epoch_size(&config)?;
    let mut lines = vec![run_line(settings, data, &size)];
    if config.packing != Packing::Off {
        let full = 100.0 * size.tokens as f64 / (size.rows * settings.max_length) as f64;
        let (examples, rows, most) = (thousands(data.len()), thousands(size.rows), thousands(settings.max_length));
        lines.push(format!("packed: {examples} examples in {rows} rows of at most {most} tokens, {full:.1} % full"));
    } else if let Ok(packed) = data.epoch_size(&BatchConfig { packing: settings.packed(), ..config }) {
        lines.extend(packing_line(settings, &size, &packed, overhead(device)));
    }
    Ok(lines)
}

fn stream_line(settings: &Settings, stream: &Stream, steps: usize) -> String {
    let rows =
        stream.rows().map_or_else(|| "an unknown number of rows".to_owned(), |it| format!("{} rows", thousands(it)));
    let order = if settings.args.no_shuffle { "taken in file order" } else { "shuffled together" };
    format!(
        "{} steps on {rows}, which are read as training goes; {} at a time are {order}",
        thousands(steps),
        thousands(settings.shuffle_buffer())
    )
}

fn run_line(settings: &Settings, data: &Dataset, size: &EpochSize) -> String {
    let (per_epoch, total) = settings.steps_of(size.batches);
    let left_out = size.rows.saturating_sub(size.batches * settings.batch_size);
    let except = if left_out == 0 { String::new() } else { format!(", but for the last {left_out} of its rows") };
    let most = (settings.accumulation * size.largest.iter().sum::<usize>()).min(size.tokens);
    let takes = match size.shares.len() {
        0 => format!("each of {} examples once", thousands(data.len())),
        sources => format!("{} rows of {sources} sources", thousands(size.rows)),
    };
    format!(
        "{} steps, {:.2} epochs of {}; an epoch takes {takes}{except}, a step {} tokens on average and {} at most",
        thousands(total),
        total as f64 / per_epoch as f64,
        thousands(per_epoch),
        thousands(size.tokens / per_epoch),
        thousands(most)
    )
}

/// What packing would gain, if that is a tenth: the tokens cost what they cost, but there are fewer batches to pay the rest for.
fn packing_line(settings: &Settings, size: &EpochSize, packed: &EpochSize, overhead: usize) -> Option<String> {
    let (now, then) = (settings.steps_of(size.batches).0, settings.steps_of(packed.batches).0);
    let cost = |it: &EpochSize| (it.tokens + overhead * it.batches) as f64;
    let gain = cost(size) / cost(packed);
    (gain >= 1.1).then(|| format!(
        "--packing on would make of {} rows {}: {} steps an epoch instead of {}, each with {:.1} x the tokens, and an epoch about {:.1} x as fast",
        thousands(size.rows),
        thousands(packed.rows),
        thousands(then),
        thousands(now),
        now as f64 / then as f64,
        gain
    ))
}
