//! Random models, formats, adapters and settings, each computed in two ways that must come to one result: to the bit where the order
//! of sums is the same, and within their rounding where it is not.

use crate::common::{nothing_beside, rows};
use halfbyte_data::{Batch, BatchConfig, Dataset, Packing, Position};
use halfbyte_frozen::{Format, Quant};
use halfbyte_lora::{Adapter, Bias, LoraConfig, Routing, attach, merge};
use halfbyte_models::{Loading, Model, ModelFolder};
use halfbyte_ops::WeightFormat;
use halfbyte_paged_optim::Schedule;
use halfbyte_tensor::{DType, Device, Tensor};
use halfbyte_testkit::{Dice, Night, noise_in};
use halfbyte_train::{
    Alone, Checkpoints, Error, Event, Length, Optim, OptimConfig, Run, RunConfig, RunState, Saving, StateConfig, Step,
    StepConfig, objective::CausalLm, parameters,
};
use std::{fs, path::Path, sync::Arc};

/// A model with what trains of it.
struct Subject {
    model: Box<dyn Model>,
    adapter: Option<Arc<Adapter>>,
}

/// What is drawn once and computed twice.
#[derive(Clone, Debug)]
struct Drawn {
    fixture: String,
    /// None: all of the model trains.
    format: Option<Format>,
    lora: LoraConfig,
    compute: DType,
    batch_size: usize,
    accumulation: usize,
    packed: bool,
    in_8_bits: bool,
    rows: usize,
    steps: usize,
    seed: u64,
}

/// Models whose router chooses by a hair: another order of sums may choose another expert.
fn has_experts(fixture: &str) -> bool {
    fixture.contains("mixtral") || fixture.contains("moe") || has_biased_experts(fixture)
}

/// Models whose experts have biases, which do not train.
fn has_biased_experts(fixture: &str) -> bool {
    fixture.contains("gpt-oss")
}

impl Drawn {
    fn new(dice: &mut Dice) -> Drawn {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
        let names = fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        let quant = *dice.one_of(Quant::ALL);
        let block_size = *dice.one_of(&[32, 64, 128]);
        let format = Format { quant, block_size, double_quant: quant != Quant::None && dice.once_in(2) };
        let lora = LoraConfig {
            rank: 1 + dice.below(5),
            lora_alpha: 1.0 + dice.below(8) as f32,
            lora_dropout: if dice.once_in(3) { 0.2 } else { 0.0 },
            use_rslora: dice.once_in(3),
            use_dora: dice.once_in(4),
            bias: *dice.one_of(&[Bias::None, Bias::None, Bias::All, Bias::LoraOnly]),
            ..LoraConfig::default()
        };
        let fixture = dice.one_of(&names).clone();
        let whole = dice.once_in(6) && !has_biased_experts(&fixture);
        Drawn {
            fixture,
            format: (!whole).then_some(format),
            lora,
            compute: *dice.one_of(&[DType::F32, DType::F32, DType::Bf16, DType::F16]),
            batch_size: 1 + dice.below(4),
            accumulation: 1 + dice.below(3),
            packed: dice.once_in(3),
            in_8_bits: dice.once_in(3),
            rows: 6 + dice.below(9),
            steps: 2 + dice.below(3),
            seed: dice.below(1000) as u64,
        }
    }

