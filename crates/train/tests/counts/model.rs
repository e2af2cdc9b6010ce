//! A slice of a LLaMA: heads and ranks of the real size, one layer, few channels.

use halfbyte_frozen::{Format, FrozenMatrix};
use halfbyte_lora::{Adapter, Base, Linear, LoraConfig, Role, Weight, attach};
use halfbyte_models::{Model, ModelConfig, Result, Weights, build};
use halfbyte_tensor::{DType, Device, Tensor};
use halfbyte_testkit::noise_in;
use std::{path::Path, sync::Arc};

pub(crate) const HIDDEN: usize = 512;
pub(crate) const INNER: usize = 1408;
pub(crate) const HEADS: usize = 4;
pub(crate) const VOCABULARY: usize = 2048;
pub(crate) const RANK: usize = 16;

/// Numbers from noise, with matrices in NF4, on a device.
struct Noise<'a> {
    device: &'a Device,
    made: u64,
}

impl Noise<'_> {
    fn next(&mut self, shape: &[usize], spread: f32) -> Tensor {
        self.made += 1;
        noise_in(shape, DType::Bf16, self.made, -spread, spread)
    }

    fn frozen(&mut self, format: &Format, dims: (usize, usize)) -> Base {
        let here = format.freeze(self.next(&[dims.0, dims.1], 0.1)).unwrap();
        let there: Option<Arc<dyn FrozenMatrix>> = here.to_device(self.device).unwrap();
        Base::Frozen(there.unwrap_or(here))
    }
}

impl Weights for Noise<'_> {
    fn linear(&mut self, path: &str, dims: (usize, usize), _bias: bool) -> Result<Linear> {
        Ok(Linear::new(path, self.frozen(&Format::QLORA, dims), None))
    }

    fn weight(&mut self, name: &str, shape: &[usize], role: Role) -> Result<Weight> {
        let values = self.next(shape, 1.0);
        Ok(Weight::frozen(name, role, values.to_device(self.device).unwrap()))
    }

    fn head(&mut self, path: &str, dims: (usize, usize)) -> Result<Linear> {
        Ok(Linear::head(path, self.frozen(&Format::DENSE, dims)))
    }
}

pub(crate) fn model(device: &Device) -> Box<dyn Model> {
    let config = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "vocab_size": {VOCABULARY}, "hidden_size": {HIDDEN}, "intermediate_size": {INNER},
        "num_hidden_layers": 1, "num_attention_heads": {HEADS}, "num_key_value_heads": {HEADS}, "max_position_embeddings": 2048}}"#
    );
    let config = ModelConfig::parse(Path::new("config.json"), &config).unwrap();
    build(&config, &mut Noise { device, made: 0 }).unwrap()
}

/// One over all layers, as if it had trained.
pub(crate) fn adapter(model: &mut dyn Model, device: &Device) -> Arc<Adapter> {
    let config = LoraConfig { rank: RANK, ..LoraConfig::default() };
    let (adapter, _) = attach(&model.modules(), &config, "mine", 1).unwrap();
    for (i, param) in adapter.params().iter().enumerate() {
        let shape = param.value().shape().to_vec();
        param.set(noise_in(&shape, DType::F32, 100 + i as u64, -0.1, 0.1));
    }
    adapter.to_device(device).unwrap();
    Arc::new(adapter)
}
