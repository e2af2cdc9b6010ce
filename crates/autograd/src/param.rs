use crate::Result;
use halfbyte_tensor::{Device, Tensor};
use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

/// Identifies a [`Param`]. Ordered by creation, which is the order of every list of gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(u64);

/// A named trainable tensor, shared between the model that reads it and the optimizer that writes it.
///
/// Cloning gives another handle on the same tensor: tied weights are one `Param` in two places.
#[derive(Clone, Debug)]
pub struct Param(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: ParamId,
    name: String,
    value: RwLock<Tensor>,
}

impl Param {
    /// Registers a trainable tensor.
    pub fn new(name: impl Into<String>, value: Tensor) -> Param {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = ParamId(NEXT.fetch_add(1, Ordering::Relaxed));
        Param(Arc::new(Inner { id, name: name.into(), value: RwLock::new(value) }))
    }

    /// Its identity.
    pub fn id(&self) -> ParamId {
        self.0.id
    }

    /// Its name, as in a checkpoint.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The current value (shared, not copied).
    pub fn value(&self) -> Tensor {
        self.0.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the value by one of the same shape.
    pub fn set(&self, value: Tensor) {
        let mut slot = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(slot.shape(), value.shape(), "{}: a trainable tensor keeps its shape", self.0.name);
        *slot = value;
    }

    /// Moves the value to a device.
    pub fn to_device(&self, device: &Device) -> Result<()> {
        let mut slot = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
        *slot = slot.to_device(device)?;
        Ok(())
    }

    /// Takes the value out, for an optimizer that changes many parameters at once. Until [`Param::put`] the parameter
    /// holds a placeholder.
    pub fn take(&self) -> Tensor {
        let mut slot = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *slot, Tensor::scalar(f32::NAN))
    }

    /// Puts a value back that [`Param::take`] gave.
    pub fn put(&self, value: Tensor) {
        *self.0.value.write().unwrap_or_else(PoisonError::into_inner) = value;
    }

    /// Changes the value in place; copies it first if somebody still holds it.
    pub fn update<R>(&self, f: impl FnOnce(&mut Tensor) -> R) -> R {
        let mut slot = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::replace(&mut *slot, Tensor::scalar(0.0));
        *slot = taken.into_unique();
        f(&mut slot)
    }
}
