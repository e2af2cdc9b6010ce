//! The bytes behind a tensor: one vector of the right type, memory of a GPU, or nothing but a count; returned to its pool when the
//! last owner lets go.

use crate::{DType, Element, ledger::DryBuffer, pool};
use half::{bf16, f16};

/// Elements in host memory, by dtype.
#[derive(Debug)]
#[doc(hidden)]
pub enum Buffer {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    U8(Vec<u8>),
    U32(Vec<u32>),
}

impl Buffer {
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Buffer::F32(_) => DType::F32,
            Buffer::Bf16(_) => DType::Bf16,
            Buffer::F16(_) => DType::F16,
            Buffer::U8(_) => DType::U8,
            Buffer::U32(_) => DType::U32,
        }
    }
}

/// Where the bytes live. Closed on purpose: matched exhaustively by every op.
#[derive(Debug)]
pub(crate) enum Storage {
    Cpu(Buffer),
    Cuda(halfbyte_cuda::Buffer, DType),
    Dry(DryBuffer),
}

impl Storage {
    pub(crate) fn new<T: Element>(data: Vec<T>) -> Storage {
        pool::adopt(data.len() * T::DTYPE.size());
        Storage::Cpu(T::buffer(data))
    }

    pub(crate) fn scratch<T: Element>(len: usize) -> Storage {
        Storage::Cpu(T::buffer(pool::take::<T>(len)))
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Storage::Cpu(buffer) = self {
            pool::give_back(std::mem::replace(buffer, Buffer::U8(Vec::new())));
        }
    }
}
