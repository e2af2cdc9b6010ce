use crate::{FrozenMatrix, Result, dense::Dense, four_bit::FourBit, int8::EightBit, mxfp4};
use halfbyte_files::Reading;
use halfbyte_nf4::QuantType;
use halfbyte_ops::{Refusal, WeightFormat};
use halfbyte_tensor::{DType, Device, Ledger, Tensor};
use std::sync::Arc;

/// How a format makes matrices.
pub(crate) trait Store: Sync {
    /// A matrix with the values of a `(out_features, in_features)` weight, as nearly as the format can.
    fn freeze(&self, format: &Format, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>>;

    /// Whether a weight may lie on a GPU.
    fn takes_from_gpu(&self) -> bool {
        false
    }

    /// One of these dimensions without contents, on a dry device. `dtype` is what the weight would have been loaded as.
    fn dry(&self, format: &Format, device: &Device, dims: (usize, usize), dtype: DType) -> Arc<dyn FrozenMatrix>;
}

/// Every format in a line: its name in Rust, its name for people, and what its own file makes of it.
macro_rules! formats {
    ($($(#[$doc:meta])* $variant:ident, $name:literal => $store:expr;)*) => {
        /// How a frozen matrix is stored.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Quant {
            $($(#[$doc])* $variant),*
        }

        impl Quant {
            /// All of them.
            pub const ALL: &'static [Quant] = &[$(Quant::$variant),*];

            /// What people call it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Quant::$variant => $name),*
                }
            }

            fn store(self) -> &'static dyn Store {
                match self {
                    $(Quant::$variant => &$store),*
                }
            }
        }
    };
}

formats! {
    /// As loaded.
    None, "none" => Dense;
    /// 4-bit NormalFloat.
    Nf4, "nf4" => FourBit(QuantType::Nf4);
    /// 4-bit floating point.
    Fp4, "fp4" => FourBit(QuantType::Fp4);
    /// 4-bit integers.
    Int4, "int4" => FourBit(QuantType::Int4);
    /// 8-bit integers, a scale a row.
    Int8, "int8" => EightBit;
}

/// A storage format with its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Which codec.
    pub quant: Quant,
    /// Elements a scale of the 4-bit formats covers.
    pub block_size: usize,
    /// Whether those scales are quantised once more.
    pub double_quant: bool,
}

impl Format {
    /// Dense, as loaded.
    pub const DENSE: Format = Format { quant: Quant::None, block_size: 64, double_quant: false };

    /// QLoRA's: NF4 in blocks of 64 with double quantisation.
    pub const QLORA: Format = Format { quant: Quant::Nf4, block_size: 64, double_quant: true };

    /// Stores a `(out_features, in_features)` weight.
    pub fn freeze(&self, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>> {
        self.quant.store().freeze(self, weight)
    }

    /// A matrix of these dimensions on a dry device, with the parts that a stored one has and no contents. `dtype` is what
    /// the weight would have been loaded as.
    pub fn dry(&self, device: &Device, dims: (usize, usize), dtype: DType) -> Arc<dyn FrozenMatrix> {
        self.quant.store().dry(self, device, dims, dtype)
    }

    /// Bytes that a matrix of these dimensions takes, for the plan. `dense_size` is the size of a loaded element.
    pub fn bytes(&self, out: usize, inner: usize, dense_size: usize) -> usize {
        let dtype = if dense_size == DType::F32.size() { DType::F32 } else { DType::Bf16 };
        self.dry(&Device::Dry(Ledger::new()), (out, inner), dtype).bytes()
    }
}

impl WeightFormat for Format {
    fn freeze(&self, _path: &str, weight: Tensor) -> std::result::Result<Arc<dyn FrozenMatrix>, Refusal> {
        Ok(Format::freeze(self, weight)?)
    }

    fn keep(&self, _path: &str, weight: Tensor) -> std::result::Result<Arc<dyn FrozenMatrix>, Refusal> {
        Ok(Format::freeze(&Format::DENSE, weight)?)
    }

    fn takes_from_gpu(&self) -> bool {
        self.quant.store().takes_from_gpu()
    }

    fn stored(
        &self,
        path: &str,
        dims: (usize, usize),
        files: &Reading<'_>,
        _: &Device,
    ) -> std::result::Result<Option<Arc<dyn FrozenMatrix>>, Refusal> {
        Ok(mxfp4::stored(path, dims, files)?)
    }
}
