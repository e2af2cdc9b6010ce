//! What a generated token asks of a GPU, or of the CPU in the guise of one.

use halfbyte_frozen::{Format, FrozenMatrix, Quant};
use halfbyte_lora::{Adapter, Base, Context, Linear, LoraConfig, Role, Weight, attach};
use halfbyte_models::{GenerateConfig, KvCache, Model, ModelConfig, Result, Weights, build, extend, generate};
use halfbyte_ops::Ids;
use halfbyte_tensor::{DType, Device, Tensor};
use halfbyte_testkit::{
    cuda::{fresh_gpu, gpu},
    noise_in,
};
use std::{path::Path, sync::Arc};

const LAYERS: u64 = 3;

/// Numbers from noise, with matrices in a format, on a device.
struct Noise<'a> {
    format: &'a Format,
    device: &'a Device,
    made: u64,
}

impl Noise<'_> {
    fn next(&mut self, shape: &[usize], spread: f32) -> Tensor {
        self.made += 1;
        noise_in(shape, DType::Bf16, self.made, -spread, spread)
    }

    fn there(&self, t: &Tensor) -> Tensor {
        t.to_device(self.device).unwrap()
    }
}

impl Weights for Noise<'_> {
    fn linear(&mut self, path: &str, dims: (usize, usize), _bias: bool) -> Result<Linear> {
        let here = self.format.freeze(self.next(&[dims.0, dims.1], 0.2)).unwrap();
        let there: Option<Arc<dyn FrozenMatrix>> = here.to_device(self.device).unwrap();
        Ok(Linear::new(path, Base::Frozen(there.unwrap_or(here)), None))
    }

    fn weight(&mut self, name: &str, shape: &[usize], role: Role) -> Result<Weight> {
        let values = self.next(shape, 1.0);
        Ok(Weight::frozen(name, role, self.there(&values)))
    }

    fn head(&mut self, path: &str, dims: (usize, usize)) -> Result<Linear> {
        let dense = Format::DENSE.freeze(self.next(&[dims.0, dims.1], 0.2)).unwrap();
        let there = dense.to_device(self.device).unwrap();
        Ok(Linear::head(path, Base::Frozen(there.unwrap_or(dense))))
    }
}

fn model(format: &Format, device: &Device) -> Box<dyn Model> {
    model_of(format, device, 64)
}

/// With so many positions.
fn model_of(format: &Format, device: &Device, positions: usize) -> Box<dyn Model> {
    let config = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "vocab_size": 50, "hidden_size": 64, "intermediate_size": 192,
        "num_hidden_layers": {LAYERS}, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": {positions}}}"#
    );
    let config = ModelConfig::parse(Path::new("config.json"), &config).unwrap();
    build(&config, &mut Noise { format, device, made: 0 }).unwrap()
}

/// One over all layers, as if it had trained.
fn adapter(model: &mut dyn Model, rank: usize, device: &Device) -> Arc<Adapter> {
    let config = LoraConfig { rank, ..LoraConfig::default() };
    let (adapter, _) = attach(&model.modules(), &config, "mine", 1).unwrap();
    for (i, param) in adapter.params().iter().enumerate() {
        let shape = param.value().shape().to_vec();
        param.set(noise_in(&shape, DType::F32, 100 + i as u64, -0.1, 0.1));
    }
    adapter.to_device(device).unwrap();
    Arc::new(adapter)
}

/// Hidden states of the third tokens of some texts, after two passes.
fn hidden(model: &dyn Model, texts: usize, compute: DType, ctx: &Context) -> Vec<f32> {
    let mut cache = KvCache::new(model.config(), compute, texts);
    let mut last = Vec::new();
    for new in [2, 1] {
        let layout = cache.begin(&vec![new; texts]).unwrap();
        let ids = Ids::new((0..(texts * new) as u32).map(|it| (it * 7 + new as u32) % 50).collect());
        last = extend(model, &ids, &layout, &mut cache, ctx).unwrap().to_f32_vec();
    }
    last
}