    fn subject(&self, device: &Device) -> Subject {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(&self.fixture);
        let loading = match &self.format {
            Some(format) => Loading::Frozen { format, prepare: None },
            None => Loading::Trainable,
        };
        let mut model = ModelFolder::open(&folder).unwrap().load(loading, device, &mut |_| ()).unwrap();
        let adapter = self.format.is_some().then(|| {
            let mut lora = self.lora.clone();
            // Of stacks of experts a column's norm is nobody's, and biases there are none.
            (lora.use_dora, lora.lora_dropout) = match has_experts(&self.fixture) {
                true => (false, 0.0),
                false => (lora.use_dora, lora.lora_dropout),
            };
            if has_biased_experts(&self.fixture) && lora.bias == Bias::All {
                lora.bias = Bias::LoraOnly;
            }
            let (adapter, _) = attach(&model.modules(), &lora, "mine", self.seed).unwrap();
            for (i, param) in adapter.params().iter().enumerate() {
                let value = param.value();
                let noise = noise_in(value.shape(), DType::F32, self.seed + i as u64, -0.05, 0.05).to_f32_vec();
                let moved = value.to_f32_vec().iter().zip(noise).map(|(v, n)| v + n).collect();
                param.set(Tensor::from_vec(value.shape(), moved));
            }
            adapter.to_device(device).unwrap();
            Arc::new(adapter)
        });
        Subject { model, adapter }
    }

    fn batches(&self) -> BatchConfig {
        let packing = if self.packed { Packing::On { max_length: 12 } } else { Packing::Off };
        BatchConfig { batch_size: self.batch_size, shuffle: Some(self.seed), drop_last: false, packing }
    }

    fn step(&self, checkpointing: bool) -> StepConfig {
        StepConfig { compute: self.compute, checkpointing, seed: self.seed, ..StepConfig::default() }
    }

    /// Without what makes sums of another order differ by more than their rounding.
    fn exact(mut self) -> Drawn {
        self.compute = DType::F32;
        self.lora.lora_dropout = 0.0;
        // LLM.int8 rounds activations, by what else is in the batch.
        if let Some(it) = self.format.as_mut().filter(|it| it.quant == Quant::Int8) {
            it.quant = Quant::Int4;
        }
        self
    }
}

/// How a run is computed, apart from what it is of.
#[derive(Clone, Copy, Default)]
struct Way {
    checkpointing: bool,
    resident: Option<usize>,
    threads: usize,
    /// Stops after this step, and goes on from its checkpoint.
    stops: Option<usize>,
}

/// Trains, and gives the bits of every parameter and the losses of the last process.
fn trained(drawn: &Drawn, data: &Dataset, way: Way) -> (Vec<Vec<u32>>, Vec<u32>) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(way.threads.max(1)).build().unwrap();
    pool.install(|| {
        let folder = tempfile::tempdir().unwrap();
        if let Some(step) = way.stops {
            run(drawn, data, (way, Some(step)), folder.path());
        }
        run(drawn, data, (way, None), folder.path())
    })
}

fn run(drawn: &Drawn, data: &Dataset, (way, until): (Way, Option<usize>), folder: &Path) -> (Vec<Vec<u32>>, Vec<u32>) {
    let it = drawn.subject(&Device::Cpu);
    let params = parameters(it.model.as_ref(), it.adapter.as_deref());
    let state = StateConfig { in_8_bits: drawn.in_8_bits, resident: way.resident };
    let config = OptimConfig { state, spill_dir: folder.to_owned(), ..OptimConfig::default() };
    let mut optim = Optim::new(&Device::Cpu, &params, &config).unwrap();
    let checkpoints = Checkpoints::new(folder);
    let resumed = checkpoints.all().unwrap().pop().map(|(_, path)| {
        let state = RunState::read(&path).unwrap();
        optim.load(&path, state.taken()).unwrap();
        state
    });
    let length = Length { accumulation: drawn.accumulation, epochs: 1.0, max_steps: Some(drawn.steps) };
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut losses = Vec::new();
    let mut listen = |event: &Event<'_>| {
        if let Event::Step(report) = event {
            losses.push(report.loss.to_bits());
            if until == Some(report.step) {
                stop.store(true, std::sync::atomic::Ordering::SeqCst);
            }
        }
        Ok(())
    };
    let mut beside = nothing_beside;
    let config = RunConfig {
        batches: drawn.batches(),
        length,
        schedule: Schedule::Linear,
        learning_rate: 1e-3,
        step: drawn.step(way.checkpointing),
        ..RunConfig::default()
    };
    let mut run = Run::new(config, (it.model.as_ref(), it.adapter.clone()), &mut optim, data);
    run.interrupt = &stop;
    let (notes, best) = (Default::default(), false);
    run.saving = Some(Saving { checkpoints: &checkpoints, every: 0, keep: 1, best, notes, beside: &mut beside });
    run.observers.push(&mut listen);
    match run.train(resumed) {
        Ok(_) => {}
        // An expert that no token chose, or steps in f16 that all overflowed: so they do whichever way they are computed.
        Err(Error::Untrained { .. } | Error::NothingChanged { .. }) => losses.clear(),
        Err(error) => panic!("{drawn:?}: {error}"),
    }
    let bits = |it: Tensor| it.to_f32_vec().into_iter().map(f32::to_bits).collect();
    (params.iter().map(|it| bits(it.param.value().clone())).collect(), losses)
}

