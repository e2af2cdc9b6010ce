//! AdamW where the parameters are: in host memory or on a GPU. Clips, steps, and tells what it saw.

use crate::Result;
use halfbyte_autograd::Param;
use halfbyte_cuda::{Buffer, Gpu};
use halfbyte_lora::{Role, Trained};
use halfbyte_paged_optim::{
    AdamW, AdamWConfig, Budget, CudaAdamW, CudaParamStep, PageStats, ParamSpec, ParamStep, StateFormat, StatePlace,
    clip_by_global_norm, sums_of_squares,
};
use halfbyte_tensor::{DType, Device, Tensor};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// How the optimizer keeps its state.
#[derive(Clone, Copy, Debug, Default)]
pub struct StateConfig {
    /// In two bytes a parameter instead of two f32 numbers.
    pub in_8_bits: bool,
    /// Most bytes that stay in memory; absent: all.
    pub resident: Option<usize>,
}

impl StateConfig {
    /// The form for a parameter. As with bitsandbytes small ones and embeddings, whose rows see few gradients, stay in f32.
    pub fn format(self, role: Role, len: usize) -> StateFormat {
        match self.in_8_bits && len >= StateFormat::MIN_8BIT_SIZE && !role.is_table() {
            true => StateFormat::Blockwise8,
            false => StateFormat::F32,
        }
    }

    /// Bytes of a parameter's state.
    pub fn bytes(self, role: Role, len: usize) -> usize {
        self.format(role, len).bytes(len)
    }

    /// How many of so many bytes of state stay in memory.
    pub fn in_memory(self, bytes: usize) -> usize {
        bytes.min(self.resident.unwrap_or(usize::MAX))
    }
}

/// Everything that an optimizer is made of, but for the parameters.
#[derive(Clone, Debug)]
pub struct OptimConfig {
    /// AdamW's numbers.
    pub adamw: AdamWConfig,
    /// How the state is kept.
    pub state: StateConfig,
    /// An existing folder for state that is not in memory; used on the CPU only.
    pub spill_dir: PathBuf,
}

impl Default for OptimConfig {
    /// Without weight decay, as transformers has it, and all state in memory.
    fn default() -> Self {
        let adamw = AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() };
        OptimConfig { adamw, state: StateConfig::default(), spill_dir: std::env::temp_dir() }
    }
}

/// AdamW on either device, for the parameters that it was made for.
#[derive(Debug)]
pub struct Optim {
    params: Vec<Param>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Host(AdamW),
    Cuda(CudaAdamW, Arc<Gpu>),
    /// Of a dry run: the parameters as an optimizer would know them.
    Dry {
        specs: Vec<ParamSpec>,
        /// Stands in the books for the state that is in memory.
        _state: Tensor,
    },
}

/// What a step does with the gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// The gradients' global norm is clipped to this; infinite: not at all.
    pub max_norm: f32,
    /// By which the gradients are multiplied first: the inverse of the loss scale.
    pub unscale: f32,
}

/// What a step saw. If loss or norm are not finite, no step was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The loss.
    pub loss: f32,
    /// The gradients' global norm before clipping.
    pub norm: f32,
    /// For each gradient, whether any element was other than zero.
    pub nonzero: Vec<bool>,
}

impl Seen {
    fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.norm.is_finite()
    }
}

impl Optim {
    /// An optimizer for these parameters on the device where they lie, with a state of zeros.
    ///
    /// # Errors
    /// A setting that makes no sense, two parameters of one name, memory or a spill file that cannot be had.
    pub fn new(device: &Device, trained: &[Trained], config: &OptimConfig) -> Result<Optim> {
        let spec = |Trained { param, role }: &Trained| {
            let (name, len) = (param.name().to_owned(), param.value().len());
            ParamSpec { name, len, decay: role.decays(), state: config.state.format(*role, len) }
        };
        let specs: Vec<ParamSpec> = trained.iter().map(spec).collect();
        let budget = budget(config.state.resident, &config.spill_dir);
        let place = match device {
            Device::Cpu => Place::Host(AdamW::new(config.adamw, &specs, budget)?),
            Device::Dry(ledger) => {
                let bytes = trained.iter().map(|it| config.state.bytes(it.role, it.param.value().len())).sum();
                let state = Tensor::dry(ledger, &[config.state.in_memory(bytes)], DType::U8);
                Place::Dry { specs, _state: state }
            }
            Device::Cuda(gpu) => {
                let pages = (budget.resident_bytes, budget.page_bytes);
                Place::Cuda(CudaAdamW::new(gpu, config.adamw, &specs, pages)?, gpu.clone())
            }
        };
        Ok(Optim { params: trained.iter().map(|it| it.param.clone()).collect(), place })
    }