/// A change that starts more kernels for a token is seen here, and one that starts fewer says so: of a layer two norms, queries, keys and
/// values, their way to the cache, attention, its output, gate and up, what they make of each other, and the way down; before the layers
/// the embedding, behind them a norm; the head's product, and the choice. Updates of the layers of one input take one more.
#[test]
fn a_token_starts_so_many_kernels() {
    let Some(gpu) = fresh_gpu() else { return };
    let device = Device::Cuda(gpu.clone());
    for (format, products) in [(&Format::QLORA, 0), (&Format::DENSE, 7)] {
        let mut model = model(format, &device);
        let updates = adapter(model.as_mut(), 8, &device);
        let asked = |ctx: &Context, texts: usize, compute: DType| {
            let of = |max_new_tokens: usize| {
                let config = GenerateConfig { max_new_tokens, compute, ..GenerateConfig::default() };
                let before = gpu.counters();
                generate(model.as_ref(), &vec![vec![1, 2, 3]; texts], (&config, ctx), &mut |_, _| true).unwrap();
                gpu.counters().since(&before)
            };
            // The first brings the table of rotations along, and the second knows what comes after a prompt's last matrix.
            let [.., one, two] = [4, 4, 3, 4].map(of);
            assert_eq!(two.downloaded - one.downloaded, 4 * texts as u64, "of a token its id comes to the host");
            [two.launches - one.launches, two.products - one.products, two.uploads - one.uploads]
        };
        for (texts, compute) in [(1, DType::Bf16), (3, DType::F16), (2, DType::F32)] {
            let base = asked(&Context::default(), texts, compute);
            let with = asked(&Context::new(Some(updates.clone())), texts, compute);
            let what = format!("{format:?}, {texts} texts in {compute}: {base:?}, with updates {with:?}");
            // The head is kept in bf16, and converted for any other dtype.
            let launches = |of_layer: u64| 3 + u64::from(compute != DType::Bf16) + LAYERS * of_layer;
            match products {
                0 => {
                    assert_eq!(base, [launches(9), 1, 2], "{what}");
                    assert_eq!(with, [launches(13), 1, 2], "{what}");
                }
                // Matrices that are not in codes are multiplied by the library, and what is added by a kernel of its own.
                _ => {
                    assert_eq!(base[1], 1 + LAYERS * products, "{what}");
                    assert_eq!(with[1], base[1], "{what}");
                    assert!(with[0] <= base[0] + LAYERS * (4 + 7), "{what}");
                }
            }
        }
    }
}

/// Texts that grow over several pages, one and several of them, chosen in any way: the same ids, however their passes are started.
#[test]
fn tokens_that_ask_for_the_same_are_started_as_a_whole() {
    if !gpu().is_some_and(|it| it.repeats()) {
        return;
    }
    let run = |repeating: bool, prompts: &[Vec<u32>], config: &GenerateConfig| {
        let gpu = fresh_gpu().unwrap();
        let device = Device::Cuda(gpu.clone());
        let mut model = model_of(&Format::QLORA, &device, 400);
        let ctx = Context::new(Some(adapter(model.as_mut(), 8, &device)));
        let config = GenerateConfig { repeating, ..config.clone() };
        let before = gpu.counters();
        let done = generate(model.as_ref(), prompts, (&config, &ctx), &mut |_, _| true).unwrap();
        assert_eq!(gpu.why_not_repeated(), None);
        (done, gpu.counters().since(&before), gpu.stats().peak_reserved)
    };
    let of = |length: u32| (1..=length).collect::<Vec<u32>>();
    let greedy = GenerateConfig { max_new_tokens: 150, compute: DType::Bf16, ..GenerateConfig::default() };
    let drawn = GenerateConfig { temperature: 1.0, repetition_penalty: 1.1, compute: DType::F32, ..greedy.clone() };
    for (prompts, config) in
        [(vec![of(3)], &greedy), (vec![of(3), of(40), of(9)], &greedy), (vec![of(5), of(30)], &drawn)]
    {
        let [alone, whole] = [false, true].map(|it| run(it, &prompts, config));
        assert_eq!(whole.0, alone.0);
        assert_eq!(whole.2, alone.2, "as much memory as without");
        let (graphs, launches) = (whole.1.graphs, whole.1.launches);
        assert!(
            graphs > 75 && launches < alone.1.launches / 2,
            "{graphs} graphs, {launches} launches of {:?}",
            alone.1
        );
        assert_eq!(alone.1.graphs, 0);
    }
}

