use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor};

/// A weight that is not a linear layer's matrix: an embedding, a norm's scale, a bias.
///
/// Frozen, or trained with the whole model; an adapter (`modules_to_save`, `bias`) may bring its own copy, which is used
/// while that adapter is active.
#[derive(Debug)]
pub struct Weight {
    path: String,
    base: Slot,
    copies: Vec<(String, Param)>,
    active: Option<usize>,
}

#[derive(Debug)]
enum Slot {
    Frozen(Tensor),
    Trainable(Param),
}

impl Weight {
    /// A weight that never trains. `path` is its name in the checkpoint, such as `model.norm.weight`.
    pub fn frozen(path: impl Into<String>, value: Tensor) -> Weight {
        Weight { path: path.into(), base: Slot::Frozen(value), copies: Vec::new(), active: None }
    }

    /// A weight that trains with the whole model.
    pub fn trainable(param: Param) -> Weight {
        Weight { path: param.name().to_owned(), base: Slot::Trainable(param), copies: Vec::new(), active: None }
    }

    /// Its name in the checkpoint.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path of the module that owns it: the path without the last component.
    pub fn module(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |it| it.0)
    }

    /// The value in use.
    pub fn value(&self) -> Tensor {
        match (self.active_param(), &self.base) {
            (Some(param), _) | (None, Slot::Trainable(param)) => param.value(),
            (None, Slot::Frozen(tensor)) => tensor.clone(),
        }
    }

    /// The value in use, on the tape.
    pub fn var(&self, tape: &Tape<'_>) -> Var {
        match (self.active_param(), &self.base) {
            (Some(param), _) | (None, Slot::Trainable(param)) => tape.param(param),
            (None, Slot::Frozen(tensor)) => Var::constant(tensor.clone()),
        }
    }

    /// The parameter behind the value in use, if it trains.
    pub fn param(&self) -> Option<&Param> {
        match (self.active_param(), &self.base) {
            (Some(param), _) | (None, Slot::Trainable(param)) => Some(param),
            (None, Slot::Frozen(_)) => None,
        }
    }

    /// Gives an adapter its own trainable copy (f32) of the value, or of `value` where one was loaded.
    pub fn add_copy(&mut self, adapter: &str, value: Option<Tensor>) -> Param {
        let value = value.unwrap_or_else(|| self.value()).to_dtype(DType::F32);
        let param = Param::new(self.path.clone(), value.into_unique());
        self.copies.retain(|it| it.0 != adapter);
        self.copies.push((adapter.to_owned(), param.clone()));
        param
    }

    /// The copy that an adapter brought.
    pub fn copy_of(&self, adapter: &str) -> Option<&Param> {
        self.copies.iter().find(|it| it.0 == adapter).map(|it| &it.1)
    }

    /// Uses an adapter's copy if it has one, else the base.
    pub fn set_active(&mut self, adapter: Option<&str>) {
        self.active = adapter.and_then(|name| self.copies.iter().position(|it| it.0 == name));
    }

    fn active_param(&self) -> Option<&Param> {
        self.active.map(|at| &self.copies[at].1)
    }
}
