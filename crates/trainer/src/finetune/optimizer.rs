//! AdamW where the parameters are: in host memory or on a GPU. Clips, steps, and tells what it saw.

use halfbyte_autograd::Param;
use halfbyte_cuda::{Buffer, Gpu};
use halfbyte_paged_optim::{
    AdamW, AdamWConfig, Budget, CudaAdamW, CudaParamStep, PageStats, ParamSpec, ParamStep, StatePlace,
    clip_by_global_norm, sums_of_squares,
};
use halfbyte_tensor::{Device, Tensor};
use std::{io, sync::Arc};

pub(crate) enum Optimizer {
    Host(AdamW),
    Cuda(CudaAdamW, Arc<Gpu>),
}

/// What a step saw of the gradients.
pub(crate) struct Clipped {
    /// Their global norm before clipping; if it is not finite, no step was taken.
    pub(crate) norm: f32,
    /// For each, whether any element was other than zero.
    pub(crate) nonzero: Vec<bool>,
}

impl Optimizer {
    pub(crate) fn new(
        device: &Device,
        config: AdamWConfig,
        specs: &[ParamSpec],
        budget: Budget,
    ) -> anyhow::Result<Optimizer> {
        Ok(match device {
            Device::Cpu | Device::Dry(_) => Optimizer::Host(AdamW::new(config, specs, budget)?),
            Device::Cuda(gpu) => {
                let pages = (budget.resident_bytes, budget.page_bytes);
                Optimizer::Cuda(CudaAdamW::new(gpu, config, specs, pages)?, gpu.clone())
            }
        })
    }

    pub(crate) fn steps(&self) -> u64 {
        match self {
            Optimizer::Host(it) => it.steps(),
            Optimizer::Cuda(it, _) => it.steps(),
        }
    }

    pub(crate) fn specs(&self) -> &[ParamSpec] {
        match self {
            Optimizer::Host(it) => it.specs(),
            Optimizer::Cuda(it, _) => it.specs(),
        }
    }

    pub(crate) fn stats(&self) -> PageStats {
        match self {
            Optimizer::Host(it) => it.stats(),
            Optimizer::Cuda(it, _) => it.stats(),
        }
    }

    pub(crate) fn visit_state(
        &mut self,
        visit: &mut dyn FnMut(StatePlace<'_>, &[u8]) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        match self {
            Optimizer::Host(it) => it.visit_state(visit)?,
            Optimizer::Cuda(it, _) => it.visit_state(visit)?,
        }
        Ok(())
    }

    pub(crate) fn restore(
        &mut self,
        steps: u64,
        fill: &mut dyn FnMut(StatePlace<'_>, &mut [u8]) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        match self {
            Optimizer::Host(it) => it.restore(steps, fill)?,
            Optimizer::Cuda(it, _) => it.restore(steps, fill)?,
        }
        Ok(())
    }

    /// Clips the gradients (f32, each a sole owner), times `unscale`, to a global norm and takes a step.
    pub(crate) fn step(
        &mut self,
        lr: f64,
        max_norm: f32,
        params: &[Param],
        (mut grads, unscale): (Vec<Tensor>, f32),
    ) -> anyhow::Result<Clipped> {
        match self {
            Optimizer::Host(adamw) => {
                let nonzero = grads.iter().map(|g| g.data::<f32>().iter().any(|it| *it != 0.0)).collect();
                let mut slices: Vec<&mut [f32]> = grads.iter_mut().map(|it| it.data_mut::<f32>()).collect();
                if unscale != 1.0 {
                    slices.iter_mut().flat_map(|it| it.iter_mut()).for_each(|it| *it *= unscale);
                }
                let norm = clip_by_global_norm(&mut slices, max_norm);
                if !norm.is_finite() {
                    return Ok(Clipped { norm, nonzero });
                }
                with_values(params, |values| {
                    let pairs = values.iter_mut().zip(&grads);
                    let steps = pairs.map(|(value, grad)| ParamStep { value: value.data_mut(), grad: grad.data() });
                    adamw.step(lr, &mut steps.collect::<Vec<_>>())
                })?;
                Ok(Clipped { norm, nonzero })
            }
            Optimizer::Cuda(adamw, gpu) => {
                let buffers: Vec<&Buffer> = grads.iter().filter_map(Tensor::cuda_buffer).collect();
                let sums = sums_of_squares(gpu, &buffers)?;
                let norm = sums.iter().sum::<f64>().sqrt() as f32 * unscale;
                let nonzero = sums.iter().map(|it| *it > 0.0).collect();
                if !norm.is_finite() {
                    return Ok(Clipped { norm, nonzero });
                }
                // As clip_by_global_norm has it.
                let scale = (max_norm / (norm + 1e-6)).min(1.0) * unscale;
                with_values(params, |values| {
                    let pairs = values.iter_mut().zip(buffers);
                    let steps = pairs.map(|(value, grad)| CudaParamStep {
                        value: value.cuda_buffer_mut().expect("a parameter that trains lies where the optimizer does"),
                        grad,
                    });
                    adamw.step(lr, scale, &mut steps.collect::<Vec<_>>())
                })?;
                Ok(Clipped { norm, nonzero })
            }
        }
    }
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
