//! A tensor's elements as files hold them: little-endian bytes of one of the types that files know.

use crate::{DType, Device, Element, Tensor, bf16, f16};
use bytemuck::Pod;
use halfbyte_files::Dtype;
use std::borrow::Cow;

impl DType {
    /// What files call it.
    pub fn in_files(self) -> Dtype {
        match self {
            DType::F32 => Dtype::F32,
            DType::Bf16 => Dtype::Bf16,
            DType::F16 => Dtype::F16,
            DType::U8 => Dtype::U8,
            DType::U32 => Dtype::U32,
        }
    }

    /// The dtype of tensors that are stored as `stored`; none if there is no such.
    pub fn of_files(stored: Dtype) -> Option<DType> {
        [DType::F32, DType::Bf16, DType::F16, DType::U8, DType::U32].into_iter().find(|it| it.in_files() == stored)
    }
}

impl Tensor {
    /// A tensor whose bytes `fill` writes, little-endian: straight from a file, say.
    pub fn filled<E>(
        shape: &[usize],
        dtype: DType,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Tensor, E> {
        fn write<T: Element + Pod, E>(to: &mut Tensor, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(to.data_mut::<T>());
            fill(bytes)?;
            reverse_on_big_endian::<T>(bytes);
            Ok(())
        }
        let mut it = Tensor::scratch(shape, dtype);
        match dtype {
            DType::F32 => write::<f32, E>(&mut it, fill)?,
            DType::Bf16 => write::<bf16, E>(&mut it, fill)?,
            DType::F16 => write::<f16, E>(&mut it, fill)?,
            DType::U8 => write::<u8, E>(&mut it, fill)?,
            DType::U32 => write::<u32, E>(&mut it, fill)?,
        }
        Ok(it)
    }

    /// A tensor on a device whose bytes `fill` writes, little-endian, in pieces: it is told at which byte one begins. On a GPU they go there
    /// from page-locked memory, one while the next is written, and no copy stays in host memory.
    ///
    /// # Errors
    /// What `fill` reports, and a GPU without memory, or that fails.
    pub fn filled_on<E: From<crate::Error>>(
        device: &Device,
        shape: &[usize],
        dtype: DType,
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<Tensor, E> {
        match device {
            Device::Cuda(gpu) if cfg!(target_endian = "little") => crate::cuda::filled(gpu, shape, dtype, fill),
            Device::Cpu | Device::Cuda(_) | Device::Dry(_) => {
                let here = Tensor::filled(shape, dtype, |bytes| fill(0, bytes))?;
                Ok(here.to_device(device)?)
            }
        }
    }

    /// A tensor of these bytes, little-endian, which must fill its shape.
    pub fn from_le_bytes(shape: &[usize], dtype: DType, bytes: &[u8]) -> Tensor {
        let filled = Tensor::filled(shape, dtype, |out| {
            assert_eq!(out.len(), bytes.len(), "a tensor's bytes must fill its shape {shape:?} of {dtype}");
            out.copy_from_slice(bytes);
            Ok::<(), std::convert::Infallible>(())
        });
        let Ok(it) = filled;
        it
    }

    /// The elements as bytes, little-endian. Panics if they lie on a GPU: `to_device(&Device::Cpu)` first.
    pub fn le_bytes(&self) -> Cow<'_, [u8]> {
        fn read<T: Element + Pod>(from: &Tensor) -> Cow<'_, [u8]> {
            let bytes: &[u8] = bytemuck::cast_slice(from.data::<T>());
            if cfg!(target_endian = "little") {
                return Cow::Borrowed(bytes);
            }
            let mut bytes = bytes.to_vec();
            reverse_on_big_endian::<T>(&mut bytes);
            Cow::Owned(bytes)
        }
        match self.dtype() {
            DType::F32 => read::<f32>(self),
            DType::Bf16 => read::<bf16>(self),
            DType::F16 => read::<f16>(self),
            DType::U8 => read::<u8>(self),
            DType::U32 => read::<u32>(self),
        }
    }
}

fn reverse_on_big_endian<T>(bytes: &mut [u8]) {
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_goes_into_bytes_and_comes_back() {
        for dtype in [DType::F32, DType::Bf16, DType::F16, DType::U8, DType::U32] {
            let bytes: Vec<u8> = (0..6 * dtype.size()).map(|i| (i * 41 + 3) as u8).collect();
            let it = Tensor::from_le_bytes(&[2, 3], dtype, &bytes);
            assert_eq!((it.dtype(), it.shape()), (dtype, &[2, 3][..]));
            assert_eq!(&*it.le_bytes(), &bytes[..], "{dtype}");
            assert_eq!(DType::of_files(dtype.in_files()), Some(dtype));
            assert_eq!(dtype.in_files().size(), dtype.size());
        }
        assert_eq!(DType::of_files(Dtype::I64), None);
    }

    #[test]
    fn the_first_byte_is_the_lowest() {
        assert_eq!(&*Tensor::from_vec(&[1], vec![0x0403_0201_u32]).le_bytes(), [1, 2, 3, 4]);
        assert_eq!(Tensor::from_le_bytes(&[1], DType::F32, &[0, 0, 0x80, 0x3f]).data::<f32>(), [1.0]);
        assert_eq!(Tensor::from_le_bytes(&[1], DType::Bf16, &[0x80, 0x3f]).to_f32_vec(), [1.0]);
    }

    #[test]
    fn what_fails_while_filling_is_handed_on() {
        let failed = Tensor::filled(&[2], DType::F32, |_| Err("no"));
        assert_eq!(failed.err(), Some("no"));
    }
}
