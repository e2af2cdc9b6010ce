//! The optimizer: what a training loop holds and calls.

use std::{collections::HashSet, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result, StateFormat,
    arena::Arena,
    layout::Layout,
    update::{Coefficients, Walk},
};

/// AdamW's settings, with torch's defaults. In f64, since torch computes with them in f64 before it rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay of the first moment, in 0 to 1 (without 1).
    pub beta1: f64,
    /// Decay of the second moment, in 0 to 1 (without 1).
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay, of the parameters that have it on.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2 }
    }
}

/// How much state may be in memory, and where the rest goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Most bytes of state in memory; `None` keeps all of it there.
    pub resident_bytes: Option<usize>,
    /// Bytes of a page, a multiple of 8, and 520 at least for state in 8 bits. Small pages follow the budget closely, large pages move faster.
    pub page_bytes: usize,
    /// An existing folder for the spill file, used only if the state is larger than the budget.
    pub spill_dir: PathBuf,
}

impl Budget {
    /// Bytes of a page unless chosen otherwise: 1 MiB.
    pub const PAGE_BYTES: usize = 1 << 20;
}

impl Default for Budget {
    /// Everything in memory.
    fn default() -> Self {
        Self { resident_bytes: None, page_bytes: Self::PAGE_BYTES, spill_dir: std::env::temp_dir() }
    }
}

/// A parameter as the optimizer knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// Unique name, for checkpoints and errors.
    pub name: String,
    /// Number of elements.
    pub len: usize,
    /// Whether weight decay applies (usually not to biases and norms).
    pub decay: bool,
    /// How its state is kept.
    pub state: StateFormat,
}

/// A parameter and its gradient in one step.
#[derive(Debug)]
pub struct ParamStep<'a> {
    /// The values, updated in place.
    pub value: &'a mut [f32],
    /// The gradient, of the same length.
    pub grad: &'a [f32],
}

/// What the state takes and what paging moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PageStats {
    /// Bytes of all state, resident or not.
    pub state_bytes: usize,
    /// Most bytes of state that were in memory at one time.
    pub resident_peak: usize,
    /// Bytes written to the spill file so far.
    pub bytes_spilled: u64,
    /// Bytes read back from it so far.
    pub bytes_fetched: u64,
}

/// AdamW with decoupled weight decay, its state in a paged arena: torch's formula for parameters with state in f32,
/// bitsandbytes' for those in 8 bits.
///
/// The result of a step depends neither on the budget nor on the number of threads, bit for bit.
///
/// A gradient that holds a NaN or an infinity is not looked for: as in torch it makes the parameter and its moments NaN at
/// that element, for good. Check the loss or the gradient norm ([`crate::clip_by_global_norm`] returns it) before a step.
#[derive(Debug)]
pub struct AdamW {
    pub(crate) config: AdamWConfig,
    pub(crate) specs: Vec<ParamSpec>,
    pub(crate) arena: Arena,
    pub(crate) steps: u64,
    /// Why the state cannot be trusted any more.
    pub(crate) broken: Option<String>,
}

impl AdamW {
    /// An optimizer with zero state for `specs`. The spill file, if one will be needed, is made here.
    ///
    /// # Errors
    /// A setting out of range, a budget below one page, a name used twice, a folder that cannot take the spill file.
    pub fn new(config: AdamWConfig, specs: &[ParamSpec], budget: Budget) -> Result<Self> {
        check_config(&config)?;
        let mut names = HashSet::new();
        if let Some(twice) = specs.iter().find(|s| !names.insert(&s.name)) {
            return Err(Error::DuplicateName { name: twice.name.clone() });
        }
        let (layout, frames) = pages(specs, budget.resident_bytes, budget.page_bytes)?;
        let arena = Arena::new(layout, frames, &budget.spill_dir)?;
        Ok(Self { config, specs: specs.to_vec(), arena, steps: 0, broken: None })
    }

