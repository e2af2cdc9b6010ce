use super::STATE;
use crate::{Error, Format, FourBitMatrix, FrozenMatrix, Int8Matrix, Quant, Result};
use halfbyte_files::{Reading, ShardedFiles};
use halfbyte_nf4::{Blocks4, NESTED_BLOCK_SIZE, QuantType, Rows8, Scales, blockwise8::DynamicMap};
use halfbyte_tensor::{DType, Device, Tensor};
use serde::Deserialize;
use std::sync::Arc;

/// The codes whose states a checkpoint can hold.
const CODES: [QuantType; 2] = [QuantType::Nf4, QuantType::Fp4];

/// The JSON of a 4-bit weight. Loaders refuse keys that they do not know, since these might change what the bytes mean.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    /// What the weight was before; decoding goes to the dtype of the activations instead.
    #[serde(rename = "dtype")]
    _dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

/// How a checkpoint stores its linear layers, from the first that is quantised.
///
/// Fails if a state cannot be read. `None` if nothing is quantised.
pub fn stored_format(files: &ShardedFiles) -> Result<Option<Format>> {
    let reading = Reading::new(files);
    for (name, _) in files.iter() {
        if name.ends_with(".SCB") {
            return Ok(Some(Format { quant: Quant::Int8, ..Format::DENSE }));
        }
        if name.contains(STATE) {
            let state = parse_state(name, &required(name, &reading)?)?;
            let quant = if state.quant_type == "fp4" { Quant::Fp4 } else { Quant::Nf4 };
            return Ok(Some(Format {
                quant,
                block_size: state.blocksize,
                double_quant: state.nested_offset.is_some(),
            }));
        }
    }
    Ok(None)
}

/// Whether the tensor `name` holds the codes of a quantised layer. Its dtype does not tell: four-bit codes may be stored as the
/// bytes of any (`bnb_4bit_quant_storage`).
pub fn holds_codes(files: &ShardedFiles, name: &str) -> bool {
    let path = name.trim_end_matches(".weight");
    files.get(&format!("{name}.absmax")).is_some() || files.get(&format!("{path}.SCB")).is_some()
}

