use halfbyte_autograd::Param;

/// What a weight is for. The model says it when it asks for the weight, so that nobody has to guess from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A row for every token; where a model ties the two, the output head as well.
    Embedding,
    /// A row for every position.
    Position,
    /// The scale of a norm.
    Norm,
    /// The matrix of a linear layer inside the blocks: what is quantised and adapted.
    Linear,
    /// The matrix that turns hidden states into logits.
    Head,
    /// The matrix that says which experts a token goes to.
    Router,
    /// A score for each head of attention, which joins its softmaxes.
    Sink,
    /// Added to what a linear layer or a norm computes.
    Bias,
}

impl Role {
    /// Whether it is a table of which rows are looked up.
    pub fn is_table(self) -> bool {
        matches!(self, Role::Embedding | Role::Position)
    }

    /// Whether AdamW's weight decay applies: biases and norms are left alone, as in transformers.
    pub fn decays(self) -> bool {
        !matches!(self, Role::Norm | Role::Bias | Role::Sink)
    }
}

/// A parameter that trains, and what it is for.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The parameter.
    pub param: Param,
    /// That of the weight it replaces, or of the layer it adapts.
    pub role: Role,
}