    /// Updates every parameter with its gradient. `params` are in the order of the specs.
    ///
    /// # Errors
    /// A wrong number of parameters, a value or gradient of the wrong length (named), or a learning rate that is negative or
    /// not finite: nothing has changed. A failing spill file: parameters and state are then partly updated, and every later
    /// call is refused until a checkpoint is restored.
    pub fn step(&mut self, lr: f64, params: &mut [ParamStep<'_>]) -> Result<()> {
        check_whole(self.broken.as_deref())?;
        check_step(&self.specs, lr, params.iter().map(|it| (it.value.len(), it.grad.len())))?;
        let coefficients = Coefficients::new(&self.config, lr, self.steps + 1);
        let mut walk = Walk::new(&self.specs, self.arena.layout().clone(), params, coefficients);
        if let Err(error) = self.arena.sweep(|pages| walk.update(pages)) {
            self.broken = Some(error.to_string());
            return Err(error);
        }
        self.steps += 1;
        Ok(())
    }

    /// Steps taken, those before a restored checkpoint included.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The parameters, in order.
    pub fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// Memory and traffic so far.
    pub fn stats(&self) -> PageStats {
        self.arena.stats()
    }
}

/// Refuses to go on after a failure.
pub(crate) fn check_whole(broken: Option<&str>) -> Result<()> {
    match broken {
        Some(reason) => Err(Error::Broken { reason: reason.to_owned() }),
        None => Ok(()),
    }
}

/// What a step is given: the lengths of each value and gradient, and the learning rate.
pub(crate) fn check_step(
    specs: &[ParamSpec],
    lr: f64,
    lens: impl ExactSizeIterator<Item = (usize, usize)>,
) -> Result<()> {
    if lens.len() != specs.len() {
        return Err(Error::ParamCount { what: "the step", expected: specs.len(), got: lens.len() });
    }
    for (spec, (value, grad)) in specs.iter().zip(lens) {
        check_len("value", spec, value)?;
        check_len("gradient", spec, grad)?;
    }
    if !(lr.is_finite() && lr >= 0.0) {
        return Err(setting("learning rate", lr, "a finite number, zero or more"));
    }
    Ok(())
}

/// The arena's geometry, and how many frames the budget allows.
pub(crate) fn pages(specs: &[ParamSpec], resident_bytes: Option<usize>, page_bytes: usize) -> Result<(Layout, usize)> {
    if page_bytes == 0 || !page_bytes.is_multiple_of(8) {
        return Err(setting("page_bytes", page_bytes, "a positive multiple of 8"));
    }
    if specs.iter().any(|it| page_bytes < it.state.unit_bytes()) {
        return Err(setting("page_bytes", page_bytes, "at least 520, a block of state in 8 bits"));
    }
    let layout = Layout::new(specs, page_bytes)
        .ok_or_else(|| setting("state size", "beyond the address space".to_owned(), "parameters that fit it"))?;
    let frames = match resident_bytes {
        Some(bytes) if bytes < layout.state_bytes() => bytes / page_bytes,
        _ => layout.pages(),
    };
    if frames == 0 && layout.pages() > 0 {
        let resident = resident_bytes.unwrap_or_default();
        return Err(setting("resident_bytes", resident, "at least page_bytes: raise it or make pages smaller"));
    }
    Ok((layout, frames))
}

pub(crate) fn check_len(what: &'static str, spec: &ParamSpec, got: usize) -> Result<()> {
    if got == spec.len {
        Ok(())
    } else {
        Err(Error::ParamLength { what, name: spec.name.clone(), expected: spec.len, got })
    }
}

pub(crate) fn check_config(config: &AdamWConfig) -> Result<()> {
    for (name, beta) in [("beta1", config.beta1), ("beta2", config.beta2)] {
        if !(0.0..1.0).contains(&beta) {
            return Err(setting(name, beta, "0 or more, below 1"));
        }
    }
    for (name, value) in [("eps", config.eps), ("weight_decay", config.weight_decay)] {
        if !(value.is_finite() && value >= 0.0) {
            return Err(setting(name, value, "a finite number, zero or more"));
        }
    }
    Ok(())
}

pub(crate) fn setting(name: &'static str, got: impl ToString, expected: &'static str) -> Error {
    Error::Setting { name, got: got.to_string(), expected }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::{fs::File, path::Path};

    use super::*;
    use crate::spill::SpillFile;

    /// `/dev/full` takes any position and answers every write as a full disk does.
    #[test]
    fn a_full_disk_is_named_and_stops_the_optimizer() {
        let specs = [ParamSpec { name: "w".into(), len: 64, decay: true, state: StateFormat::F32 }];
        let budget = Budget { resident_bytes: Some(256), page_bytes: 128, ..Budget::default() };
        let mut adamw = AdamW::new(AdamWConfig::default(), &specs, budget).expect("valid");
        let full = File::options().read(true).write(true).open("/dev/full").expect("the device exists on Linux");
        adamw.arena.replace_spill(SpillFile::over(full, Path::new("/some/folder")));
        let (mut value, grad) = ([1.0; 64], [1.0; 64]);
        let mut step = |adamw: &mut AdamW| adamw.step(0.1, &mut [ParamStep { value: &mut value, grad: &grad }]);
        let error = step(&mut adamw).expect_err("nothing can be written").to_string();
        assert!(error.contains("/some/folder") && error.contains("write 128 bytes"), "{error}");
        assert!(error.contains("No space left on device"), "{error}");
        assert!(matches!(step(&mut adamw), Err(Error::Broken { reason }) if reason.contains("No space left")));
        assert_eq!(adamw.steps(), 0);
    }
}