/// The quantised `(out_features, in_features)` matrix of the linear layer at `path`, or `None` if it is stored dense.
pub(super) fn matrix(
    path: &str,
    dims: (usize, usize),
    (files, device): (&Reading<'_>, &Device),
) -> Result<Option<Arc<dyn FrozenMatrix>>> {
    for code in CODES {
        let name = format!("{path}.weight.{STATE}{}", code.name());
        if let Some(bytes) = files.read(&name)? {
            let state = parse_state(&name, &bytes)?;
            return Ok(Some(Arc::new(four_bit(path, dims, (&state, code), (files, device))?)));
        }
    }
    match files.read(&format!("{path}.SCB"))? {
        Some(scb) => Ok(Some(Arc::new(int8(path, dims, &scb, files)?))),
        None => Ok(None),
    }
}

fn four_bit(
    path: &str,
    dims: (usize, usize),
    (state, code): (&QuantState, QuantType),
    (files, device): (&Reading<'_>, &Device),
) -> Result<FourBitMatrix> {
    let name = |part: &str| format!("{path}.weight{part}");
    if state.quant_type != code.name() {
        return Err(wrong(format!("the quant_state is named {} but says {}", code.name(), state.quant_type)));
    }
    if state.shape != [dims.0, dims.1] {
        return Err(wrong(format!(
            "the quantised weight has shape {:?}, config.json asks for {:?}",
            state.shape,
            [dims.0, dims.1]
        )));
    }
    let map = floats(&name(".quant_map"), &required(&name(".quant_map"), files)?)?;
    if map != code.code() {
        return Err(wrong(format!("quant_map is not the code of {}; such a checkpoint cannot be read", code.name())));
    }
    let absmax = required(&name(".absmax"), files)?;
    let scales = match state.nested_offset {
        None => Scales::Plain(floats(&name(".absmax"), &absmax)?),
        Some(offset) => {
            nested_is_known(&name(".nested_quant_map"), state, files)?;
            let nested = required(&name(".nested_absmax"), files)?;
            Scales::Double {
                codes: absmax,
                nested_absmax: floats(&name(".nested_absmax"), &nested)?,
                offset: offset as f32,
            }
        }
    };
    if !are_finite(&scales) {
        return Err(wrong("absmax holds NaN or infinite values; the checkpoint is damaged"));
    }
    if let Device::Cuda(_) = device {
        let (file, it) = files.take(&name("")).ok_or_else(|| missing(&name("")))?;
        Blocks4::check_parts(state.blocksize, dims.0 * dims.1, it.bytes(), &scales)?;
        // From the file to the device, with no copy in host memory.
        let fill = |at: usize, bytes: &mut [u8]| Ok::<(), Error>(file.read_part(it, at, bytes)?);
        let packed = Tensor::filled_on(device, &[it.bytes()], DType::U8, fill)?;
        return FourBitMatrix::from_codes(dims, (code, state.blocksize), packed, scales);
    }
    let packed = required(&name(""), files)?;
    let blocks = Blocks4::from_parts(code, state.blocksize, dims.0 * dims.1, packed, scales);
    Ok(FourBitMatrix::from_blocks(dims, blocks?))
}

/// Whether all scales are numbers, of which doubly quantised ones are looked at in detail only where their own scales are near the end
/// of the range.
fn are_finite(scales: &Scales) -> bool {
    if let Scales::Double { nested_absmax, offset, .. } = scales
        && nested_absmax.iter().all(|it| (it.abs() + offset.abs()).is_finite())
    {
        return true;
    }
    scales.to_f32().iter().all(|it| it.is_finite())
}

fn nested_is_known(map: &str, state: &QuantState, files: &Reading<'_>) -> Result<()> {
    let nested = floats(map, &required(map, files)?)?;
    let same_map = nested == DynamicMap::Signed.values();
    let same_dtype = state.nested_dtype.as_deref().is_none_or(|it| it == "float32");
    if same_map && same_dtype && state.nested_blocksize == Some(NESTED_BLOCK_SIZE) {
        return Ok(());
    }
    Err(wrong(format!(
        "its absmax values are quantised in another way than f32 scales for every {NESTED_BLOCK_SIZE} and the dynamic map; such a checkpoint cannot be read"
    )))
}

fn int8(path: &str, dims: (usize, usize), scb: &[u8], files: &Reading<'_>) -> Result<Int8Matrix> {
    // Row order is written as 0; the others are tilings of GPUs that no library reads any more.
    if files.read(&format!("{path}.weight_format"))?.is_some_and(|it| it.iter().any(|byte| *byte != 0)) {
        return Err(wrong("weight_format is not row-major (0); load and save the model with a current bitsandbytes"));
    }
    let absmax = floats(&format!("{path}.SCB"), scb)?;
    if !absmax.iter().all(|it| it.is_finite()) {
        return Err(wrong("SCB holds NaN or infinite values; the checkpoint is damaged"));
    }
    let codes = required(&format!("{path}.weight"), files)?;
    let codes = codes.into_iter().map(|it| i8::from_le_bytes([it])).collect();
    Ok(Int8Matrix::from_rows(Rows8::from_parts(dims.0, dims.1, codes, absmax)?))
}

fn parse_state(name: &str, bytes: &[u8]) -> Result<QuantState> {
    serde_json::from_slice(bytes).map_err(|e| wrong(format!("{name} cannot be understood: {e}")))
}

fn required(name: &str, files: &Reading<'_>) -> Result<Vec<u8>> {
    files.read(name)?.ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Error {
    wrong(format!("the tensor {name} is missing from the quantised checkpoint"))
}

fn floats(name: &str, bytes: &[u8]) -> Result<Vec<f32>> {
    if !bytes.len().is_multiple_of(4) {
        return Err(wrong(format!("{name} has {} bytes, expected f32 numbers", bytes.len())));
    }
    Ok(bytes.chunks_exact(4).map(|it| f32::from_le_bytes([it[0], it[1], it[2], it[3]])).collect())
}

fn wrong(message: impl Into<String>) -> Error {
    Error::Stored(message.into())
}
