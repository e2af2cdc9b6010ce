//! Inputs of checkpoints that wait in host memory for the backward pass, which wants them in reverse.

use crate::Result;
use halfbyte_tensor::{Away, Returning, Tensor};
use std::cell::RefCell;

/// The inputs in the order of the forward pass. Of those that were sent away, the device holds two at the most: the last one that left,
/// and in the backward pass the one that is worked with and, from the middle of that work on, the one before it, which is on its way back.
#[derive(Default)]
pub(crate) struct Offload {
    inputs: RefCell<Vec<Input>>,
}

enum Input {
    /// In memory of its own, which no device lacks.
    Here(Tensor),
    Away(Away),
    Returning(Returning),
    /// Nobody wants it any more.
    Taken,
}

impl Offload {
    /// Keeps an input, and gives its number. The one before it is let go of by the device.
    pub(crate) fn put(&self, x: &Tensor) -> Result<usize> {
        let mut inputs = self.inputs.borrow_mut();
        if let Some(Input::Away(before)) = inputs.last_mut() {
            before.let_go()?;
        }
        inputs.push(Away::send(x)?.map_or_else(|| Input::Here(x.clone()), Input::Away));
        Ok(inputs.len() - 1)
    }

    /// The input of this number, which nobody asks for again.
    pub(crate) fn take(&self, number: usize) -> Result<Tensor> {
        let mut inputs = self.inputs.borrow_mut();
        let x = match std::mem::replace(&mut inputs[number], Input::Taken) {
            Input::Here(x) => x,
            Input::Away(mut away) => match away.take_back()? {
                Some(x) => x,
                None => away.fetch()?.arrive()?,
            },
            Input::Returning(returning) => returning.arrive()?,
            Input::Taken => unreachable!("a checkpoint is run again once"),
        };
        Ok(x)
    }

    /// The input before this number starts on its way back.
    pub(crate) fn fetch_before(&self, number: usize) -> Result<()> {
        let mut inputs = self.inputs.borrow_mut();
        if let Some(before) = number.checked_sub(1) {
            inputs[before] = match std::mem::replace(&mut inputs[before], Input::Taken) {
                Input::Away(away) => Input::Returning(away.fetch()?),
                other => other,
            };
        }
        Ok(())
    }

    /// Forgets an input that no backward pass will ask for.
    pub(crate) fn forget(&self, number: usize) {
        self.inputs.borrow_mut()[number] = Input::Taken;
    }
}
