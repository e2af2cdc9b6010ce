//! Whole models on batches whose sequences use different adapters: hidden states, losses and gradients have the bits that they
//! have with each adapter alone.

use halfbyte_autograd::Tape;
use halfbyte_lora::{Adapter, Context, LoraConfig, TargetModules, attach};
use halfbyte_matmul::{Dense, Source};
use halfbyte_models::{Loading, Model, ModelFolder, Pass};
use halfbyte_ops::{FrozenMatrix, Ids, Layout, Refusal, RowGroups, Targets, WeightFormat};
use halfbyte_tensor::{DType, Device, Tensor};
use halfbyte_testkit::noise_in;
use std::{path::Path, sync::Arc};

#[derive(Debug)]
struct Matrix(Tensor);

impl FrozenMatrix for Matrix {
    fn dims(&self) -> (usize, usize) {
        (self.0.shape()[0], self.0.shape()[1])
    }

    fn source<'a>(&'a self) -> Box<dyn Source + 'a> {
        let (out, inner) = self.dims();
        Box::new(Dense::new(out, inner, self.0.data::<f32>()))
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn format(&self) -> String {
        "f32".into()
    }
}

/// Every matrix as it is, widened.
struct InF32;

impl WeightFormat for InF32 {
    fn freeze(&self, _path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        Ok(Arc::new(Matrix(weight.to_dtype(DType::F32))))
    }

    fn keep(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        self.freeze(path, weight)
    }
}

fn open(name: &str) -> Box<dyn Model> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name);
    let loading = Loading::Frozen { format: &InF32, prepare: None };
    ModelFolder::open(&dir).unwrap().load(loading, &Device::Cpu, &mut |_| {}).unwrap()
}

/// LoRA everywhere, DoRA on some layers, and LoRA with norms, and embedding or head, trained in full; each as if it had trained.
fn adapters(model: &mut dyn Model) -> Vec<Arc<Adapter>> {
    let modules = model.modules();
    let stacks = || modules.linears.iter().filter_map(|it| it.member());
    let target_parameters: Vec<String> = stacks().map(|it| it.stack.clone()).collect();
    let head = if modules.tied.is_some() { modules.weights[0].module().to_owned() } else { "lm_head".to_owned() };
    // Experts take no dropout.
    let lora_dropout = if target_parameters.is_empty() { 0.2 } else { 0.0 };
    let all_linear = LoraConfig { rank: 3, lora_dropout, target_parameters, ..LoraConfig::default() };
    let some = TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]);
    let dora = LoraConfig { rank: 2, use_dora: true, target_modules: some.clone(), ..LoraConfig::default() };
    let norms = modules.weights.iter().map(|it| it.module()).filter(|it| it.contains("norm") || it.contains("ln_"));
    let modules_to_save = norms.map(str::to_owned).chain([head]).collect();
    let full = LoraConfig { rank: 4, target_modules: some, modules_to_save, ..LoraConfig::default() };
    let one = |(seed, config): (u64, &LoraConfig)| {
        let (adapter, _) = attach(&modules, config, "some", seed).unwrap();
        for (i, param) in adapter.params().iter().enumerate() {
            let value = param.value();
            let noise = noise_in(value.shape(), DType::F32, seed * 1000 + i as u64, -0.1, 0.1).to_f32_vec();
            let moved = value.to_f32_vec().iter().zip(noise).map(|(v, n)| v + n).collect();
            param.set(Tensor::from_vec(value.shape(), moved));
        }
        Arc::new(adapter)
    };
    [&all_linear, &dora, &full].into_iter().enumerate().map(|(i, it)| one((i as u64 + 1, it))).collect()
}

