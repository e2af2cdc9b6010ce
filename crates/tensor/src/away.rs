//! Tensors of a GPU whose elements wait in host memory until they are needed again.

use crate::{DType, Place, Result, Tensor};
use halfbyte_cuda::{Coming, Stowed};

/// A tensor whose elements are in page-locked host memory, or on the way there. Nobody waits for the copies but the device.
#[derive(Debug)]
pub struct Away {
    shape: Vec<usize>,
    dtype: DType,
    room: usize,
    /// Absent when it was fetched.
    stowed: Option<Stowed>,
    /// The tensor, as long as it may not be let go of.
    leaving: Option<Tensor>,
}

/// A tensor that is on its way back.
#[derive(Debug)]
pub struct Returning {
    shape: Vec<usize>,
    dtype: DType,
    room: usize,
    coming: Coming,
}

impl Away {
    /// Starts to copy a tensor's elements to host memory; none where they lie there anyway. Until [`Away::let_go`] the tensor takes
    /// memory of the GPU, too.
    ///
    /// # Errors
    /// If the system gives no page-locked memory, or the GPU fails.
    pub fn send(x: &Tensor) -> Result<Option<Away>> {
        // What lies among others goes by itself.
        let x = if x.room() + x.cols() < x.stride() { &x.dense() } else { x };
        let (Place::Gpu(gpu), Some(buffer)) = (x.place(), x.cuda_buffer()) else { return Ok(None) };
        let stowed = Some(gpu.stow(buffer)?);
        let (shape, leaving) = (x.shape().to_vec(), Some(x.clone()));
        Ok(Some(Away { shape, dtype: x.dtype(), room: x.room(), stowed, leaving }))
    }

    /// Lets go of the GPU's memory: kernels that follow wait until its contents have left.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn let_go(&mut self) -> Result<()> {
        self.take_back().map(drop)
    }

    /// The tensor itself, if it was not let go of.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn take_back(&mut self) -> Result<Option<Tensor>> {
        if let (Some(_), Some(stowed)) = (&self.leaving, &self.stowed) {
            stowed.before_compute()?;
        }
        Ok(self.leaving.take())
    }

    /// Starts to copy the elements to new memory of the GPU.
    ///
    /// # Errors
    /// If the GPU has no memory left, or fails.
    pub fn fetch(mut self) -> Result<Returning> {
        self.let_go()?;
        let Some(stowed) = self.stowed.take() else { unreachable!("fetched once") };
        let shape = std::mem::take(&mut self.shape);
        Ok(Returning { shape, dtype: self.dtype, room: self.room, coming: stowed.fetch()? })
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        // Who has the memory next must not write it before it was read. A GPU of which that cannot be asked has failed.
        let _ = self.let_go();
    }
}

impl Returning {
    /// The tensor. Kernels that follow wait until its elements are there.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn arrive(self) -> Result<Tensor> {
        let buffer = self.coming.arrive()?;
        Ok(Tensor::from_cuda(&self.shape, self.dtype, buffer).roomy(self.room))
    }
}
