use crate::{Param, ParamId};
use halfbyte_tensor::Tensor;
use std::collections::BTreeMap;

/// The gradients of one or several backward passes, in the order in which the parameters were created, so that sums and
/// norms over them are the same in every run.
#[derive(Debug, Default)]
pub struct Grads(BTreeMap<ParamId, Tensor>);

impl Grads {
    /// The gradient of a parameter, of the parameter's shape.
    pub fn get(&self, param: &Param) -> Option<&Tensor> {
        self.0.get(&param.id())
    }

    /// Takes the gradient of a parameter out.
    pub fn take(&mut self, param: &Param) -> Option<Tensor> {
        self.0.remove(&param.id())
    }

    /// How many parameters have a gradient.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no parameter has one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All gradients, for scaling and clipping.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.0.values_mut()
    }

    /// Adds another pass's gradients, as gradient accumulation does.
    pub fn merge(&mut self, other: Grads) {
        for (id, g) in other.0 {
            self.add(id, g);
        }
    }

    /// Bytes of all gradients.
    pub fn bytes(&self) -> usize {
        self.0.values().map(Tensor::bytes).sum()
    }

    pub(crate) fn contains(&self, id: ParamId) -> bool {
        self.0.contains_key(&id)
    }

    pub(crate) fn add(&mut self, id: ParamId, g: Tensor) {
        match self.0.get_mut(&id) {
            Some(sum) => sum.add_assign(&g),
            None => drop(self.0.insert(id, g)),
        }
    }
}
