//! Writing a model as bitsandbytes stores it: quantised linear layers, everything else as it was.

use anyhow::{Context, bail};
use halfbyte_frozen::{Format, Quant};
use halfbyte_lora::write_atomic;
use halfbyte_models::{Model, ModelFolder};
use halfbyte_nf4::{Blocks4, NESTED_BLOCK_SIZE, QuantType, Scales, blockwise8::DynamicMap, quantize_rows8, quantize4};
use halfbyte_tensor::{DType, Tensor, bf16, f16, with_float};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Collects a checkpoint's tensors and writes them at the end. They are held in few bits, so this is small.
pub(crate) struct QuantizedWriter {
    from: PathBuf,
    to: PathBuf,
    format: Format,
    tensors: Vec<(String, Stored)>,
}

struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl QuantizedWriter {
    /// A checkpoint of the model in `folder`, to be written into the folder `to`.
    pub(crate) fn new(folder: &ModelFolder, to: &Path, format: Format) -> anyhow::Result<QuantizedWriter> {
        Ok(QuantizedWriter { from: folder.dir().to_owned(), to: to.to_owned(), format, tensors: Vec::new() })
    }

    /// Adds the quantised `(out_features, in_features)` matrix of the linear layer at `path`.
    pub(crate) fn matrix(&mut self, path: &str, weight: &Tensor, format: Format) -> anyhow::Result<()> {
        let quant_type = match format.quant {
            Quant::Nf4 => QuantType::Nf4,
            Quant::Fp4 => QuantType::Fp4,
            Quant::Int8 => return self.int8(path, weight),
            other => bail!("{path}: {other:?} has no place in a bitsandbytes checkpoint"),
        };
        let blocks = with_float!(
            weight.dtype(),
            T,
            quantize4(weight.data::<T>(), quant_type, format.block_size, format.double_quant)
        )?;
        self.four_bit(path, weight, &blocks);
        Ok(())
    }

    /// Adds a matrix that stays as it was loaded: the output head.
    pub(crate) fn dense(&mut self, name: &str, weight: &Tensor) {
        self.push(name.to_owned(), dense(weight));
    }

    /// Writes weights, configuration and tokenizer. `model` holds embeddings, norms and biases.
    pub(crate) fn finish(mut self, model: &dyn Model) -> anyhow::Result<()> {
        let (linears, weights) = model.parts();
        for weight in weights {
            self.push(weight.path().to_owned(), dense(&weight.value()));
        }
        for linear in linears {
            if let Some(bias) = linear.bias() {
                self.push(bias.path().to_owned(), dense(&bias.value()));
            }
        }
        self.tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let mut views = Vec::with_capacity(self.tensors.len());
        for (name, it) in &self.tensors {
            views.push((name.as_str(), TensorView::new(it.dtype, it.shape.clone(), &it.bytes)?));
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        write_atomic(&self.to.join("model.safetensors"), &safetensors::serialize(views, Some(metadata))?)?;
        let mut config = model.config().raw.clone();
        config.insert("quantization_config".into(), self.quantization_config());
        write_atomic(&self.to.join("config.json"), format!("{:#}\n", Value::Object(config)).as_bytes())?;
        crate::save_model::copy_tokenizer(&self.from, &self.to)
    }

    fn four_bit(&mut self, path: &str, weight: &Tensor, blocks: &Blocks4) {
        let name = match blocks.quant_type {
            QuantType::Fp4 => "fp4",
            _ => "nf4",
        };
        let mut state = json!({
            "quant_type": name,
            "blocksize": blocks.block_size,
            "dtype": weight.dtype().torch_name(),
            "shape": weight.shape(),
        });
        self.push(format!("{path}.weight"), u8s(vec![blocks.packed.len(), 1], blocks.packed.clone()));
        // Negative zero is stored as zero in the map, though kernels decode it.
        let code: Vec<f32> = blocks.quant_type.code().iter().map(|it| it + 0.0).collect();
        self.push(format!("{path}.weight.quant_map"), f32s(&code));
        match &blocks.scales {
            Scales::Plain(absmax) => self.push(format!("{path}.weight.absmax"), f32s(absmax)),
            Scales::Double { codes, nested_absmax, offset } => {
                self.push(format!("{path}.weight.absmax"), u8s(vec![codes.len()], codes.clone()));
                self.push(format!("{path}.weight.nested_absmax"), f32s(nested_absmax));
                self.push(format!("{path}.weight.nested_quant_map"), f32s(DynamicMap::Signed.values()));
                state["nested_blocksize"] = json!(NESTED_BLOCK_SIZE);
                state["nested_dtype"] = json!("float32");
                state["nested_offset"] = json!(f64::from(*offset));
            }
        }
        let text = state.to_string().into_bytes();
        self.push(format!("{path}.weight.quant_state.bitsandbytes__{name}"), u8s(vec![text.len()], text));
    }

    fn int8(&mut self, path: &str, weight: &Tensor) -> anyhow::Result<()> {
        let (out, inner) = (weight.rows(), weight.cols());
        let rows =
            with_float!(weight.dtype(), T, quantize_rows8(weight.data::<T>(), out, inner)).context(path.to_owned())?;
        let codes = rows.codes.iter().map(|it| it.to_le_bytes()[0]).collect();
        self.push(format!("{path}.weight"), Stored { dtype: Dtype::I8, shape: vec![out, inner], bytes: codes });
        self.push(format!("{path}.SCB"), f32s(&rows.absmax));
        self.push(format!("{path}.weight_format"), u8s(Vec::new(), vec![0]));
        Ok(())
    }

    fn quantization_config(&self) -> Value {
        let four_bit = self.format.quant != Quant::Int8;
        json!({
            "_load_in_4bit": four_bit,
            "_load_in_8bit": !four_bit,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": if self.format.quant == Quant::Fp4 { "fp4" } else { "nf4" },
            "bnb_4bit_use_double_quant": self.format.double_quant && four_bit,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": null,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": four_bit,
            "load_in_8bit": !four_bit,
            "quant_method": "bitsandbytes",
        })
    }

    fn push(&mut self, name: String, stored: Stored) {
        self.tensors.push((name, stored));
    }
}

fn u8s(shape: Vec<usize>, bytes: Vec<u8>) -> Stored {
    Stored { dtype: Dtype::U8, shape, bytes }
}

fn f32s(values: &[f32]) -> Stored {
    Stored {
        dtype: Dtype::F32,
        shape: vec![values.len()],
        bytes: values.iter().flat_map(|it| it.to_le_bytes()).collect(),
    }
}

fn dense(tensor: &Tensor) -> Stored {
    let (dtype, bytes) = match tensor.dtype() {
        DType::Bf16 => (Dtype::BF16, tensor.data::<bf16>().iter().flat_map(|it| it.to_le_bytes()).collect()),
        DType::F16 => (Dtype::F16, tensor.data::<f16>().iter().flat_map(|it| it.to_le_bytes()).collect()),
        _ => (Dtype::F32, tensor.data::<f32>().iter().flat_map(|it| it.to_le_bytes()).collect()),
    };
    Stored { dtype, shape: tensor.shape().to_vec(), bytes }
}