/// The loss and the gradients of one step.
fn gradients(drawn: &Drawn, it: &Subject, batches: &[Batch], checkpointing: bool) -> Vec<Vec<f32>> {
    let routing: Routing = it.adapter.clone().into();
    let model = it.model.as_ref();
    let step =
        Step { model, routing: &routing, objective: &CausalLm, ranks: &Alone, config: drawn.step(checkpointing) };
    let params: Vec<_> = parameters(model, it.adapter.as_deref()).into_iter().map(|it| it.param).collect();
    let (loss, grads) = step.gradients(&params, batches, (0, 1.0)).unwrap();
    std::iter::once(&loss).chain(&grads).map(Tensor::to_f32_vec).collect()
}

/// Largest difference as a share of the largest number of all gradients, and of the loss.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let largest = |all: &[Vec<f32>]| all.iter().flatten().fold(0.0f32, |m, it| m.max(it.abs()));
    let off = |a: &[Vec<f32>], b: &[Vec<f32>]| {
        a.iter()
            .flatten()
            .zip(b.iter().flatten())
            .fold(0.0f32, |m, (x, y)| if (x - y).abs() <= m { m } else { (x - y).abs() })
    };
    (off(&a[..1], &b[..1]) / largest(&a[..1])).max(off(&a[1..], &b[1..]) / largest(&a[1..]))
}

/// Sums of some hundreds of f32 in another order, through two layers and back.
const ORDER: f32 = 5e-5;

#[test]
fn two_ways_to_one_result_have_one_result() {
    for mut dice in Night::new("configurations computed in two ways", 60) {
        let drawn = Drawn::new(&mut dice);
        let data = rows(drawn.rows);
        let about = |what: &str| format!("{what}: {drawn:?}\n{}", dice.repeats());
        match dice.seed % 3 {
            0 => bits(&drawn, &data, &mut dice.clone(), &about),
            1 => sums(&drawn.clone().exact(), &data, &about),
            _ => places(&drawn.clone().exact(), &data, &mut dice.clone(), &about),
        }
    }
}

/// Found in a night: both steps overflowed and were skipped. A run that never stopped said that nothing changed; one that was
/// interrupted between the two took the first for one that had reached everything, and was a result.
#[test]
fn steps_that_were_skipped_are_no_result_of_a_run_that_goes_on() {
    let mut dice = Dice::new(52_734);
    let drawn = Drawn::new(&mut dice);
    assert!(drawn.compute == DType::F16 && drawn.steps == 2, "what the seed stands for: {drawn:?}");
    bits(&drawn, &rows(drawn.rows), &mut dice, &|what| what.to_owned());
}

/// Threads, pages, recomputation and interruptions, all at a time: not a bit differs.
fn bits(drawn: &Drawn, data: &Dataset, dice: &mut Dice, about: &dyn Fn(&str) -> String) {
    let plain = trained(drawn, data, Way::default());
    let way = Way {
        checkpointing: dice.once_in(2),
        resident: dice.once_in(2).then(|| 8192 + dice.below(16384)),
        threads: 1 + dice.below(3),
        stops: dice.once_in(2).then(|| 1 + dice.below(drawn.steps - 1)),
    };
    let (params, losses) = trained(drawn, data, way);
    assert!(plain.0 == params, "{}", about("parameters"));
    assert!(plain.1.ends_with(&losses), "{}", about("losses"));
    assert_eq!(plain.1.is_empty(), losses.is_empty(), "{}", about("the end"));
}