    /// The parameters, in the order of everything that is kept for them.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        match &self.place {
            Place::Host(it) => it.steps(),
            Place::Cuda(it, _) => it.steps(),
            Place::Dry { .. } => 0,
        }
    }

    /// The parameters as the optimizer knows them.
    pub fn specs(&self) -> &[ParamSpec] {
        match &self.place {
            Place::Host(it) => it.specs(),
            Place::Cuda(it, _) => it.specs(),
            Place::Dry { specs, .. } => specs,
        }
    }

    /// Bytes of state and what was moved.
    pub fn stats(&self) -> PageStats {
        match &self.place {
            Place::Host(it) => it.stats(),
            Place::Cuda(it, _) => it.stats(),
            Place::Dry { .. } => PageStats::default(),
        }
    }

    /// Shows the state in pieces, parameter by parameter, each part's pieces in order.
    ///
    /// # Errors
    /// What `visit` returns, or a device or spill file that fails.
    pub fn visit_state(&mut self, visit: &mut dyn FnMut(StatePlace<'_>, &[u8]) -> io::Result<()>) -> Result<()> {
        match &mut self.place {
            Place::Host(it) => it.visit_state(visit)?,
            Place::Cuda(it, _) => it.visit_state(visit)?,
            Place::Dry { .. } => {}
        }
        Ok(())
    }

    /// Fills the state, in the pieces and the order of [`Optim::visit_state`], as it was after `steps` steps.
    ///
    /// # Errors
    /// What `fill` returns, or a device or spill file that fails; then no step can be taken before a restore succeeds.
    pub fn restore(
        &mut self,
        steps: u64,
        fill: &mut dyn FnMut(StatePlace<'_>, &mut [u8]) -> io::Result<()>,
    ) -> Result<()> {
        match &mut self.place {
            Place::Host(it) => it.restore(steps, fill)?,
            Place::Cuda(it, _) => it.restore(steps, fill)?,
            Place::Dry { .. } => {}
        }
        Ok(())
    }

    /// Clips the gradients (f32, each a sole owner, in the order of the parameters) and takes a step, unless they or the
    /// loss `[1]` are not finite. On a GPU this is where a step waits, once.
    ///
    /// # Errors
    /// If the device or the spill file fails.
    pub fn step(&mut self, update: Update, grads: Vec<Tensor>, loss: &Tensor) -> Result<Seen> {
        let params = &self.params;
        match &mut self.place {
            Place::Host(adamw) => on_host(adamw, update, params, grads, loss),
            Place::Cuda(adamw, gpu) => on_gpu((adamw, gpu), update, params, &grads, loss),
            Place::Dry { .. } => Ok(Seen { loss: 0.0, norm: 0.0, nonzero: vec![false; grads.len()] }),
        }
    }
}

fn on_host(adamw: &mut AdamW, update: Update, params: &[Param], mut grads: Vec<Tensor>, loss: &Tensor) -> Result<Seen> {
    let nonzero = grads.iter().map(|g| g.data::<f32>().iter().any(|it| *it != 0.0)).collect();
    let mut slices: Vec<&mut [f32]> = grads.iter_mut().map(|it| it.data_mut::<f32>()).collect();
    if update.unscale != 1.0 {
        slices.iter_mut().flat_map(|it| it.iter_mut()).for_each(|it| *it *= update.unscale);
    }
    let norm = clip_by_global_norm(&mut slices, update.max_norm);
    let seen = Seen { loss: loss.data::<f32>()[0], norm, nonzero };
    if seen.is_finite() {
        with_values(params, |values| {
            let pairs = values.iter_mut().zip(&grads);
            let steps = pairs.map(|(value, grad)| ParamStep { value: value.data_mut(), grad: grad.data() });
            adamw.step(update.lr, &mut steps.collect::<Vec<_>>())
        })?;
    }
    Ok(seen)
}

fn on_gpu(
    (adamw, gpu): (&mut CudaAdamW, &Arc<Gpu>),
    update: Update,
    params: &[Param],
    grads: &[Tensor],
    loss: &Tensor,
) -> Result<Seen> {
    let buffers: Vec<&Buffer> = grads.iter().filter_map(Tensor::cuda_buffer).collect();
    let (sums, beside) = sums_of_squares(gpu, &buffers, loss.cuda_buffer())?;
    let norm = sums.iter().sum::<f64>().sqrt() as f32 * update.unscale;
    let loss = beside.unwrap_or_else(|| loss.data::<f32>()[0]);
    let seen = Seen { loss, norm, nonzero: sums.iter().map(|it| *it > 0.0).collect() };
    if seen.is_finite() {
        // As clip_by_global_norm has it.
        let scale = (update.max_norm / (norm + 1e-6)).min(1.0) * update.unscale;
        with_values(params, |values| {
            let pairs = values.iter_mut().zip(buffers);
            let steps = pairs.map(|(value, grad)| CudaParamStep {
                value: value.cuda_buffer_mut().expect("a parameter that trains lies where the optimizer does"),
                grad,
            });
            adamw.step(update.lr, scale, &mut steps.collect::<Vec<_>>())
        })?;
    }
    Ok(seen)
}

fn budget(resident_bytes: Option<usize>, spill_dir: &Path) -> Budget {
    // Small budgets need small pages.
    let page_bytes = resident_bytes
        .map_or(Budget::PAGE_BYTES, |it| (it / 16).next_multiple_of(4096).clamp(4096, Budget::PAGE_BYTES));
    Budget { resident_bytes, page_bytes, spill_dir: spill_dir.to_owned() }
}

/// Takes all values out, as sole owners, and puts them back whatever happens.
fn with_values(
    params: &[Param],
    change: impl FnOnce(&mut [Tensor]) -> halfbyte_paged_optim::Result<()>,
) -> halfbyte_paged_optim::Result<()> {
    let mut values: Vec<Tensor> = params.iter().map(|it| it.take().into_unique()).collect();
    let done = change(&mut values);
    for (param, value) in params.iter().zip(values) {
        param.put(value);
    }
    done
}
