//! Frozen matrices on a GPU: the same bytes there, decoded by the products of `ops`.

use crate::{DenseMatrix, FourBitMatrix, FrozenMatrix, Int8Matrix, llm_int8::cuda::product_on_gpu};
use halfbyte_matmul as matmul;
use halfbyte_nf4::{Blocks4, QuantType, Rows8, Scales, blockwise8::DynamicMap};
use halfbyte_ops::{GpuScales, GpuWeight};
use halfbyte_tensor::{Device, Result, Tensor};
use std::sync::Arc;

/// A matrix whose parts lie on a GPU.
#[derive(Debug)]
pub(crate) struct GpuMatrix {
    dims: (usize, usize),
    bytes: usize,
    format: String,
    parts: Parts,
}

#[derive(Debug)]
enum Parts {
    Dense(Tensor),
    FourBit { packed: Tensor, code: Tensor, scales: ScaleParts, block_size: usize, quant_type: QuantType },
    Rows8 { codes: Tensor, absmax: Tensor, unit: UnitRows },
}

/// The codes of 8-bit rows with an absmax that decodes each to itself.
#[derive(Debug)]
struct UnitRows {
    dims: (usize, usize),
    codes: Tensor,
    absmax: Tensor,
}

impl FrozenMatrix for UnitRows {
    fn dims(&self) -> (usize, usize) {
        self.dims
    }

    fn source<'a>(&'a self) -> Box<dyn matmul::Source + 'a> {
        unreachable!("only products on a GPU see the codes")
    }

    fn bytes(&self) -> usize {
        0
    }

    fn format(&self) -> String {
        "int8 codes".into()
    }

    fn on_gpu(&self) -> Option<GpuWeight<'_>> {
        Some(GpuWeight::Rows8 { codes: &self.codes, absmax: &self.absmax })
    }
}

#[derive(Debug)]
enum ScaleParts {
    Plain(Tensor),
    Double { codes: Tensor, map: Tensor, nested_absmax: Tensor, offset: f32 },
}

impl GpuMatrix {
    pub(crate) fn dense(matrix: &DenseMatrix, device: &Device) -> Result<Arc<dyn FrozenMatrix>> {
        GpuMatrix::of(matrix, Parts::Dense(matrix.weight().to_device(device)?))
    }

    pub(crate) fn four_bit(matrix: &FourBitMatrix, device: &Device) -> Result<Arc<dyn FrozenMatrix>> {
        let Blocks4 { packed, quant_type, block_size, scales, .. } = matrix.blocks();
        let floats = |values: &[f32]| Tensor::from_vec(&[values.len()], values.to_vec()).to_device(device);
        let bytes = |values: &[u8]| Tensor::from_vec(&[values.len()], values.to_vec()).to_device(device);
        let scales = match scales {
            Scales::Plain(absmax) => ScaleParts::Plain(floats(absmax)?),
            Scales::Double { codes, nested_absmax, offset } => ScaleParts::Double {
                codes: bytes(codes)?,
                map: floats(DynamicMap::Signed.values())?,
                nested_absmax: floats(nested_absmax)?,
                offset: *offset,
            },
        };
        let (packed, code) = (bytes(packed)?, floats(quant_type.code())?);
        let parts = Parts::FourBit { packed, code, scales, block_size: *block_size, quant_type: *quant_type };
        GpuMatrix::of(matrix, parts)
    }

    pub(crate) fn rows8(matrix: &Int8Matrix, device: &Device) -> Result<Arc<dyn FrozenMatrix>> {
        let Rows8 { codes, absmax, .. } = matrix.rows();
        let bytes: Vec<u8> = codes.iter().map(|it| it.to_le_bytes()[0]).collect();
        let codes = Tensor::from_vec(&[bytes.len()], bytes).to_device(device)?;
        let ones = Tensor::from_vec(&[absmax.len()], vec![127.0f32; absmax.len()]).to_device(device)?;
        let parts = Parts::Rows8 {
            unit: UnitRows { dims: matrix.dims(), codes: codes.clone(), absmax: ones },
            codes,
            absmax: Tensor::from_vec(&[absmax.len()], absmax.clone()).to_device(device)?,
        };
        GpuMatrix::of(matrix, parts)
    }

