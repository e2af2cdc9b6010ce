use crate::{Linear, Weight};
use halfbyte_tensor::Device;

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
    /// Moves everything to a device, where the model then computes.
    pub fn to_device(&mut self, device: &Device) -> halfbyte_autograd::Result<()> {
        self.linears.iter_mut().try_for_each(|it| it.to_device(device))?;
        self.weights.iter_mut().try_for_each(|it| it.to_device(device))
    }
}
