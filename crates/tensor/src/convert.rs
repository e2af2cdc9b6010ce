//! Conversions between floating-point slices, in loops that the compiler vectorises.

use crate::{DType, Device, Float, Place, Result, Tensor, cuda, vectorised};
use rayon::prelude::*;
use std::sync::Arc;

/// Below this many elements a second thread costs more than it saves.
const PARALLEL_FROM: usize = 1 << 16;
const CHUNK: usize = 1 << 14;

/// Widens `src` into `out` (same length).
#[inline(always)]
pub fn load_f32<T: Float>(src: &[T], out: &mut [f32]) {
    for (o, s) in out.iter_mut().zip(src) {
        *o = s.to_f32();
    }
}

/// Rounds `src` into `out` (same length), to nearest, ties to even.
#[inline(always)]
pub fn store_f32<T: Float>(src: &[f32], out: &mut [T]) {
    for (o, s) in out.iter_mut().zip(src) {
        *o = T::from_f32(*s);
    }
}

impl Tensor {
    /// [`Tensor::to_dtype`] of a tensor that is no longer needed: who owns it alone still does if nothing changes.
    #[must_use]
    pub fn into_dtype(self, dtype: DType) -> Tensor {
        if self.dtype() == dtype { self } else { self.to_dtype(dtype) }
    }

    /// The tensor without anything beside its rows: itself, or a copy.
    #[must_use]
    pub fn dense(&self) -> Tensor {
        if self.is_dense() { self.clone() } else { cuda::dense(self) }
    }

    /// The elements converted to another floating-point dtype, rounded to nearest even. Shares storage if nothing changes.
    pub fn to_dtype(&self, dtype: DType) -> Tensor {
        if self.dtype() == dtype {
            return self.clone();
        }
        match self.place() {
            Place::Host => {}
            Place::Gpu(_) => return cuda::to_dtype(self, dtype),
            Place::Dry(_) => return self.scratch_like(self.shape(), dtype),
        }
        crate::with_float!(self.dtype(), S, {
            crate::with_float!(dtype, D, {
                let mut out = Tensor::scratch(self.shape(), dtype);
                let (src, dst) = (self.data::<S>(), out.data_mut::<D>());
                for_each_chunk(
                    dst,
                    src,
                    #[inline(always)]
                    |dst: &mut [D], src: &[S]| {
                        for (d, s) in dst.iter_mut().zip(src) {
                            *d = D::from_f32(s.to_f32());
                        }
                    },
                );
                out
            })
        })
    }

    /// The tensor copied to a device; shares storage if they are there already.
    ///
    /// Fails if the device has no memory left, or something that was asked of it before went wrong.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        match (device, self.place()) {
            (Device::Cpu, Place::Host) => Ok(self.clone()),
            (Device::Cpu, Place::Gpu(_)) => cuda::to_host(self),
            (Device::Cuda(gpu), Place::Gpu(here)) if Arc::ptr_eq(gpu, here) => Ok(self.clone()),
            (Device::Cuda(gpu), Place::Gpu(_)) => cuda::to_gpu(&cuda::to_host(self)?, gpu),
            (Device::Cuda(gpu), Place::Host) => cuda::to_gpu(self, gpu),
            (Device::Dry(ledger), Place::Dry(here)) if Arc::ptr_eq(ledger, here) => Ok(self.clone()),
            (Device::Dry(ledger), _) => Ok(Tensor::dry(ledger, self.shape(), self.dtype())),
            (_, Place::Dry(_)) => {
                Err(crate::Error::invalid("to_device", "a tensor of a dry run has no elements to move"))
            }
        }
    }

    /// All elements, widened to f32, wherever they lie.
    ///
    /// Fails if they lie on a device that failed.
    pub fn read_f32(&self) -> Result<Vec<f32>> {
        match self.place() {
            Place::Gpu(_) => Ok(cuda::to_host(self)?.to_f32_vec()),
            Place::Host | Place::Dry(_) => Ok(self.to_f32_vec()),
        }
    }

    /// All elements, widened to f32, where no device can fail: [`Tensor::read_f32`] is for tensors that may lie on one.
    ///
    /// Panics if the device that they lie on fails.
    #[track_caller]
    pub fn to_f32_vec(&self) -> Vec<f32> {
        if let Place::Gpu(_) = self.place() {
            let read = self.read_f32();
            return read.unwrap_or_else(|e| panic!("a tensor was read as if its device could not fail: {e}"));
        }
        let mut out = vec![0.0; self.len()];
        crate::with_float!(
            self.dtype(),
            S,
            for_each_chunk(
                &mut out,
                self.data::<S>(),
                #[inline(always)]
                |o: &mut [f32], s: &[S]| load_f32(s, o)
            )
        );
        out
    }

    /// Adds `rhs` (same shape, any floating-point dtype) element by element. Copies first if the storage is shared.
    pub fn add_assign(&mut self, rhs: &Tensor) {
        assert_eq!(self.shape(), rhs.shape(), "add_assign: the shapes of sum and summand must agree");
        self.make_unique();
        match self.place() {
            Place::Host => {}
            Place::Gpu(_) => return cuda::add_assign(self, rhs),
            Place::Dry(ledger) => {
                return ledger.count(self.len() as u64, (2 * self.bytes() + rhs.bytes()) as u64);
            }
        }
        crate::with_float!(self.dtype(), D, {
            crate::with_float!(rhs.dtype(), S, {
                for_each_chunk(
                    self.data_mut::<D>(),
                    rhs.data::<S>(),
                    #[inline(always)]
                    |dst: &mut [D], src: &[S]| {
                        for (d, s) in dst.iter_mut().zip(src) {
                            *d = D::from_f32(d.to_f32() + s.to_f32());
                        }
                    },
                );
            })
        })
    }

    /// Whether no element is NaN or infinite.
    ///
    /// Fails if the elements lie on a device that failed.
    pub fn is_finite(&self) -> Result<bool> {
        match self.place() {
            Place::Host => {}
            Place::Gpu(_) => return cuda::is_finite(self),
            Place::Dry(_) => return Ok(true),
        }
        Ok(crate::with_float!(
            self.dtype(),
            S,
            self.data::<S>().par_chunks(CHUNK).all(|it| vectorised!({
                // Without a way out, so that the loop vectorises.
                it.iter().fold(true, |finite, v| finite & v.to_f32().is_finite())
            }))
        ))
    }
}

fn for_each_chunk<D: Send, S: Sync>(dst: &mut [D], src: &[S], f: impl Fn(&mut [D], &[S]) + Sync) {
    if dst.len() < PARALLEL_FROM {
        vectorised!(f(dst, src));
    } else {
        let chunks = dst.par_chunks_mut(CHUNK).zip(src.par_chunks(CHUNK));
        chunks.for_each(|(d, s)| vectorised!(f(d, s)));
    }
}
