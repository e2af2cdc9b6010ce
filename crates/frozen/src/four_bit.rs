use crate::{FrozenMatrix, gpu::GpuMatrix};
use halfbyte_matmul as matmul;
use halfbyte_nf4::{Blocks4, QuantType, Scales, quantize4};
use halfbyte_tensor::{Device, Tensor, with_float};
use std::sync::Arc;

/// A weight of 4-bit codes with a scale a block, byte for byte as bitsandbytes stores it.
#[derive(Debug)]
pub struct FourBitMatrix {
    dims: (usize, usize),
    blocks: Blocks4,
}

impl FourBitMatrix {
    /// Quantises a `(out_features, in_features)` tensor; blocks run over the flattened rows.
    pub fn quantize(
        weight: &Tensor,
        quant_type: QuantType,
        block_size: usize,
        double_quant: bool,
    ) -> crate::Result<FourBitMatrix> {
        let &[out, inner] = weight.shape() else {
            return Err(crate::Error::NotAMatrix { shape: weight.shape().to_vec(), dtype: weight.dtype() });
        };
        let blocks =
            with_float!(weight.dtype(), T, quantize4(weight.data::<T>(), quant_type, block_size, double_quant))?;
        Ok(FourBitMatrix { dims: (out, inner), blocks })
    }

    /// Takes blocks that were quantised elsewhere. Their number of elements must be `out * inner`.
    pub fn from_blocks(dims: (usize, usize), blocks: Blocks4) -> FourBitMatrix {
        assert_eq!(blocks.len, dims.0 * dims.1, "the blocks must fill a matrix of {dims:?}");
        FourBitMatrix { dims, blocks }
    }

    /// The codes and scales.
    pub fn blocks(&self) -> &Blocks4 {
        &self.blocks
    }
}

impl FrozenMatrix for FourBitMatrix {
    fn dims(&self) -> (usize, usize) {
        self.dims
    }

    fn source<'a>(&'a self) -> Box<dyn matmul::Source + 'a> {
        let scales = match &self.blocks.scales {
            Scales::Plain(absmax) => matmul::Scales4::Plain(absmax),
            Scales::Double { codes, nested_absmax, offset } => matmul::Scales4::Double {
                codes,
                map: halfbyte_nf4::blockwise8::DynamicMap::Signed.values(),
                nested_absmax,
                nested_block_size: halfbyte_nf4::NESTED_BLOCK_SIZE,
                offset: *offset,
            },
        };
        let Blocks4 { packed, quant_type, block_size, .. } = &self.blocks;
        Box::new(matmul::Lut4::new(self.dims, packed, quant_type.code(), scales, *block_size))
    }

    fn bytes(&self) -> usize {
        self.blocks.bytes()
    }

    fn to_device(&self, device: &Device) -> halfbyte_tensor::Result<Option<Arc<dyn FrozenMatrix>>> {
        match device {
            Device::Cpu | Device::Dry(_) => Ok(None),
            Device::Cuda(_) => GpuMatrix::four_bit(self, device).map(Some),
        }
    }

    fn format(&self) -> String {
        let name = match self.blocks.quant_type {
            QuantType::Nf4 => "nf4",
            QuantType::Fp4 => "fp4",
            QuantType::Int4 => "int4",
        };
        let double = if matches!(self.blocks.scales, Scales::Double { .. }) { ", double quantised" } else { "" };
        format!("{name} (block {}{double})", self.blocks.block_size)
    }
}
