use crate::{GradientPlace, Result};
use halfbyte_tensor::Tensor;
use std::{fmt, sync::Arc};

/// A value on the tape. It never turns into a [`Tensor`] that goes on being differentiated: a gradient path can only be
/// cut by writing [`Var::constant`].
#[derive(Clone, Debug)]
pub struct Var {
    pub(crate) value: Tensor,
    /// Where its gradient gathers.
    pub(crate) slot: Option<usize>,
    recipe: Option<Recipe>,
    gradient_place: GradientPlace,
}

impl Var {
    /// A value through which no gradient flows.
    pub fn constant(value: Tensor) -> Var {
        Var { value, slot: None, recipe: None, gradient_place: GradientPlace::default() }
    }

    pub(crate) fn at(slot: usize, value: Tensor) -> Var {
        Var { value, slot: Some(slot), recipe: None, gradient_place: GradientPlace::default() }
    }

    /// See [`Tape::recomputed`](crate::Tape::recomputed).
    pub(crate) fn recomputed_by(self, recipe: impl Fn() -> Result<Tensor> + Send + Sync + 'static) -> Var {
        Var { recipe: Some(Recipe(Arc::new(recipe))), ..self }
    }

    /// A variable whose op would like to have its gradient there.
    #[must_use]
    pub fn wanting(self, place: GradientPlace) -> Var {
        Var { gradient_place: place, ..self }
    }

    /// Where its op would like to have the gradient, for an op on the variable that will write it there.
    pub fn claim_gradient_place(&self) -> GradientPlace {
        self.gradient_place.claim()
    }

    /// The room beside the rows of its gradient that its op would like.
    pub(crate) fn wanted_room(&self) -> usize {
        self.gradient_place.room()
    }

    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The value, without the handle on the tape.
    pub fn into_value(self) -> Tensor {
        self.value
    }

    /// Whether a gradient is wanted here.
    pub fn requires_grad(&self) -> bool {
        self.slot.is_some()
    }

    /// What a backward pass holds on to so as to have the value again.
    pub fn keep(&self) -> Kept {
        match &self.recipe {
            Some(recipe) => Kept::Recipe(recipe.clone()),
            None => Kept::Value(self.value.clone()),
        }
    }
}

/// A value for the backward pass: see [`Var::keep`].
#[derive(Clone, Debug)]
pub enum Kept {
    /// The value itself.
    Value(Tensor),
    /// How to compute it again.
    Recipe(Recipe),
}

impl Kept {
    /// The value. Fails where computing it again does, for want of memory on a GPU.
    pub fn value(self) -> Result<Tensor> {
        match self {
            Kept::Value(value) => Ok(value),
            Kept::Recipe(Recipe(compute)) => compute(),
        }
    }
}

/// A way to compute a value again.
#[derive(Clone)]
pub struct Recipe(Arc<dyn Fn() -> Result<Tensor> + Send + Sync>);

impl fmt::Debug for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recipe")
    }
}