/// One batch of all rows, rows one by one, packed rows, and recomputed ones: the order of sums alone differs.
fn sums(drawn: &Drawn, data: &Dataset, about: &dyn Fn(&str) -> String) {
    if has_experts(&drawn.fixture) {
        // The loss that keeps experts busy is of a micro-batch.
        return;
    }
    let it = drawn.subject(&Device::Cpu);
    let whole = gradients(drawn, &it, &[data.collate(&(0..data.len()).collect::<Vec<_>>())], false);
    let one_by_one: Vec<Batch> = (0..data.len()).map(|row| data.collate(&[row])).collect();
    let config = BatchConfig { packing: Packing::On { max_length: 12 }, ..drawn.batches() };
    let packed = data.batches(&config, Position::default()).unwrap();
    let packed: Vec<Batch> = packed.clone().take(packed.per_epoch()).collect();
    for (what, batches, checkpointing) in
        [("accumulated", &one_by_one, false), ("packed", &packed, false), ("recomputed", &one_by_one, true)]
    {
        let off = difference(&whole, &gradients(drawn, &it, batches, checkpointing));
        assert!(off <= ORDER, "{}: {off:e}", about(what));
    }
}

/// The CPU and the device, and an adapter beside the base or in it.
fn places(drawn: &Drawn, data: &Dataset, dice: &mut Dice, about: &dyn Fn(&str) -> String) {
    let all = [data.collate(&(0..data.len()).collect::<Vec<_>>())];
    let mut here = drawn.subject(&Device::Cpu);
    #[cfg(target_os = "linux")]
    if dice.once_in(2)
        && !has_experts(&drawn.fixture)
        && let Some(gpu) = halfbyte_testkit::cuda::gpu()
    {
        let there = drawn.subject(&Device::Cuda(gpu));
        let off = difference(&gradients(drawn, &here, &all, false), &gradients(drawn, &there, &all, false));
        assert!(off <= 10.0 * ORDER, "{}: {off:e}", about("device"));
        return;
    }
    let Some(adapter) = here.adapter.take() else { return };
    let loss = |model: &dyn Model, adapter: Option<Arc<Adapter>>| {
        let ctx = halfbyte_lora::Context::new(adapter);
        halfbyte_train::evaluate((model, &ctx), &CausalLm, data, (4, DType::F32), &mut |_, _| Ok(())).unwrap().loss
    };
    let applied = loss(here.model.as_ref(), Some(Arc::clone(&adapter)));
    let before = loss(here.model.as_ref(), None);
    let dense = |path: &str, weight: Tensor| {
        let frozen = Format::DENSE.keep_dense(path, weight);
        Ok::<_, halfbyte_lora::Error>(halfbyte_lora::Base::Frozen(frozen))
    };
    let merged = merge(&adapter, &mut here.model.modules(), dense).unwrap();
    let inside = loss(here.model.as_ref(), None);
    assert!((inside - applied).abs() <= 1e-4 * applied.abs(), "{}: {inside} {applied}", about("merged"));
    merged.undo(&mut here.model.modules());
    assert_eq!(loss(here.model.as_ref(), None).to_bits(), before.to_bits(), "{}", about("taken out"));
}

/// A matrix as it is.
trait KeepDense {
    fn keep_dense(&self, path: &str, weight: Tensor) -> Arc<dyn halfbyte_ops::FrozenMatrix>;
}

impl KeepDense for Format {
    fn keep_dense(&self, path: &str, weight: Tensor) -> Arc<dyn halfbyte_ops::FrozenMatrix> {
        WeightFormat::freeze(self, path, weight.to_dtype(DType::F32)).unwrap()
    }
}