    fn of(from: &dyn FrozenMatrix, parts: Parts) -> Result<Arc<dyn FrozenMatrix>> {
        let (dims, bytes, format) = (from.dims(), from.bytes(), from.format());
        Ok(Arc::new(GpuMatrix { dims, bytes, format, parts }))
    }

    /// The same matrix in host memory.
    fn download(&self) -> std::result::Result<Arc<dyn FrozenMatrix>, String> {
        let host = |tensor: &Tensor| tensor.to_device(&Device::Cpu).map_err(|e| e.to_string());
        let floats = |tensor: &Tensor| host(tensor).map(|it| it.data::<f32>().to_vec());
        let bytes = |tensor: &Tensor| host(tensor).map(|it| it.data::<u8>().to_vec());
        Ok(match &self.parts {
            Parts::Dense(weight) => Arc::new(DenseMatrix::new(host(weight)?).map_err(|e| e.to_string())?),
            Parts::FourBit { packed, scales, block_size, quant_type, .. } => {
                let scales = match scales {
                    ScaleParts::Plain(absmax) => Scales::Plain(floats(absmax)?),
                    ScaleParts::Double { codes, nested_absmax, offset, .. } => {
                        Scales::Double { codes: bytes(codes)?, nested_absmax: floats(nested_absmax)?, offset: *offset }
                    }
                };
                let len = self.dims.0 * self.dims.1;
                let blocks = Blocks4::from_parts(*quant_type, *block_size, len, bytes(packed)?, scales);
                Arc::new(FourBitMatrix::from_blocks(self.dims, blocks.map_err(|e| e.to_string())?))
            }
            Parts::Rows8 { codes, absmax, .. } => {
                let codes = bytes(codes)?.into_iter().map(|it| i8::from_le_bytes([it])).collect();
                let rows = Rows8::from_parts(self.dims.0, self.dims.1, codes, floats(absmax)?);
                Arc::new(Int8Matrix::from_rows(rows.map_err(|e| e.to_string())?))
            }
        })
    }
}

impl FrozenMatrix for GpuMatrix {
    fn dims(&self) -> (usize, usize) {
        self.dims
    }

    /// A copy in host memory, for what is done once, such as a merge. NaN, if the device fails meanwhile.
    fn source<'a>(&'a self) -> Box<dyn matmul::Source + 'a> {
        Box::new(HostCopy { dims: self.dims, matrix: self.download().ok() })
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn format(&self) -> String {
        self.format.clone()
    }

    fn on_gpu(&self) -> Option<GpuWeight<'_>> {
        Some(match &self.parts {
            Parts::Dense(weight) => GpuWeight::Dense(weight),
            Parts::FourBit { packed, code, scales, block_size, .. } => {
                let scales = match scales {
                    ScaleParts::Plain(absmax) => GpuScales::Plain(absmax),
                    ScaleParts::Double { codes, map, nested_absmax, offset } => {
                        GpuScales::Double { codes, map, nested_absmax, offset: *offset }
                    }
                };
                GpuWeight::FourBit { packed, code, scales, block_size: *block_size }
            }
            Parts::Rows8 { codes, absmax, .. } => GpuWeight::Rows8 { codes, absmax },
        })
    }

    fn forward(&self, x: &Tensor) -> Option<halfbyte_autograd::Result<Tensor>> {
        let Parts::Rows8 { absmax, unit, .. } = &self.parts else { return None };
        Some(product_on_gpu(x, (unit, self), absmax).map_err(Into::into))
    }

    fn to_device(&self, device: &Device) -> Result<Option<Arc<dyn FrozenMatrix>>> {
        match device {
            Device::Cpu => Ok(self.download().ok()),
            Device::Cuda(_) | Device::Dry(_) => Ok(None),
        }
    }
}

#[derive(Debug)]
struct HostCopy {
    dims: (usize, usize),
    matrix: Option<Arc<dyn FrozenMatrix>>,
}

impl matmul::Source for HostCopy {
    fn rows(&self) -> usize {
        self.dims.0
    }

    fn cols(&self) -> usize {
        self.dims.1
    }

    fn read_f32(&self, row: usize, col: usize, out: &mut [f32]) {
        match &self.matrix {
            Some(matrix) => matrix.source().read_f32(row, col, out),
            None => out.fill(f32::NAN),
        }
    }
}
