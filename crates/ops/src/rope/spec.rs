//! The rotation frequencies of transformers' rope types, in f64 up to the rounding to f32 that its tables have.

use halfbyte_tensor::{Error, Result};
use std::f64::consts::{PI, TAU};

/// What a model's configuration says about its rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// The base of the wavelengths (`rope_theta`).
    pub theta: f64,
    /// Channels of a head that are rotated, from the first on; even.
    pub channels: usize,
    /// `max_position_embeddings`.
    pub max_position: usize,
    /// How the frequencies are stretched for longer texts.
    pub scaling: RopeScaling,
    /// Which channels turn together.
    pub pairs: Pairs,
}

/// Which two channels of those that are rotated turn together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pairs {
    /// One of the first half and the one as far into the second, as in LLaMA.
    #[default]
    Halves,
    /// One and the next, as in GPT-J.
    Neighbours,
}

/// A rope type of transformers, with its settings (`rope_scaling`, `rope_parameters`).
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// `default`.
    #[default]
    None,
    /// `linear`: every frequency divided by `factor`.
    Linear {
        /// By how much texts may be longer.
        factor: f64,
    },
    /// `dynamic`: a larger base for texts longer than `max_position`, so the table depends on the length.
    Dynamic {
        /// By how much texts may be longer.
        factor: f64,
    },
    /// `llama3`: long wavelengths divided, short ones kept, a ramp in between.
    Llama3 {
        /// By how much long wavelengths grow.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The length of the texts of the original training.
        original_max_position: usize,
    },
    /// `yarn`: a ramp over the channels, and larger attention scores.
    Yarn {
        /// By how much texts may be longer.
        factor: f64,
        /// The length of the texts of the original training.
        original_max_position: usize,
        /// On cosines and sines; computed if absent.
        attention_factor: Option<f64>,
        /// Rotations over the original length above which a channel is kept; 32 if not configured.
        beta_fast: f64,
        /// Rotations over the original length below which a channel is divided; 1 if not configured.
        beta_slow: f64,
        /// Together with `mscale_all_dim`: the attention factor is their ratio.
        mscale: Option<f64>,
        /// See `mscale`.
        mscale_all_dim: Option<f64>,
        /// Whether the ramp starts and ends at whole channels; true if not configured.
        truncate: bool,
    },
    /// `longrope`: every frequency divided by a number of its own, another for texts longer than the original ones, so the table depends
    /// on the length; and larger attention scores.
    LongRope {
        /// What frequencies are divided by, up to the original length.
        short: Vec<f64>,
        /// What they are divided by beyond.
        long: Vec<f64>,
        /// The length of the texts of the original training.
        original_max_position: usize,
        /// On cosines and sines.
        attention_factor: f64,
    },
}

impl RopeSpec {
    /// For texts of `length`, how long a table to make, so that it serves as many others as it may.
    pub fn table_length(&self, length: usize) -> usize {
        match self.scaling {
            RopeScaling::Dynamic { .. } => length,
            _ => length.next_power_of_two().min(self.switch().filter(|it| length <= *it).unwrap_or(usize::MAX)),
        }
    }

    /// Whether a table for texts of `made` tokens is that of texts of `length`, which a longer text's may differ from in its shared
    /// positions.
    pub fn serves(&self, made: usize, length: usize) -> bool {
        match self.scaling {
            RopeScaling::Dynamic { .. } => made == length,
            _ => made >= length && self.switch().is_none_or(|it| (made > it) == (length > it)),
        }
    }

