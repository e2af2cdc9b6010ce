use super::STATE;
use crate::{Error, Format, Quant, Result};
use halfbyte_files::{Dtype, TensorSpec};
use halfbyte_nf4::{Blocks4, NESTED_BLOCK_SIZE, QuantType, Scales, blockwise8::DynamicMap, quantize_rows8, quantize4};
use halfbyte_tensor::{Tensor, with_float};
use serde_json::{Value, json};

/// One of the tensors that hold a quantised matrix.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it is.
    pub spec: TensorSpec,
    /// Its elements, little-endian.
    pub bytes: Vec<u8>,
}

/// The tensors of the `(out_features, in_features)` matrix of the linear layer at `path`, quantised.
///
/// Fails where bitsandbytes has no such format.
pub fn parts(path: &str, weight: &Tensor, format: Format) -> Result<Vec<Part>> {
    let code = match format.quant {
        Quant::Nf4 => QuantType::Nf4,
        Quant::Fp4 => QuantType::Fp4,
        Quant::Int8 => return int8(path, weight),
        quant => return Err(Error::NotStorable { quant }),
    };
    let (block_size, double_quant) = (format.block_size, format.double_quant);
    let blocks = with_float!(weight.dtype(), T, quantize4(weight.data::<T>(), code, block_size, double_quant))?;
    Ok(four_bit(&format!("{path}.weight"), weight, &blocks))
}

/// What `config.json` says of weights in this format under `quantization_config`.
pub fn quantization_config(format: Format) -> Value {
    let four_bit = format.quant != Quant::Int8;
    json!({
        "_load_in_4bit": four_bit,
        "_load_in_8bit": !four_bit,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": if format.quant == Quant::Fp4 { "fp4" } else { "nf4" },
        "bnb_4bit_use_double_quant": format.double_quant && four_bit,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four_bit,
        "load_in_8bit": !four_bit,
        "quant_method": "bitsandbytes",
    })
}

fn four_bit(name: &str, weight: &Tensor, blocks: &Blocks4) -> Vec<Part> {
    let code = blocks.quant_type.name();
    let mut state = json!({
        "quant_type": code,
        "blocksize": blocks.block_size,
        "dtype": weight.dtype().torch_name(),
        "shape": weight.shape(),
    });
    // Negative zero is stored as zero in the map, though kernels decode it.
    let map: Vec<f32> = blocks.quant_type.code().iter().map(|it| it + 0.0).collect();
    let mut parts = vec![
        u8s(name.to_owned(), &[blocks.packed.len(), 1], blocks.packed.clone()),
        f32s(format!("{name}.quant_map"), &map),
    ];
    match &blocks.scales {
        Scales::Plain(absmax) => parts.push(f32s(format!("{name}.absmax"), absmax)),
        Scales::Double { codes, nested_absmax, offset } => {
            parts.push(u8s(format!("{name}.absmax"), &[codes.len()], codes.clone()));
            parts.push(f32s(format!("{name}.nested_absmax"), nested_absmax));
            parts.push(f32s(format!("{name}.nested_quant_map"), DynamicMap::Signed.values()));
            state["nested_blocksize"] = json!(NESTED_BLOCK_SIZE);
            state["nested_dtype"] = json!("float32");
            state["nested_offset"] = json!(f64::from(*offset));
        }
    }
    let text = state.to_string().into_bytes();
    parts.push(u8s(format!("{name}.{STATE}{code}"), &[text.len()], text));
    parts
}

fn int8(path: &str, weight: &Tensor) -> Result<Vec<Part>> {
    let (out, inner) = (weight.rows(), weight.cols());
    let rows = with_float!(weight.dtype(), T, quantize_rows8(weight.data::<T>(), out, inner))?;
    let codes = rows.codes.iter().map(|it| it.to_le_bytes()[0]).collect();
    Ok(vec![
        Part { spec: TensorSpec::new(format!("{path}.weight"), Dtype::I8, &[out, inner]), bytes: codes },
        f32s(format!("{path}.SCB"), &rows.absmax),
        // Row order.
        u8s(format!("{path}.weight_format"), &[], vec![0]),
    ])
}

fn u8s(name: String, shape: &[usize], bytes: Vec<u8>) -> Part {
    Part { spec: TensorSpec::new(name, Dtype::U8, shape), bytes }
}

fn f32s(name: String, values: &[f32]) -> Part {
    let bytes = values.iter().flat_map(|it| it.to_le_bytes()).collect();
    Part { spec: TensorSpec::new(name, Dtype::F32, &[values.len()]), bytes }
}