/// The bits of hidden states, logits and the gradients of an adapter.
fn run(
    model: &dyn Model,
    (ids, layout): (&[u32], &Layout),
    targets: Vec<u32>,
    (ctx, of): (&Context, Option<&Adapter>),
) -> (Tensor, Tensor, Vec<Vec<f32>>) {
    let (tape, ids) = (Tape::recording(), Ids::new(ids.to_vec()));
    let hidden = model.forward(&tape, &mut Pass::new(&ids, layout, ctx, DType::F32)).unwrap();
    let states = hidden.value().clone();
    let logits = model.head(&Tape::disabled(), ctx).logits(&states).unwrap();
    let loss = model.head(&tape, ctx).loss(&tape, &hidden, &Targets::new(targets), 8.0).unwrap();
    drop(hidden);
    let Some(adapter) = of else { return (states, logits, Vec::new()) };
    let grads = tape.backward(loss).unwrap();
    (states, logits, adapter.params().iter().map(|it| grads.get(it).unwrap().to_f32_vec()).collect())
}

/// Bits, or numbers that differ by the order of sums.
fn same(what: &str, got: &[f32], wanted: &[f32], exact: bool) {
    if exact {
        assert_eq!(got, wanted, "{what}");
        return;
    }
    let largest = wanted.iter().fold(0.0f32, |most, it| most.max(it.abs()));
    let apart = got.iter().zip(wanted).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(got.len() == wanted.len() && apart <= 1e-5 * largest, "{what}: {apart} apart, of {largest}");
}

fn compare(name: &str, (dropout, exact): (Option<u64>, bool)) {
    let mut model = open(name);
    let adapters = adapters(model.as_mut());
    let (lengths, chosen) = ([6, 5, 7, 5, 6], [0, 1, 2, 3, 0]);
    let layout = Layout::new(&lengths).unwrap();
    let ids: Vec<u32> = (0..layout.tokens() as u32).map(|i| (i * 11 + 3) % 24).collect();
    let targets: Vec<u32> = ids.iter().map(|it| (it + 5) % 24).collect();
    let choice: Vec<Option<usize>> = chosen.iter().map(|it| Some(*it).filter(|it| *it < 3)).collect();
    let mixed = Context { dropout, ..Context::by_row(adapters.clone(), &choice, &layout).unwrap() };
    let groups = RowGroups::new(&layout, chosen.into_iter());
    for (group, adapter) in adapters.iter().map(Some).chain([None]).enumerate() {
        let of = adapter.map(AsRef::as_ref);
        let own =
            |all: &[u32]| -> Vec<u32> { groups.rows(group).iter().flat_map(|it| all[it.clone()].to_vec()).collect() };
        let own_rows = |all: &Tensor| -> Vec<f32> {
            let (all, n) = (all.to_f32_vec(), all.cols());
            groups.rows(group).iter().flat_map(|it| all[it.start * n..it.end * n].to_vec()).collect()
        };
        let (states, logits, gradients) = run(model.as_ref(), (&ids, &layout), targets.clone(), (&mixed, of));
        let own_layout =
            Layout::new(&groups.rows(group).iter().map(ExactSizeIterator::len).collect::<Vec<_>>()).unwrap();
        let alone = Context { dropout, ..Context::new(adapter.cloned()) };
        let expected = run(model.as_ref(), (&own(&ids), &own_layout), own(&targets), (&alone, of));
        same(&format!("{name}: hidden states of {group}"), &own_rows(&states), &expected.0.to_f32_vec(), exact);
        same(&format!("{name}: logits of {group}"), &own_rows(&logits), &expected.1.to_f32_vec(), exact);
        for ((param, got), wanted) in
            of.map(Adapter::params).unwrap_or_default().iter().zip(&gradients).zip(&expected.2)
        {
            same(&format!("{name}: the gradient of {} of {group}", param.name()), got, wanted, exact);
            assert!(wanted.iter().any(|it| *it != 0.0), "{name}: {} of {group} has no gradient", param.name());
        }
    }
}

#[test]
fn every_model_gives_each_sequence_what_its_adapter_gives_alone() {
    for name in ["llama-default", "mistral", "qwen2", "qwen3", "gpt-neo"] {
        compare(name, (None, true));
        compare(name, (Some(5), true));
    }
}

#[test]
fn so_it_is_with_experts_and_with_a_bias_on_the_head() {
    // An expert has few rows of each adapter, and products of few rows are summed in another order.
    ["mixtral", "qwen3-moe", "gpt-oss"].iter().for_each(|it| compare(it, (None, false)));
    // And where attention and MLP read one norm, its gradient is summed in another order.
    compare("gptj", (Some(5), false));
}
