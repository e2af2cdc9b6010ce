//! What a step, an epoch and a run come to, known from the lengths of the rows alone and said before the first step.

use super::settings::Settings;
use crate::{cli::Switch, console::thousands};
use halfbyte_data::{BatchConfig, Dataset, EpochSize, Packing};
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

    /// Steps of an epoch that has so many batches, and of the run. Every epoch has as many batches as the others, packed or
    /// not.
    fn steps(&self, batches_per_epoch: usize) -> (usize, usize) {
        self.length().steps(batches_per_epoch, Alone.world())
    }
}

/// Lines for people.
pub(super) fn lines(settings: &Settings, data: &Dataset) -> anyhow::Result<Vec<String>> {
    let config = settings.batch_config();
    let size = data.epoch_size(&config)?;
    let mut lines = vec![run_line(settings, data, &size)];
    if config.packing != Packing::Off {
        let full = 100.0 * size.tokens as f64 / (size.rows * settings.max_length) as f64;
        let (examples, rows, most) = (thousands(data.len()), thousands(size.rows), thousands(settings.max_length));
        lines.push(format!("packed: {examples} examples in {rows} rows of at most {most} tokens, {full:.1} % full"));
    } else if let Ok(packed) = data.epoch_size(&BatchConfig { packing: settings.packed(), ..config }) {
        lines.push(packing_line(settings, &size, &packed));
    }
    Ok(lines)
}

fn run_line(settings: &Settings, data: &Dataset, size: &EpochSize) -> String {
    let (per_epoch, total) = settings.steps(size.batches);
    let left_out = size.rows.saturating_sub(size.batches * settings.batch_size);
    let except = if left_out == 0 { String::new() } else { format!(", but for the last {left_out} of its rows") };
    let most = (settings.accumulation * size.largest.iter().sum::<usize>()).min(size.tokens);
    format!(
        "{} steps, {:.2} epochs of {}; an epoch takes each of {} examples once{except}, a step {} tokens on average and {} at most",
        thousands(total),
        total as f64 / per_epoch as f64,
        thousands(per_epoch),
        thousands(data.len()),
        thousands(size.tokens / per_epoch),
        thousands(most)
    )
}

/// What packing would gain: a step costs a pass over the weights besides what its tokens cost, so this is at best.
fn packing_line(settings: &Settings, size: &EpochSize, packed: &EpochSize) -> String {
    let (now, then) = (settings.steps(size.batches).0, settings.steps(packed.batches).0);
    format!(
        "--packing on would make of {} rows {}: {} steps an epoch instead of {}, with {:.1} x the tokens in each, and at best {:.1} x as fast",
        thousands(size.rows),
        thousands(packed.rows),
        thousands(then),
        thousands(now),
        now as f64 / then as f64,
        now as f64 / then as f64
    )
}
