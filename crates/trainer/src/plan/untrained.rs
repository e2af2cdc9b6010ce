//! What commands hold that train nothing: a rehearsal of loading a model with its adapters, and of what is then asked of it.

use super::{
    Plan, Room,
    rehearsal::{Stage, batch, frozen_matrices},
    weights::DryWeights,
};
use crate::{
    console::{mib, thousands},
    memory,
};
use halfbyte_autograd::Tape;
use halfbyte_frozen::Format;
use halfbyte_lora::{Adapter, Context, Linear, LoraConfig, Weight, attach_dry};
use halfbyte_models::{Model, ModelFolder, Pass, Rehearsed, build, rehearse};
use halfbyte_ops::{Ids, Layout, WeightFormat as _};
use halfbyte_tensor::{DType, Device, Tensor};
use halfbyte_train::{How, Micro, Objective as _, objective::CausalLm};
use std::sync::Arc;

/// Measured beside the tensors of such commands, with a tokenizer of 49,152 entries: 36 to 52 MiB.
const RUNTIME_BYTES: usize = 44 << 20;

/// A model as a command loads it.
#[derive(Clone)]
pub(crate) struct Untrained<'a> {
    /// The base; only the headers of its files are read.
    pub(crate) folder: &'a ModelFolder,
    /// How dense matrices are frozen.
    pub(crate) format: Format,
    /// The adapters beside it.
    pub(crate) adapters: Vec<&'a LoraConfig>,
    /// Dtype of the activations.
    pub(crate) compute: DType,
}

/// What is asked of it.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    /// The loss of batches, of which the largest has sequences of these lengths.
    Loss(Vec<usize>),
    /// The continuation of texts.
    Texts(Rehearsed),
    /// A merge into this dtype, judged by its predictions after so many tokens.
    Merge { tokens: usize, dtype: DType },
    /// The errors of its matrices in few bits, and perhaps a checkpoint of these.
    Codes { written: bool },
}

