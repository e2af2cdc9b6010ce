use crate::{ledger::Ledger, storage::Buffer};
use half::{bf16, f16};
use halfbyte_cuda::Gpu;
use std::{fmt, sync::Arc};

/// The type of a tensor's elements, known at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Bytes.
    U8,
    /// Unsigned 32-bit integers, for token ids.
    U32,
}

impl DType {
    /// Bytes an element takes.
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::U8 => 1,
        }
    }

    /// Whether the elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16 | DType::F16)
    }

    /// The name that PyTorch and `config.json` use, such as `bfloat16`.
    pub fn torch_name(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::Bf16 => "bfloat16",
            DType::F16 => "float16",
            DType::U8 => "uint8",
            DType::U32 => "uint32",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::U8 => "u8",
            DType::U32 => "u32",
        })
    }
}

/// Where a tensor's bytes live.
#[derive(Clone, Debug)]
pub enum Device {
    /// Host memory.
    Cpu,
    /// Memory of a GPU.
    Cuda(Arc<Gpu>),
    /// None: a dry run counts what host memory would hold.
    Dry(Arc<Ledger>),
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        match (self, other) {
            (Device::Cpu, Device::Cpu) => true,
            (Device::Cuda(a), Device::Cuda(b)) => Arc::ptr_eq(a, b),
            (Device::Dry(a), Device::Dry(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// A Rust type that a tensor can hold. Sealed: the list of dtypes is closed.
pub trait Element: Copy + Default + PartialEq + Send + Sync + fmt::Debug + sealed::Sealed + 'static {
    /// The dtype of a tensor of `Self`.
    const DTYPE: DType;
    /// What a fresh scratch buffer holds in debug builds, so that reading it before writing shows.
    const POISON: Self;
    #[doc(hidden)]
    fn buffer(data: Vec<Self>) -> Buffer;
    #[doc(hidden)]
    fn slice(buffer: &Buffer) -> Option<&[Self]>;
    #[doc(hidden)]
    fn slice_mut(buffer: &mut Buffer) -> Option<&mut [Self]>;
    /// The vector with `len` elements, whose values are unspecified.
    #[doc(hidden)]
    fn resized(buffer: Buffer, len: usize) -> Buffer;
}

/// A floating-point element.
pub trait Float: Element {
    /// Widens (exactly) to f32.
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
}

mod sealed {
    #[doc(hidden)]
    pub trait Sealed {}
}

macro_rules! element {
    ($T:ty, $variant:ident, $poison:expr) => {
        impl sealed::Sealed for $T {}
        impl Element for $T {
            const DTYPE: DType = DType::$variant;
            const POISON: Self = $poison;
            fn buffer(data: Vec<Self>) -> Buffer {
                Buffer::$variant(data)
            }
            fn slice(buffer: &Buffer) -> Option<&[Self]> {
                match buffer {
                    Buffer::$variant(it) => Some(it),
                    Buffer::Pages(it) if it.dtype() == Self::DTYPE => Some(it.elements()),
                    _ => None,
                }
            }
            fn slice_mut(buffer: &mut Buffer) -> Option<&mut [Self]> {
                match buffer {
                    Buffer::$variant(it) => Some(it),
                    Buffer::Pages(it) if it.dtype() == Self::DTYPE => Some(it.elements_mut()),
                    _ => None,
                }
            }
            fn resized(mut buffer: Buffer, len: usize) -> Buffer {
                match &mut buffer {
                    Buffer::$variant(it) => it.resize(len, Self::default()),
                    _ => unreachable!("the pool recycles vectors of {} for no other dtype", Self::DTYPE),
                }
                buffer
            }
        }
    };
}
element!(f32, F32, f32::NAN);
element!(bf16, Bf16, bf16::NAN);
element!(f16, F16, f16::NAN);
element!(u8, U8, 0xA5);
element!(u32, U32, 0xA5A5_A5A5);

impl Float for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
}

impl Float for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    /// Written without a branch so that loops over it vectorise; a NaN stays a (quiet) NaN.
    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        let bits = value.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded } as u16)
    }
}

impl Float for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f16 {
        f16::from_f32(value)
    }
}
