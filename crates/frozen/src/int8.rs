//! INT8 with a scale a row, as LLM.int8() stores weights, and multiplied as it does.

use crate::{
    Error, Format, FrozenMatrix, Result,
    coded::{Block, Code, CodedMatrix, Scales},
    llm_int8,
    quant::Store,
};
use halfbyte_matmul as matmul;
use halfbyte_nf4::{Rows8, quantize_rows8};
use halfbyte_ops::frozen::OnDevice;
use halfbyte_tensor::{DType, Device, Tensor, with_float};
use std::sync::Arc;

/// The 8-bit format.
pub(crate) struct EightBit;

impl Store for EightBit {
    fn freeze(&self, _: &Format, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>> {
        Ok(Arc::new(Int8Matrix::quantize(&weight)?))
    }

    fn dry(&self, _: &Format, device: &Device, dims: (usize, usize), _: DType) -> Arc<dyn FrozenMatrix> {
        Arc::new(Int8Matrix { coded: CodedMatrix::dry(device, dims, (CODE, Block::Row), false) })
    }
}

/// Two's complement, times 1/127 as LLM.int8() has it.
const CODE: Code = Code { bits: 8, values: &SIGNED, unit: 7.874_016e-3 };

static SIGNED: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        values[code] = (code as u8).cast_signed() as f32;
        code += 1;
    }
    values
};

/// A weight of 8-bit integers with a scale a row, as LLM.int8() stores it, multiplied as LLM.int8() does.
///
/// The gradient of the input is that of the decoded weight, as in bitsandbytes.
#[derive(Debug)]
pub struct Int8Matrix {
    coded: CodedMatrix,
}

impl Int8Matrix {
    /// Quantises a `(out_features, in_features)` tensor row by row.
    pub fn quantize(weight: &Tensor) -> Result<Int8Matrix> {
        let &[out, inner] = weight.shape() else {
            return Err(Error::NotAMatrix { shape: weight.shape().to_vec(), dtype: weight.dtype() });
        };
        let rows = with_float!(weight.dtype(), T, quantize_rows8(weight.data::<T>(), out, inner))?;
        Ok(Int8Matrix::from_rows(rows))
    }

    /// Takes rows that were quantised elsewhere.
    pub fn from_rows(rows: Rows8) -> Int8Matrix {
        let Rows8 { rows, cols, codes, absmax, .. } = rows;
        let codes: Vec<u8> = codes.into_iter().map(i8::cast_unsigned).collect();
        let scales = Scales::Plain(Tensor::from_vec(&[absmax.len()], absmax));
        let codes = Tensor::from_vec(&[codes.len()], codes);
        Int8Matrix { coded: CodedMatrix::new((rows, cols), (CODE, Block::Row), codes, scales) }
    }
}

impl FrozenMatrix for Int8Matrix {
    fn dims(&self) -> (usize, usize) {
        self.coded.dims
    }

    fn source<'a>(&'a self) -> Box<dyn matmul::Source + 'a> {
        self.coded.source()
    }

    fn forward(&self, x: &Tensor) -> Option<halfbyte_autograd::Result<Tensor>> {
        Some(llm_int8::product(&self.coded, x).map_err(Into::into))
    }

    fn multiplies_itself(&self) -> bool {
        true
    }

    fn bytes(&self) -> usize {
        self.coded.bytes()
    }

    fn on_device(&self) -> Option<OnDevice<'_>> {
        self.coded.on_device()
    }

    fn to_device(&self, device: &Device) -> halfbyte_tensor::Result<Option<Arc<dyn FrozenMatrix>>> {
        let Some(coded) = self.coded.to_device(device)? else { return Ok(None) };
        Ok(Some(Arc::new(Int8Matrix { coded })))
    }

    fn format(&self) -> String {
        "int8 (a scale a row)".into()
    }
}