impl Untrained<'_> {
    /// What is held at most. `data` is left to the caller, who knows it.
    pub(crate) fn plan(&self, device: &Device, asked: &Asked) -> anyhow::Result<Plan> {
        let stage = Stage::like(device);
        let on = stage.device();
        let mut weights = DryWeights::new(self.folder, Some(self.format), &on);
        let mut model = build(self.folder.config(), &mut weights)?;
        let (base, most, moment) = (stage.live(), stage.peak(), weights.most_read);
        if let Asked::Codes { written } = asked {
            return Ok(codes(model.as_ref(), base, (moment, *written)));
        }
        let modules = model.modules();
        // What is wrong with an adapter says its reader.
        let attach = |it: &&LoraConfig| attach_dry(&modules, it, "adapter", &on).ok().map(|it| Arc::new(it.0));
        let adapters: Vec<Arc<Adapter>> = self.adapters.iter().filter_map(attach).collect();
        drop(modules);
        let weights = stage.live();
        // While matrices are frozen, one of them is there dense, too: in host memory, or where it is quantised.
        let loaded = match *device == Device::Cpu {
            true => most + (weights - base),
            false if self.format.takes_from_gpu() => weights + moment,
            false => 0,
        };
        stage.begin_again();
        self.rehearse(model.as_ref(), adapters.first(), (&on, asked))?;
        let peak = stage.peak().max(loaded);
        let matrices = frozen_matrices(model.as_ref());
        let mut plan = Plan {
            frozen_matrices: matrices,
            dense_weights: weights - matrices,
            activations: peak - weights,
            ..Plan::default()
        };
        if *device == Device::Cpu {
            plan.runtime = RUNTIME_BYTES;
        }
        Ok(plan)
    }

    fn rehearse(
        &self,
        model: &dyn Model,
        adapter: Option<&Arc<Adapter>>,
        (device, asked): (&Device, &Asked),
    ) -> anyhow::Result<()> {
        let (compute, ctx) = (self.compute, Context::new(adapter.cloned()));
        match asked {
            Asked::Loss(lengths) => {
                let batch = batch(lengths);
                let how = How { denominator: batch.trained as f32, compute, checkpointing: false, ctx };
                CausalLm.loss(&Tape::disabled(), model, &Micro::new(&batch, how)?)?;
            }
            Asked::Texts(texts) => rehearse(model, texts, (compute, &ctx))?,
            Asked::Merge { tokens, dtype } => {
                let first = predictions(model, *tokens, &ctx)?;
                pass(device, merging(model, *dtype));
                // The merged model is tried from its files: matrices stay there, but for those whose rows lie apart.
                let (linears, weights) = model.parts();
                let across =
                    linears.iter().filter(|it| it.is_published_transposed()).map(|it| it.dims().0 * it.dims().1);
                let dense = across.chain(weights.iter().map(|it| it.value().len())).sum::<usize>() * dtype.size();
                let merged = Tensor::scratch_on(device, &[dense], DType::U8);
                predictions(model, *tokens, &Context::default())?;
                drop((first, merged));
            }
            Asked::Codes { .. } => unreachable!("that is no pass"),
        }
        Ok(())
    }

    /// Refuses a command that needs more than there is. `what` is it, as in "this evaluation"; `ways` are flags that would need less,
    /// and what it would ask with them; `data` are bytes of rows that are in memory already.
    pub(crate) fn fits(
        &self,
        device: &Device,
        (what, asked): (&str, &Asked),
        data: usize,
        ways: &[(&str, Untrained<'_>, Asked)],
    ) -> anyhow::Result<Plan> {
        let plan = Plan { data, ..self.plan(device, asked)? };
        let Some(room) = Room::on(device)?.filter(|it| plan.total() > it.free + data) else { return Ok(plan) };
        let mut others = Vec::new();
        for (flags, way, asked) in ways {
            others.push((*flags, way.plan(device, asked)?.total()));
        }
        let advice = room.way_out(others, "a smaller model, or more memory,");
        Err(room.refusal(what, &plan, &advice))
    }

    /// The first of several things to ask that there is memory for, else the last.
    pub(crate) fn first_that_fits(
        &self,
        device: &Device,
        asked: impl IntoIterator<Item = Asked>,
    ) -> anyhow::Result<Option<Asked>> {
        let room = Room::on(device)?;
        let mut last = None;
        for it in asked {
            let fits = match room {
                Some(room) => self.plan(device, &it)?.total() <= room.free,
                None => true,
            };
            last = Some(it);
            if fits {
                break;
            }
        }
        Ok(last)
    }

    /// As [`fits`](Self::fits), for what is asked when the weights are loaded, and with them there is `held` for activations. Gives how
    /// much these take.
    pub(crate) fn grows(&self, device: &Device, (what, asked): (&str, &Asked), held: usize) -> anyhow::Result<usize> {
        let plan = self.plan(device, asked)?;
        match Room::on(device)? {
            Some(room) if plan.activations > room.free + held => {
                Err(room.refusal(what, &plan, "it can go on where more is free"))
            }
            _ => Ok(plan.activations),
        }
    }
}

/// Says, to whoever asked for more, what a command held in host memory beside what was planned: tensors, and all of the process.
pub(crate) fn compared(what: &str, plan: &Plan) {
    if plan.runtime == 0 {
        return;
    }
    let (tensors, held) = (plan.total() - plan.data - plan.runtime, halfbyte_tensor::pool::stats().footprint);
    tracing::info!("{what} held tensors of {} bytes, planned {}", thousands(held), thousands(tensors));
    if let Some(peak) = memory::peak_rss() {
        tracing::info!("{what} held {} in all, planned {}", mib(peak), mib(plan.total()));
    }
}

/// Logits in f32 after every one of so many tokens.
fn predictions(model: &dyn Model, tokens: usize, ctx: &Context) -> anyhow::Result<Tensor> {
    let (layout, ids, tape) = (Layout::new(&[tokens])?, Ids::new(vec![0; tokens]), Tape::disabled());
    let hidden = model.forward(&tape, &mut Pass::new(&ids, &layout, ctx, DType::F32))?;
    Ok(model.head(&tape, ctx).logits(hidden.value())?)
}

/// A plan for quantising matrices one after the other, of which the largest is read as `moment` bytes.
fn codes(model: &dyn Model, weights: usize, (moment, written): (usize, bool)) -> Plan {
    let matrices = frozen_matrices(model);
    let dense = weights - matrices;
    let largest = model.parts().0.iter().map(|it| it.bytes()).max().unwrap_or(0);
    // Of the largest there are the matrix and the parts of the checkpoint, made apart; of what stays dense there is a copy to be written.
    let (kept, activations) = match written {
        true => (matrices, (moment + 2 * largest).max(dense)),
        false => (0, moment + largest),
    };
    Plan { frozen_matrices: kept, dense_weights: dense, activations, runtime: RUNTIME_BYTES, ..Plan::default() }
}

/// The most that is held while the tensors of a model are made and written one after the other, in this dtype: while one is made, the
/// one before it is written.
fn merging(model: &dyn Model, dtype: DType) -> usize {
    const F32: usize = size_of::<f32>();
    let (linears, weights) = model.parts();
    // What a tensor takes while it is made, and what is then written.
    let of_linear = |it: &&Linear| {
        let elements = it.dims().0 * it.dims().1;
        // The decoded matrix, to which an update is added in place, and beside it its transpose, or what is written.
        let alone = elements * (F32 + if it.is_published_transposed() { F32 } else { dtype.size() });
        let experts = it.member().filter(|_| it.is_published_transposed()).map_or(0, |it| it.expert.1);
        (
            experts * elements * F32 + alone.max(experts * elements * dtype.size()),
            experts.max(1) * elements * dtype.size(),
        )
    };
    let of_weight = |it: &&Weight| {
        let value = it.value();
        let bytes = value.len() * dtype.size();
        if value.dtype() == dtype { (0, 0) } else { (bytes, bytes) }
    };
    let tensors = weights.iter().map(of_weight).chain(linears.iter().map(of_linear));
    tensors.scan(0, |written, (made, bytes)| Some(std::mem::replace(written, bytes) + made)).max().unwrap_or(0)
}

/// Memory beside tensors, for a moment.
fn pass(device: &Device, bytes: usize) {
    if let Device::Dry(ledger) = device {
        ledger.pass(bytes);
    }
}
