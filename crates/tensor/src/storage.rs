//! The bytes behind a tensor: a vector of the right type, pages, memory of a GPU, or nothing but a count; returned to its pool when the
//! last owner lets go.

use crate::{DType, Element, ledger::DryBuffer, pages::Pages, pool};
use half::{bf16, f16};
use std::ops::{Deref, DerefMut};

/// Elements in host memory, by dtype; large buffers as pages.
#[derive(Debug)]
#[doc(hidden)]
pub enum Buffer {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    U8(Vec<u8>),
    U32(Vec<u32>),
    Pages(Pages),
}

impl Buffer {
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Buffer::F32(_) => DType::F32,
            Buffer::Bf16(_) => DType::Bf16,
            Buffer::F16(_) => DType::F16,
            Buffer::U8(_) => DType::U8,
            Buffer::U32(_) => DType::U32,
            Buffer::Pages(it) => it.dtype(),
        }
    }

    /// Bytes that it takes, with those that no element lies in.
    pub(crate) fn held(&self) -> usize {
        match self {
            Buffer::F32(it) => it.capacity() * 4,
            Buffer::Bf16(it) => it.capacity() * 2,
            Buffer::F16(it) => it.capacity() * 2,
            Buffer::U8(it) => it.capacity(),
            Buffer::U32(it) => it.capacity() * 4,
            Buffer::Pages(it) => it.held(),
        }
    }

    /// The elements, as they lie in memory.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Buffer::F32(it) => bytemuck::cast_slice(it),
            Buffer::Bf16(it) => bytemuck::cast_slice(it),
            Buffer::F16(it) => bytemuck::cast_slice(it),
            Buffer::U8(it) => it,
            Buffer::U32(it) => bytemuck::cast_slice(it),
            Buffer::Pages(it) => it.elements(),
        }
    }

    /// [`Buffer::bytes`] for writing.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Buffer::F32(it) => bytemuck::cast_slice_mut(it),
            Buffer::Bf16(it) => bytemuck::cast_slice_mut(it),
            Buffer::F16(it) => bytemuck::cast_slice_mut(it),
            Buffer::U8(it) => it,
            Buffer::U32(it) => bytemuck::cast_slice_mut(it),
            Buffer::Pages(it) => it.elements_mut(),
        }
    }
}

/// A buffer of the pool, which gets it back.
#[derive(Debug)]
pub(crate) struct Pooled(Buffer);

impl Deref for Pooled {
    type Target = Buffer;

    fn deref(&self) -> &Buffer {
        &self.0
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Buffer {
        &mut self.0
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        pool::give_back(std::mem::replace(&mut self.0, Buffer::U8(Vec::new())));
    }
}

/// Where the bytes live. Closed on purpose: matched exhaustively by every op.
#[derive(Debug)]
pub(crate) enum Storage {
    Cpu(Pooled),
    Cuda(halfbyte_cuda::Buffer, DType),
    Dry(DryBuffer),
}

impl Storage {
    pub(crate) fn new<T: Element>(data: Vec<T>) -> Storage {
        let buffer = T::buffer(data);
        pool::adopt(buffer.held());
        Storage::Cpu(Pooled(buffer))
    }

    pub(crate) fn scratch<T: Element>(len: usize) -> Storage {
        Storage::Cpu(Pooled(pool::take::<T>(len)))
    }
}
