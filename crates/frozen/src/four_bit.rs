//! NF4, FP4 and INT4: a code of sixteen values and a scale a block, byte for byte as bitsandbytes stores them.

use crate::{
    Error, Format, FrozenMatrix, Result,
    coded::{Block, Code, CodedMatrix, Scales},
    quant::Store,
};
use halfbyte_matmul as matmul;
use halfbyte_nf4::{Blocks4, QuantType, Scales as Stored, quantize4};
use halfbyte_ops::frozen::OnDevice;
use halfbyte_tensor::{DType, Device, Element, Place, Tensor, with_float};
use std::sync::Arc;

/// One of the 4-bit formats.
pub(crate) struct FourBit(pub(crate) QuantType);

impl Store for FourBit {
    fn freeze(&self, format: &Format, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>> {
        Ok(Arc::new(FourBitMatrix::quantize(&weight, self.0, format.block_size, format.double_quant)?))
    }

    fn takes_from_gpu(&self) -> bool {
        true
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
        if let Place::Gpu(_) = weight.place() {
            // Of nothing, to have the settings judged.
            quantize4::<f32>(&[], quant_type, block_size, double_quant)?;
            let (codes, absmax) = CodedMatrix::encode4(weight, quant_type.encoding(), block_size)?;
            // A 32nd of the weight's bytes comes to the host, whose rule for scales of scales is the one that there is.
            let scales = match double_quant {
                true => scales(Stored::double(absmax.to_device(&Device::Cpu)?.data())),
                false => Scales::Plain(absmax),
            };
            let layout = (code(quant_type), Block::Elements(block_size));
            return Ok(FourBitMatrix { quant_type, coded: CodedMatrix::beside((out, inner), layout, codes, scales)? });
        }
        let blocks =
            with_float!(weight.dtype(), T, quantize4(weight.data::<T>(), quant_type, block_size, double_quant))?;
        Ok(FourBitMatrix::from_blocks((out, inner), blocks))
    }

    /// Takes blocks that were quantised elsewhere. Their number of elements must be `out * inner`.
    pub fn from_blocks(dims: (usize, usize), blocks: Blocks4) -> FourBitMatrix {
        assert_eq!(blocks.len, dims.0 * dims.1, "the blocks must fill a matrix of {dims:?}");
        let layout = (code(blocks.quant_type), Block::Elements(blocks.block_size));
        let coded = CodedMatrix::new(dims, layout, flat(blocks.packed), scales(blocks.scales));
        FourBitMatrix { quant_type: blocks.quant_type, coded }
    }

    /// Takes codes that lie on a GPU, whose scales go there, too. Both must be as many as the dimensions and the size of a block say.
    pub(crate) fn from_codes(
        dims: (usize, usize),
        (quant_type, block_size): (QuantType, usize),
        codes: Tensor,
        stored: Stored,
    ) -> Result<FourBitMatrix> {
        let layout = (code(quant_type), Block::Elements(block_size));
        let coded = CodedMatrix::beside(dims, layout, codes, scales(stored))?;
        Ok(FourBitMatrix { quant_type, coded })
    }
}

fn flat<T: Element>(values: Vec<T>) -> Tensor {
    Tensor::from_vec(&[values.len()], values)
}

fn scales(stored: Stored) -> Scales {
    match stored {
        Stored::Plain(absmax) => Scales::Plain(flat(absmax)),
        Stored::Double { codes, nested_absmax, offset } => {
            Scales::Double { codes: flat(codes), nested_absmax: flat(nested_absmax), offset }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_testkit::{cuda::gpu, noise_in};

    /// Codes, scales, what these are relative to.
    fn parts(matrix: &FourBitMatrix) -> [Vec<u8>; 3] {
        let here = matrix.coded.to_device(&Device::Cpu).unwrap();
        let coded = here.as_ref().unwrap_or(&matrix.coded);
        let [scales, nested] = match coded.scales() {
            Scales::Plain(absmax) => [absmax.le_bytes().to_vec(), Vec::new()],
            Scales::Double { codes, nested_absmax, offset } => {
                [codes.le_bytes().to_vec(), [nested_absmax.le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat()]
            }
        };
        [coded.codes().le_bytes().to_vec(), scales, nested]
    }

    #[test]
    fn a_gpu_makes_the_bytes_that_the_cpu_makes() {
        let Some(gpu) = gpu() else { return };
        let device = Device::Cuda(gpu);
        let odd = [
            f32::NAN,
            f32::INFINITY,
            -f32::INFINITY,
            0.0,
            -0.0,
            1e-40,
            -1e-39,
            f32::MIN_POSITIVE,
            f32::MAX,
            -f32::MAX,
            2.0f32.powi(127),
            65504.0,
        ];
        for quant_type in QuantType::ALL {
            for (dims, block) in [((3, 64), 64), ((7, 61), 32), ((33, 129), 4096), ((300, 96), 64), ((1, 1), 64)] {
                for dtype in [DType::F32, DType::Bf16, DType::F16] {
                    for kind in 0..5usize {
                        let mut weight = noise_in(&[dims.0, dims.1], DType::F32, kind as u64, -1.0, 1.0);
                        for (i, it) in weight.data_mut::<f32>().iter_mut().enumerate() {
                            *it = match kind {
                                // A block of zeros, and sizes that differ by orders of magnitude.
                                0 if i / block == 1 => 0.0,
                                0 => *it * 10f32.powi((i / block) as i32 % 60 - 30),
                                // Values of the code, and what lies beside a threshold.
                                1 => quant_type.code()[i % 16],
                                2 => f32::from_bits(quant_type.encoding().0[i % 15].to_bits() + i as u32 % 3 - 1),
                                // Around the smallest normal number, and in every other block below it.
                                3 if i / block % 2 == 0 => [f32::MIN_POSITIVE, 1e-38, -9e-39, 3e-39][i % 4],
                                3 => [1e-39, -2e-40, 5e-39][i % 3],
                                // What is no number, here and there.
                                _ if i % 5 == 0 => odd[i / 5 % odd.len()],
                                _ => *it,
                            };
                        }
                        let weight = weight.to_dtype(dtype);
                        for double in [false, true] {
                            let of = |it: &Tensor| FourBitMatrix::quantize(it, quant_type, block, double).unwrap();
                            let there = of(&weight.to_device(&device).unwrap());
                            assert!(matches!(there.coded.codes().place(), Place::Gpu(_)));
                            let what = format!("{quant_type:?} of {dims:?} by {block} in {dtype}, {kind}, {double}");
                            assert!(parts(&there) == parts(&of(&weight)), "{what}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_gpu_refuses_what_the_cpu_refuses() {
        let Some(gpu) = gpu() else { return };
        let weight = noise_in(&[2, 64], DType::Bf16, 1, -1.0, 1.0).to_device(&Device::Cuda(gpu)).unwrap();
        let error = FourBitMatrix::quantize(&weight, QuantType::Nf4, 48, true).unwrap_err();
        assert_eq!(error.to_string(), quantize4::<f32>(&[0.0], QuantType::Nf4, 48, true).unwrap_err().to_string());
    }
}
