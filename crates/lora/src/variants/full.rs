//! `modules_to_save` and trained biases: a copy of the base's tensor that trains in full.

use super::{Module, Numbers, Place, Update, What, on_host};
use crate::Result;
use halfbyte_autograd::{Param, Result as OpResult, Tape, Var};
use halfbyte_ops::{embedding::embedding, linear::linear};
use halfbyte_tensor::{DType, Tensor};

/// A copy in the base's place: of a matrix, a table, a norm or a bias.
#[derive(Clone, Debug)]
pub struct Full {
    param: Param,
    /// Under which names PEFT's file holds it: a tied embedding stands there as the head, too.
    stored_as: Vec<String>,
}

impl Full {
    /// A copy that a file holds under its own name.
    pub fn new(param: Param) -> Full {
        let stored_as = vec![param.name().to_owned()];
        Full { param, stored_as }
    }
}

pub(super) fn begin(place: &Place<'_>, numbers: &mut Numbers<'_>) -> Result<Option<Box<dyn Update>>> {
    let What::Copy(it) = &place.what else { return Ok(None) };
    let fresh = |_| Ok((it.value)()?.into_dtype(DType::F32).into_unique());
    let param = numbers.param_among(&it.name, &it.read_as, &it.shape, fresh)?;
    Ok(Some(Box::new(Full { param, stored_as: it.stored_as.clone() })))
}

impl Update for Full {
    fn forward<'m>(&self, tape: &Tape<'m>, module: Module<'_, 'm>, _dropout: Option<u64>) -> OpResult<Var> {
        match module {
            Module::Linear { x, bias, .. } => linear(tape, x, &tape.param(&self.param), bias),
            Module::Embedding { ids, dtype, .. } => embedding(tape, &tape.param(&self.param), ids, dtype),
        }
    }

    fn copy(&self) -> Option<&Param> {
        Some(&self.param)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.param.clone()]
    }

    fn merge(&self, _base: Tensor) -> OpResult<Tensor> {
        Ok(self.param.value().to_dtype(DType::F32))
    }

    fn stored(&self) -> OpResult<Vec<(String, Tensor)>> {
        let value = on_host(&self.param)?;
        Ok(self.stored_as.iter().map(|it| (it.clone(), value.clone())).collect())
    }
}
