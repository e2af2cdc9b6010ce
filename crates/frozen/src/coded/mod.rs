//! What all formats of few bits have in common, said once: codes, what each stands for, and a scale for every block of them.
//!
//! Such a format is a [`Code`] and a size of block. The parts are tensors, which lie in host memory, on a GPU or only in the books of a
//! dry run; to move a matrix is to move its parts. In host memory a product reads them by look-up, on a GPU by the kernels beside
//! this file, which know no format either.

mod cuda;

use halfbyte_matmul as matmul;
use halfbyte_nf4::{NESTED_BLOCK_SIZE, blockwise8::DynamicMap};
use halfbyte_ops::{
    frozen::{Coded, Decoder, FourBit, OnDevice},
    gpu_product::Window,
};
use halfbyte_tensor::{DType, Device, Place, Result, Tensor};
use std::{ops::Deref, sync::Arc};

/// What codes stand for: element `i` is `values[code i] * scale of its block * unit`, each product rounded to f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code {
    /// Bits a code: 4 (two a byte, the first in the high nibble) or 8.
    pub(crate) bits: usize,
    /// A value for each code.
    pub(crate) values: &'static [f32],
    /// The last factor.
    pub(crate) unit: f32,
}

/// One scale a block.
#[derive(Debug)]
pub(crate) enum Scales {
    /// f32.
    Plain(Tensor),
    /// Double quantisation: `map[codes[b]] * nested_absmax[b / 256] + offset`, with the signed dynamic map.
    Double {
        /// A byte a block.
        codes: Tensor,
        /// f32.
        nested_absmax: Tensor,
        offset: f32,
    },
}

impl Scales {
    fn to_device(&self, device: &Device) -> Result<Scales> {
        Ok(match self {
            Scales::Plain(absmax) => Scales::Plain(absmax.to_device(device)?),
            Scales::Double { codes, nested_absmax, offset } => Scales::Double {
                codes: codes.to_device(device)?,
                nested_absmax: nested_absmax.to_device(device)?,
                offset: *offset,
            },
        })
    }
}

/// Which elements share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// So many of the flattened rows, a power of two from 32 on; a block may straddle rows.
    Elements(usize),
    /// A row.
    Row,
}

/// A matrix of codes.
#[derive(Debug)]
pub(crate) struct CodedMatrix(Arc<Stored>);

impl Deref for CodedMatrix {
    type Target = Stored;

    fn deref(&self) -> &Stored {
        &self.0
    }
}

/// What it consists of.
#[derive(Debug)]
pub(crate) struct Stored {
    /// `(out_features, in_features)`.
    pub(crate) dims: (usize, usize),
    pub(crate) code: Code,
    pub(crate) block: Block,
    /// Bytes.
    codes: Tensor,
    scales: Scales,
    /// Away from host memory: the code's values, and behind them the map of doubly quantised scales.
    tables: Option<Tensor>,
}

impl Stored {
    /// Puts the parts together, which must be as large as the dimensions say, in host memory or in a dry run.
    fn new(dims: (usize, usize), (code, block): (Code, Block), codes: Tensor, scales: Scales) -> Stored {
        let len = dims.0 * dims.1;
        assert_eq!(codes.len(), (len * code.bits).div_ceil(8), "codes fill a matrix of {dims:?}");
        let blocks = match block {
            Block::Elements(size) => {
                assert!(
                    size >= 32 && size.is_power_of_two(),
                    "a block of {size}: kernels read 32 elements with one scale"
                );
                len.div_ceil(size)
            }
            Block::Row => dims.0,
        };
        let (Scales::Plain(given) | Scales::Double { codes: given, .. }) = &scales;
        assert_eq!(given.len(), blocks, "a scale for each block of a matrix of {dims:?}");
        let mut it = Stored { dims, code, block, codes, scales, tables: None };
        // Made on a GPU only to be planned with; what is moved there brings its tables.
        if let Place::Gpu(_) = it.codes.place() {
            it.tables = Some(it.codes.scratch_like(&[it.table_values().len()], DType::F32));
        }
        it
    }

    pub(crate) fn is_double(&self) -> bool {
        matches!(self.scales, Scales::Double { .. })
    }

    /// The values of the codes where kernels look them up; none in host memory.
    fn tables_on(&self, device: &Device) -> Result<Option<Tensor>> {
        if *device == Device::Cpu {
            return Ok(None);
        }
        let values = self.table_values();
        Ok(Some(Tensor::from_vec(&[values.len()], values).to_device(device)?))
    }

    fn table_values(&self) -> Vec<f32> {
        let map: &[f32] = if self.is_double() { DynamicMap::Signed.values() } else { &[] };
        [self.code.values, map].concat()
    }
}

impl CodedMatrix {
    /// Puts the parts together, which must be as large as the dimensions say, in host memory or in a dry run.
    pub(crate) fn new(
        dims: (usize, usize),
        (code, block): (Code, Block),
        codes: Tensor,
        scales: Scales,
    ) -> CodedMatrix {
        CodedMatrix(Arc::new(Stored::new(dims, (code, block), codes, scales)))
    }

