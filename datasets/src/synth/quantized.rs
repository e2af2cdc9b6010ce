//! The same folder as bitsandbytes would save it in NF4 with double quantisation: a 65-billion model is then 36 GB on a disk
//! instead of 131.

use anyhow::{Context, Result};
use halfbyte_lora::Role;
use halfbyte_models::WeightSpec;
use safetensors::{SafeTensors, tensor::Dtype};
use serde_json::{Value, json};

use super::{Fill, Random};

/// A checkpoint from the real library, for what all of them have in common.
const EXAMPLE: &[u8] = include_bytes!("../../../tests/fixtures/stack/llama-nf4-double/model.safetensors");
const EXAMPLE_CONFIG: &str = include_str!("../../../tests/fixtures/stack/llama-nf4-double/config.json");

const BLOCK: usize = 64;
const NESTED_BLOCK: usize = 256;

/// How the folder says that it is quantised.
pub(super) fn config() -> Result<Value> {
    let config: Value = serde_json::from_str(EXAMPLE_CONFIG)?;
    config.get("quantization_config").cloned().context("the example has no quantization_config")
}

/// A tensor as it is stored: the matrices of the blocks as codes and scales, the others dense.
///
/// Codes are uniform, which is what those of normally distributed weights are; the scales are such that the weights come out as
/// large as the dense ones.
pub(super) fn tensors(spec: WeightSpec) -> Vec<Random> {
    if spec.role != Role::Linear {
        return vec![Random::dense(spec)];
    }
    let WeightSpec { name, shape, .. } = spec;
    let elements: usize = shape.iter().product();
    let blocks = elements.div_ceil(BLOCK);
    let tensor =
        |part: &str, dtype, shape: Vec<usize>, fill| Random { name: format!("{name}{part}"), dtype, shape, fill };
    let bytes = |part: &str, bytes: Vec<u8>, dtype: Dtype| {
        tensor(part, dtype, vec![bytes.len() * 8 / dtype.bitsize()], Fill::Bytes(bytes))
    };
    let state = json!({
        "quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": shape,
        "nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": 0.05,
    });
    let nested = Fill::Constant(0.01f32.to_le_bytes().to_vec());
    vec![
        tensor("", Dtype::U8, vec![elements / 2, 1], Fill::Uniform),
        tensor(".absmax", Dtype::U8, vec![blocks], Fill::Uniform),
        tensor(".nested_absmax", Dtype::F32, vec![blocks.div_ceil(NESTED_BLOCK)], nested),
        bytes(".quant_map", of_example(".quant_map"), Dtype::F32),
        bytes(".nested_quant_map", of_example(".nested_quant_map"), Dtype::F32),
        bytes(".quant_state.bitsandbytes__nf4", state.to_string().into_bytes(), Dtype::U8),
    ]
}

/// The bytes of the example's first tensor whose name ends so.
fn of_example(end: &str) -> Vec<u8> {
    let file = SafeTensors::deserialize(EXAMPLE).expect("the example is a safetensors file");
    let name =
        file.names().into_iter().find(|it| it.ends_with(end)).expect("the example is doubly quantised").to_owned();
    file.tensor(&name).expect("it was found by name").data().to_vec()
}
