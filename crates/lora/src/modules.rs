use crate::{Base, Linear, Weight};
use halfbyte_tensor::{Device, Tensor};

/// The parts of a model that adapters deal with, in the model's order.
#[derive(Default)]
pub struct Modules<'a> {
    /// The linear layers, the output head (if it is not tied) last.
    pub linears: Vec<&'a mut Linear>,
    /// Embeddings and the weights and biases of norms.
    pub weights: Vec<&'a mut Weight>,
    /// Path of the output head, which `all-linear` leaves alone.
    pub head: Option<String>,
    /// Where the output head is the embedding.
    pub tied: Option<Tie>,
}

/// Two modules with one weight.
#[derive(Clone, Debug)]
pub struct Tie {
    /// Path of the embedding.
    pub embedding: String,
    /// Path by which files call the head that has no weight of its own.
    pub head: String,
}

impl Tie {
    /// The name of the head's weight in a file that has it although it is the embedding.
    pub(crate) fn head_weight(&self) -> String {
        format!("{}.weight", self.head)
    }
}

impl Modules<'_> {
    /// Makes a named adapter (or none) the active one in the whole model. A merged one is taken out first.
    pub fn set_active(&mut self, adapter: Option<&str>) {
        self.linears.iter_mut().for_each(|it| it.set_active(adapter));
        self.weights.iter_mut().for_each(|it| it.set_active(adapter));
    }

    /// Moves everything to a device, where the model then computes.
    pub fn to_device(&mut self, device: &Device) -> halfbyte_autograd::Result<()> {
        self.linears.iter_mut().try_for_each(|it| it.to_device(device))?;
        self.weights.iter_mut().try_for_each(|it| it.to_device(device))
    }

    /// Folds the active adapter into every matrix it changes, so that it costs nothing at run time; see
    /// [`Linear::merge`]. Gives the number of matrices. If `freeze` fails, what was folded in is taken out again.
    pub fn merge<E>(&mut self, mut freeze: impl FnMut(&str, Tensor) -> Result<Base, E>) -> Result<usize, E> {
        let mut merged = 0;
        for at in 0..self.linears.len() {
            match self.linears[at].merge(&mut freeze) {
                Ok(changed) => merged += usize::from(changed),
                Err(error) => {
                    self.unmerge();
                    return Err(error);
                }
            }
        }
        Ok(merged)
    }

    /// Undoes [`Modules::merge`], bit for bit: the adapter is active again.
    pub fn unmerge(&mut self) {
        self.linears.iter_mut().for_each(|it| it.unmerge());
    }
}