    /// Parts without contents, for a dry run.
    pub(crate) fn dry(
        device: &Device,
        dims: (usize, usize),
        (code, block): (Code, Block),
        double: bool,
    ) -> CodedMatrix {
        let len = dims.0 * dims.1;
        let blocks = match block {
            Block::Elements(size) => len.div_ceil(size),
            Block::Row => dims.0,
        };
        let part = |len: usize, dtype| Tensor::scratch_on(device, &[len], dtype);
        let scales = if double {
            let nested_absmax = part(blocks.div_ceil(NESTED_BLOCK_SIZE), DType::F32);
            Scales::Double { codes: part(blocks, DType::U8), nested_absmax, offset: 0.0 }
        } else {
            Scales::Plain(part(blocks, DType::F32))
        };
        CodedMatrix::new(dims, (code, block), part((len * code.bits).div_ceil(8), DType::U8), scales)
    }

    /// Parts of which the codes lie on a GPU, and the scales, in host memory, go there, too.
    pub(crate) fn beside(
        dims: (usize, usize),
        (code, block): (Code, Block),
        codes: Tensor,
        scales: Scales,
    ) -> Result<CodedMatrix> {
        let device = codes.device();
        let scales = scales.to_device(&device)?;
        let it = Stored::new(dims, (code, block), codes, scales);
        Ok(CodedMatrix(Arc::new(Stored { tables: it.tables_on(&device)?, ..it })))
    }

    /// Codes of the flattened rows of a matrix on a GPU, four bits each, and the largest size of each block of elements, f32; both
    /// there. Bit for bit what [`quantize4`](halfbyte_nf4::quantize4) makes on the host with this encoding: thresholds, the nibbles between
    /// them, and what takes the place of NaN.
    pub(crate) fn encode4(
        weight: &Tensor,
        encoding: (&[f32; 15], &[u8; 16], f32),
        block: usize,
    ) -> Result<(Tensor, Tensor)> {
        cuda::encode4(weight, encoding, block)
    }

    /// The bytes that the format stores.
    pub(crate) fn bytes(&self) -> usize {
        self.codes.bytes()
            + match &self.scales {
                Scales::Plain(absmax) => absmax.bytes(),
                Scales::Double { codes, nested_absmax, .. } => codes.bytes() + nested_absmax.bytes() + size_of::<f32>(),
            }
    }

    /// The codes, where they lie.
    pub(crate) fn codes(&self) -> &Tensor {
        &self.codes
    }

    /// The scales, where they lie.
    #[cfg(test)]
    pub(crate) fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The plain scales, where they lie.
    pub(crate) fn absmax(&self) -> &Tensor {
        match &self.scales {
            Scales::Plain(absmax) => absmax,
            Scales::Double { .. } => unreachable!("asked of a format that has plain scales only"),
        }
    }

    /// The operand that a CPU product reads.
    pub(crate) fn source(&self) -> Box<dyn matmul::Source + '_> {
        let Block::Elements(block) = self.block else {
            return Box::new(matmul::Rows8::new(self.dims.0, self.dims.1, self.codes.data(), self.absmax().data()));
        };
        let scales = match &self.scales {
            Scales::Plain(absmax) => matmul::Scales4::Plain(absmax.data()),
            Scales::Double { codes, nested_absmax, offset } => matmul::Scales4::Double {
                codes: codes.data(),
                map: DynamicMap::Signed.values(),
                nested_absmax: nested_absmax.data(),
                nested_block_size: NESTED_BLOCK_SIZE,
                offset: *offset,
            },
        };
        let values = self.code.values.try_into().expect("blocks are of 4-bit codes, of which there are sixteen");
        Box::new(matmul::Lut4::new(self.dims, self.codes.data(), values, scales, block))
    }

    /// The matrix elsewhere; `None` if it is there.
    pub(crate) fn to_device(&self, device: &Device) -> Result<Option<CodedMatrix>> {
        if is_at(device, self.codes.place()) {
            return Ok(None);
        }
        let scales = self.scales.to_device(device)?;
        let codes = self.codes.to_device(device)?;
        let Stored { dims, code, block, .. } = **self;
        Ok(Some(CodedMatrix(Arc::new(Stored { dims, code, block, codes, scales, tables: self.tables_on(device)? }))))
    }

    pub(crate) fn on_device(&self) -> Option<OnDevice<'_>> {
        match self.codes.place() {
            Place::Host => None,
            Place::Gpu(_) | Place::Dry(_) => Some(OnDevice::Coded(self)),
        }
    }

    /// Writes what the codes stand for into a window, without their scales.
    pub(crate) fn decode_codes(&self, into: Window<'_>) -> Result<()> {
        cuda::decode(self, None, into)
    }
}

impl Coded for CodedMatrix {
    fn place(&self) -> Place<'_> {
        self.codes.place()
    }

    fn decoder(&self) -> Arc<dyn Decoder> {
        self.0.clone()
    }

    fn four_bit(&self) -> Option<FourBit<'_>> {
        // Eight bits are half of what a product reads; nobody has asked for these yet.
        let unit = self.code.unit == 1.0;
        (self.code.bits == 4 && unit).then(|| cuda::four_bit(self))
    }
}

impl Decoder for Stored {
    fn decode(&self, into: Window<'_>) -> Result<()> {
        cuda::decode(self, Some(&self.scales), into)
    }
}

/// Whether something at a place is on that device already.
pub(crate) fn is_at(device: &Device, place: Place<'_>) -> bool {
    match (device, place) {
        (Device::Cpu, Place::Host) => true,
        (Device::Cuda(gpu), Place::Gpu(here)) => Arc::ptr_eq(gpu, here),
        (Device::Dry(ledger), Place::Dry(here)) => Arc::ptr_eq(ledger, here),
        _ => false,
    }
}