/// Every way that a token goes: formats, dtypes, one text and several, with an adapter of any rank and without.
#[test]
fn tokens_have_the_hidden_states_of_the_cpu() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    let int8 = Format { quant: Quant::Int8, ..Format::DENSE };
    for format in [&Format::QLORA, &Format::DENSE, &int8] {
        for rank in [1, 12, 16] {
            let on = |device: &Device| {
                let mut model = model(format, device);
                let updates = adapter(model.as_mut(), rank, device);
                let ctx = [Context::default(), Context::new(Some(updates))];
                let mut all = Vec::new();
                for compute in [DType::F32, DType::Bf16, DType::F16] {
                    for (texts, ctx) in [1, 3].iter().flat_map(|texts| ctx.iter().map(move |ctx| (*texts, ctx))) {
                        all.push((compute, hidden(model.as_ref(), texts, compute, ctx)));
                    }
                }
                all
            };
            for ((compute, there), (_, here)) in on(&device).iter().zip(&on(&Device::Cpu)) {
                let largest = here.iter().fold(0.0f32, |m, it| m.max(it.abs()));
                // LLM.int8() rounds activations to codes, where a small difference is one of a whole code.
                let off = if format.quant == Quant::Int8 { [1e-2, 1e-1, 5e-2] } else { [1e-5, 6e-2, 1.5e-2] };
                let off = off[*compute as usize] * largest;
                for (got, wanted) in there.iter().zip(here) {
                    assert!(
                        (got - wanted).abs() <= off,
                        "{format:?} rank {rank} {compute}: {got}, on the CPU {wanted}"
                    );
                }
            }
        }
    }
}

/// Texts of several pages, in layers with a window and without, by tiles, by few queries and without tensor cores; that fork, are cut back, and
/// go while others come.
#[test]
fn texts_over_several_pages_have_the_hidden_states_of_the_cpu() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    let config = |head_dim: usize| {
        let config = format!(
            r#"{{"architectures": ["Qwen2ForCausalLM"], "vocab_size": 50, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 400,
            "head_dim": {head_dim}, "use_sliding_window": true, "sliding_window": 40, "max_window_layers": 1}}"#
        );
        ModelConfig::parse(Path::new("config.json"), &config).unwrap()
    };
    let ids = |count: usize, seed: u32| -> Vec<u32> { (0..count as u32).map(|it| (it * 7 + seed) % 50).collect() };
    for (head_dim, compute) in
        [(32, DType::F32), (32, DType::Bf16), (32, DType::F16), (12, DType::Bf16), (144, DType::Bf16)]
    {
        let on = |device: &Device| {
            let model = build(&config(head_dim), &mut Noise { format: &Format::DENSE, device, made: 0 }).unwrap();
            let mut all = Vec::new();
            let mut pass = |cache: &mut KvCache, new: &[usize]| {
                let layout = cache.begin(new).unwrap();
                let ids = Ids::new(ids(new.iter().sum(), new.len() as u32));
                let hidden = extend(model.as_ref(), &ids, &layout, cache, &Context::default()).unwrap();
                all.push(hidden.to_device(&Device::Cpu).unwrap().to_f32_vec());
            };
            let mut cache = KvCache::new(model.config(), compute, 2);
            pass(&mut cache, &[150, 5]);
            pass(&mut cache, &[40, 1]);
            let mut cache = cache.fork(&[0, 1, 0]);
            pass(&mut cache, &[1, 2, 1]);
            assert!(cache.truncate(191));
            cache.retain(&[true, false, true]);
            cache.admit();
            pass(&mut cache, &[1, 36, 150]);
            pass(&mut cache, &[1, 1, 1]);
            all
        };
        for (pass, (there, here)) in on(&device).iter().zip(&on(&Device::Cpu)).enumerate() {
            let largest = here.iter().fold(0.0f32, |m, it| m.max(it.abs()));
            let off = [1e-5, 6e-2, 1.5e-2][compute as usize] * largest;
            for (got, wanted) in there.iter().zip(here) {
                assert!((got - wanted).abs() <= off, "{head_dim} {compute}, pass {pass}: {got}, on the CPU {wanted}");
            }
        }
    }
}
