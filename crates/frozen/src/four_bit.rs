//! NF4, FP4 and INT4: a code of sixteen values and a scale a block, byte for byte as bitsandbytes stores them.

use crate::{
    Error, Format, FrozenMatrix, Result,
    coded::{Block, Code, CodedMatrix, Scales},
    quant::Store,
};
use halfbyte_matmul as matmul;
use halfbyte_nf4::{Blocks4, QuantType, Scales as Stored, quantize4};
use halfbyte_ops::frozen::OnDevice;
use halfbyte_tensor::{DType, Device, Tensor, with_float};
use std::sync::Arc;

/// One of the 4-bit formats.
pub(crate) struct FourBit(pub(crate) QuantType);

impl Store for FourBit {
    fn freeze(&self, format: &Format, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>> {
        Ok(Arc::new(FourBitMatrix::quantize(&weight, self.0, format.block_size, format.double_quant)?))
    }

    fn dry(&self, format: &Format, device: &Device, dims: (usize, usize), _: DType) -> Arc<dyn FrozenMatrix> {
        let layout = (code(self.0), Block::Elements(format.block_size));
        let coded = CodedMatrix::dry(device, dims, layout, format.double_quant);
        Arc::new(FourBitMatrix { quant_type: self.0, coded })
    }
}

fn code(quant_type: QuantType) -> Code {
    Code { bits: 4, values: quant_type.code(), unit: 1.0 }
}

/// A weight of 4-bit codes.
#[derive(Debug)]
pub struct FourBitMatrix {
    quant_type: QuantType,
    coded: CodedMatrix,
}

impl FourBitMatrix {
    /// Quantises a `(out_features, in_features)` tensor; blocks run over the flattened rows.
    pub fn quantize(
        weight: &Tensor,
        quant_type: QuantType,
        block_size: usize,
        double_quant: bool,
    ) -> Result<FourBitMatrix> {
        let &[out, inner] = weight.shape() else {
            return Err(Error::NotAMatrix { shape: weight.shape().to_vec(), dtype: weight.dtype() });
        };
        let blocks =
            with_float!(weight.dtype(), T, quantize4(weight.data::<T>(), quant_type, block_size, double_quant))?;
        Ok(FourBitMatrix::from_blocks((out, inner), blocks))
    }

    /// Takes blocks that were quantised elsewhere. Their number of elements must be `out * inner`.
    pub fn from_blocks(dims: (usize, usize), blocks: Blocks4) -> FourBitMatrix {
        assert_eq!(blocks.len, dims.0 * dims.1, "the blocks must fill a matrix of {dims:?}");
        let flat = |values: Vec<f32>| Tensor::from_vec(&[values.len()], values);
        let bytes = |values: Vec<u8>| Tensor::from_vec(&[values.len()], values);
        let scales = match blocks.scales {
            Stored::Plain(absmax) => Scales::Plain(flat(absmax)),
            Stored::Double { codes, nested_absmax, offset } => {
                Scales::Double { codes: bytes(codes), nested_absmax: flat(nested_absmax), offset }
            }
        };
        let layout = (code(blocks.quant_type), Block::Elements(blocks.block_size));
        let coded = CodedMatrix::new(dims, layout, bytes(blocks.packed), scales);
        FourBitMatrix { quant_type: blocks.quant_type, coded }
    }
}

impl FrozenMatrix for FourBitMatrix {
    fn dims(&self) -> (usize, usize) {
        self.coded.dims
    }

    fn source<'a>(&'a self) -> Box<dyn matmul::Source + 'a> {
        self.coded.source()
    }

    fn bytes(&self) -> usize {
        self.coded.bytes()
    }

    fn on_device(&self) -> Option<OnDevice<'_>> {
        self.coded.on_device()
    }

    fn to_device(&self, device: &Device) -> halfbyte_tensor::Result<Option<Arc<dyn FrozenMatrix>>> {
        let Some(coded) = self.coded.to_device(device)? else { return Ok(None) };
        Ok(Some(Arc::new(FourBitMatrix { quant_type: self.quant_type, coded })))
    }

    fn format(&self) -> String {
        let double = if self.coded.is_double() { ", double quantised" } else { "" };
        let Block::Elements(size) = self.coded.block else { unreachable!("blocks run over the flattened rows") };
        format!("{} (block {size}{double})", self.quant_type.name())
    }
}
