//! A synthetic folder as bitsandbytes would save it in NF4 with double quantisation: a 65-billion model is then 36 GB on a disk
//! instead of 131.

use anyhow::Result;
use halfbyte_files::{Dtype, TensorSpec};
use halfbyte_frozen::{
    Format,
    bitsandbytes::{self, Part},
};
use halfbyte_lora::Role;
use halfbyte_models::WeightSpec;
use halfbyte_tensor::{DType, Tensor};
use serde_json::json;

use super::{Fill, Random};

const BLOCK: usize = 64;
const NESTED_BLOCK: usize = 256;

/// A tensor as it is stored: the matrices of the blocks as codes and scales, the others dense.
///
/// Codes are uniform, which is what those of normally distributed weights are; the scales are such that the weights come out as
/// large as the dense ones.
pub(super) fn tensors(spec: WeightSpec) -> Result<Vec<Random>> {
    if spec.role != Role::Linear {
        return Ok(vec![Random::dense(spec)]);
    }
    let WeightSpec { name, mut shape, transposed, .. } = spec;
    // bitsandbytes turns them all the same way.
    if transposed {
        shape.reverse();
    }
    let elements: usize = shape.iter().product();
    let blocks = elements.div_ceil(BLOCK);
    let random = |end: &str, dtype, shape: &[usize], fill| Random {
        spec: TensorSpec::new(format!("{name}{end}"), dtype, shape),
        fill,
    };
    let mut state = json!({
        "quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": shape,
        "nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": 0.05,
    })
    .to_string()
    .into_bytes();
    // Numbers of the tensors that follow stay aligned.
    state.resize(state.len().next_multiple_of(8), b' ');
    let nested = Fill::Constant(0.01f32.to_le_bytes().to_vec());
    let mut all = vec![
        random("", Dtype::U8, &[elements / 2, 1], Fill::Uniform),
        random(".absmax", Dtype::U8, &[blocks], Fill::Uniform),
        random(".nested_absmax", Dtype::F32, &[blocks.div_ceil(NESTED_BLOCK)], nested),
        random(".quant_state.bitsandbytes__nf4", Dtype::U8, &[state.len()], Fill::Bytes(state)),
    ];
    all.extend(maps(&name)?);
    Ok(all)
}

/// A tensor of gpt-oss as it is published: experts in MXFP4, the others dense.
pub(super) fn in_mxfp4(spec: WeightSpec) -> Vec<Random> {
    let WeightSpec { name, shape, role: Role::Linear, .. } = &spec else { return vec![Random::dense(spec)] };
    let &[experts, inner, out] = &shape[..] else { return vec![Random::dense(spec)] };
    let part = |end: &str, shape: &[usize], fill| Random {
        spec: TensorSpec::new(format!("{name}_{end}"), Dtype::U8, shape),
        fill,
    };
    let blocks = [experts, out, inner / 32];
    // Of 2^-7, with which uniform codes are as large as the dense weights.
    vec![
        part("blocks", &[&blocks[..], &[16]].concat(), Fill::Uniform),
        part("scales", &blocks, Fill::Constant(vec![120])),
    ]
}

/// The maps of codes to numbers, which are those of every matrix.
fn maps(name: &str) -> Result<Vec<Random>> {
    let path = name.trim_end_matches(".weight");
    let any = Tensor::zeros(&[1, BLOCK], DType::F32);
    let parts = bitsandbytes::parts(path, &any, Format::QLORA)?;
    let maps = parts.into_iter().filter(|it| it.spec.name.ends_with("quant_map"));
    Ok(maps.map(|Part { spec, bytes }| Random { spec, fill: Fill::Bytes(bytes) }).collect())
}
