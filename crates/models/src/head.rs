//! The output head: what a pass's adapters make of it, and the loss and the logits behind it.

use crate::{Result, model::HEAD};
use halfbyte_autograd::{Result as OpResult, Tape, Var};
use halfbyte_lora::{Base, Context, Linear, Update, Weight};
use halfbyte_ops::{
    FrozenMatrix, IGNORE, RowGroups, Targets, add, cross_entropy,
    cross_entropy::{Head, Shaping, logits},
    deal_rows, gather_rows,
};
use halfbyte_tensor::Tensor;

/// What turns hidden states into logits.
pub struct OutputHead<'m> {
    of: Of<'m>,
    bias: Option<Var>,
    shaping: Shaping,
}

enum Of<'m> {
    /// A frozen matrix of its own.
    Frozen(&'m dyn FrozenMatrix),
    /// The embedding, or a matrix that trains: `(vocab_size, hidden_size)`.
    Var(Var),
    /// Rows of different adapters, some of which have a head of their own.
    ByRow(RowGroups, Vec<OutputHead<'m>>),
}

impl<'m> From<Of<'m>> for OutputHead<'m> {
    fn from(of: Of<'m>) -> OutputHead<'m> {
        OutputHead { of, bias: None, shaping: Shaping::default() }
    }
}

impl<'m> OutputHead<'m> {
    /// The head of a model: the embedding if `linear` is none.
    pub(crate) fn of(tape: &Tape<'m>, linear: Option<&'m Linear>, embedding: &Weight, ctx: &Context) -> OutputHead<'m> {
        if let Some((groups, contexts)) = ctx.split(&linear.map_or([embedding.path(), HEAD], Linear::paths)) {
            let heads = contexts.iter().map(|it| OutputHead::of(tape, linear, embedding, it)).collect();
            return Of::ByRow(groups, heads).into();
        }
        let Some(linear) = linear else {
            // An adapter may untie it with a copy of its own.
            let own = ctx.routing.adapter().and_then(|it| it.update(HEAD)).and_then(Update::copy);
            return Of::Var(own.map_or_else(|| embedding.head_var(tape, ctx), |it| tape.param(it))).into();
        };
        let of = match (linear.trained_matrix(ctx), linear.base()) {
            (Some(param), _) | (None, Base::Trainable(param)) => Of::Var(tape.param(param)),
            (None, Base::Frozen(matrix)) => Of::Frozen(matrix.as_ref()),
        };
        OutputHead { bias: linear.bias().map(|it| it.var(tape, ctx)), ..of.into() }
    }

    /// With other logits than its products.
    pub(crate) fn shaped(mut self, shaping: Shaping) -> OutputHead<'m> {
        if let Of::ByRow(_, heads) = &mut self.of {
            heads.iter_mut().for_each(|it| it.shaping = shaping);
        }
        OutputHead { shaping, ..self }
    }

    /// For the ops.
    ///
    /// # Panics
    /// If rows have different heads: those go through [`OutputHead::loss`] and [`OutputHead::logits`].
    pub fn as_head(&self) -> Head<'_, 'm> {
        let head = match &self.of {
            Of::Frozen(matrix) => Head::frozen(*matrix),
            Of::Var(var) => Head::trainable(var),
            Of::ByRow(..) => panic!("rows of different adapters have no head in common"),
        };
        head.biased(self.bias.as_ref()).shaped(self.shaping)
    }

    /// The sum of the cross-entropies of all targets, divided by `denominator`, after hidden states `(tokens, hidden_size)`.
    ///
    /// Fails where the shapes or targets do not fit, or memory is short.
    pub fn loss(&self, tape: &Tape<'m>, hidden: &Var, targets: &Targets, denominator: f32) -> OpResult<Var> {
        let Of::ByRow(groups, heads) = &self.of else {
            return cross_entropy(tape, hidden, self.as_head(), targets, denominator);
        };
        let parts = deal_rows(tape, hidden, groups)?;
        let mut all = vec![IGNORE; targets.len()];
        targets.rows().iter().zip(targets.ids()).for_each(|(row, id)| all[*row as usize] = *id);
        let mut sum: Option<Var> = None;
        for (group, (part, head)) in parts.iter().zip(heads).enumerate() {
            let own = Targets::new(groups.rows(group).iter().flat_map(|it| all[it.clone()].iter().copied()).collect());
            // A group that nothing is asked of has no loss, unless none has.
            if own.rows().is_empty() && (sum.is_some() || group + 1 < parts.len()) {
                continue;
            }
            let loss = cross_entropy(tape, part, head.as_head(), &own, denominator)?;
            sum = Some(match sum {
                Some(before) => add(tape, &before, &loss)?,
                None => loss,
            });
        }
        Ok(sum.unwrap_or_else(|| unreachable!("the last group has a loss if no other has")))
    }

    /// The logits in f32 after hidden states `(tokens, hidden_size)`: `(tokens, vocab_size)`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let Of::ByRow(groups, heads) = &self.of else { return Ok(logits(hidden, self.as_head())?) };
        let tape = Tape::disabled();
        let parts = deal_rows(&tape, &Var::constant(hidden.clone()), groups)?;
        let one = |(part, head): (&Var, &OutputHead<'_>)| Ok(Var::constant(head.logits(part.value())?));
        let all: Vec<Var> = parts.iter().zip(heads).map(one).collect::<Result<_>>()?;
        Ok(gather_rows(&tape, &all, groups)?.into_value())
    }
}