    /// The length beyond which all positions of a text are rotated in another way, if there is one.
    pub fn switch(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::LongRope { original_max_position, .. } => Some(original_max_position),
            _ => None,
        }
    }

    /// The `channels / 2` frequencies for texts of `length` tokens, in radians a position, and the factor on cosines and
    /// sines.
    pub(super) fn frequencies(&self, length: usize) -> Result<(Vec<f32>, f32)> {
        self.check()?;
        let (mut theta, d) = (self.theta, self.channels as f64);
        if let RopeScaling::Dynamic { factor } = self.scaling {
            let (max, length) = (self.max_position as f64, length.max(self.max_position) as f64);
            theta *= (factor * length / max - (factor - 1.0)).powf(d / (d - 2.0));
        }
        // transformers takes the power and the reciprocal in f32.
        let plain = (0..self.channels / 2).map(|i| {
            let power = theta.powf(f64::from((2 * i) as f32 / self.channels as f32)) as f32;
            f64::from(1.0 / power)
        });
        let plain: Vec<f64> = plain.collect();
        let scaled = self.stretch(&plain, length);
        Ok((scaled.into_iter().map(|f| f as f32).collect(), self.attention_factor() as f32))
    }

    fn stretch(&self, plain: &[f64], length: usize) -> Vec<f64> {
        match self.scaling {
            RopeScaling::LongRope { ref short, ref long, original_max_position, .. } => {
                let factors = if length > original_max_position { long } else { short };
                // In f32, as the plain ones: the reciprocal of a product.
                let one = |(f, factor): (&f64, &f64)| f64::from(1.0 / (*factor as f32 * (1.0 / *f as f32)));
                plain.iter().zip(factors).map(one).collect()
            }
            RopeScaling::None | RopeScaling::Dynamic { .. } => plain.to_vec(),
            RopeScaling::Linear { factor } => plain.iter().map(|f| f / factor).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_position } => {
                let original = original_max_position as f64;
                let stretch = |f: &f64| match TAU / f {
                    wavelength if wavelength > original / low => f / factor,
                    wavelength if wavelength < original / high => *f,
                    wavelength => {
                        let kept = (original / wavelength - low) / (high - low);
                        (1.0 - kept) * f / factor + kept * f
                    }
                };
                plain.iter().map(stretch).collect()
            }
            RopeScaling::Yarn { factor, original_max_position, beta_fast, beta_slow, truncate, .. } => {
                let (low, high) = self.yarn_ramp(original_max_position as f64, (beta_fast, beta_slow), truncate);
                let stretch = |(i, f): (usize, &f64)| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                };
                plain.iter().enumerate().map(stretch).collect()
            }
        }
    }

    /// The channels between which yarn passes from keeping a frequency to dividing it.
    fn yarn_ramp(&self, original: f64, (fast, slow): (f64, f64), truncate: bool) -> (f64, f64) {
        let d = self.channels as f64;
        // The channel whose wavelength fits so many times into the original length.
        let channel = |rotations: f64| d * (original / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (channel(fast), channel(slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(d - 1.0));
        if low == high { (low, high + 0.001) } else { (low, high) }
    }

    fn attention_factor(&self) -> f64 {
        if let RopeScaling::LongRope { attention_factor, .. } = self.scaling {
            return attention_factor;
        }
        let RopeScaling::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } = self.scaling else {
            return 1.0;
        };
        let grown = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let given = |it: Option<f64>| it.filter(|it| *it != 0.0);
        match (attention_factor, given(mscale), given(mscale_all_dim)) {
            (Some(it), ..) => it,
            (None, Some(one), Some(all)) => grown(one) / grown(all),
            _ => grown(1.0),
        }
    }

    fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::invalid("rope", message));
        if self.channels == 0 || !self.channels.is_multiple_of(2) {
            return refuse(format!("the channels that are rotated must be even and positive, got {}", self.channels));
        }
        if !self.theta.is_finite() || self.theta <= 1.0 {
            return refuse(format!("rope_theta must be a number above 1, got {}", self.theta));
        }
        let (factor, original) = match self.scaling {
            RopeScaling::None => (1.0, 1),
            RopeScaling::Linear { factor } => (factor, 1),
            RopeScaling::Dynamic { factor } => (factor, self.max_position),
            RopeScaling::Llama3 { factor, original_max_position, .. } => (factor, original_max_position),
            RopeScaling::Yarn { factor, original_max_position, .. } => (factor, original_max_position),
            RopeScaling::LongRope { original_max_position, .. } => (1.0, original_max_position),
        };
        if !factor.is_finite() || factor <= 0.0 {
            return refuse(format!("the factor of rope scaling must be a positive number, got {factor}"));
        }
        if original == 0 {
            return refuse("the original maximum position of rope scaling must be positive, got 0".into());
        }
        self.check_ramp()
    }

    fn check_ramp(&self) -> Result<()> {
        match self.scaling {
            RopeScaling::Dynamic { .. } if self.channels <= 2 => {
                Err(Error::invalid("rope", "dynamic scaling needs more than 2 channels that are rotated"))
            }
            RopeScaling::Llama3 { low_freq_factor: low, high_freq_factor: high, .. } if low.is_nan() || low >= high => {
                let message = format!("low_freq_factor must be below high_freq_factor, got {low} and {high}");
                Err(Error::invalid("rope", message))
            }
            RopeScaling::LongRope { ref short, ref long, .. } => {
                let fits = |it: &[f64]| it.len() == self.channels / 2 && it.iter().all(|v| v.is_finite() && *v > 0.0);
                if fits(short) && fits(long) {
                    return Ok(());
                }
                let wanted = self.channels / 2;
                let message = format!("longrope needs {wanted} positive numbers as short_factor and as long_factor");
                Err(Error::invalid("rope", message))
            }
            _ => Ok(()),
        }
    }
}
