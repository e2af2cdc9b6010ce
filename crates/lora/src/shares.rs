//! The updates of experts that have tokens, cut out of those of all.

use crate::{Base, Context, Linear};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_ops::{
    Dropout,
    experts::{Routes, pieces},
    lora_linear::{Layer, LowRank, lora_linears},
};

/// One expert's part of an update: for layers with one input one A, and a B for each.
#[derive(Clone, Debug)]
pub struct Share {
    a: Var,
    b: Vec<Var>,
    scaling: f32,
}

impl Share {
    /// Of each expert that has tokens; none where the pass's adapter leaves the experts alone. `layers` are the layers with one
    /// input of any expert.
    ///
    /// # Errors
    /// If a GPU fails.
    pub fn all(tape: &Tape<'_>, ctx: &Context, layers: &[Linear], routes: &Routes) -> Result<Option<Vec<Share>>> {
        let member = layers.first().and_then(Linear::member);
        let update = member.and_then(|it| ctx.update(&it.stack)).and_then(|it| it.stacked());
        let Some(update) = update else { return Ok(None) };
        let a = pieces(tape, &tape.param(&update.a), routes, 1)?;
        // Layers with one input lie below each other in B.
        let b = pieces(tape, &tape.param(&update.b), routes, layers.len())?;
        let scaling = update.scaling;
        let all = a.into_iter().zip(b.chunks(layers.len())).map(|(a, b)| Share { a, b: b.to_vec(), scaling });
        Ok(Some(all.collect()))
    }
}

impl Linear {
    /// [`Linear::forward_all`] of an expert's layers, with its share of the experts' update.
    ///
    /// # Errors
    /// If the shapes do not fit, or a GPU fails.
    pub fn forward_shared<'m, const N: usize>(
        layers: [&'m Linear; N],
        tape: &Tape<'m>,
        x: &Var,
        (share, ctx): (Option<&Share>, &Context),
    ) -> Result<[Var; N]> {
        let Some(share) = share else { return Linear::forward_all(layers, tape, x, ctx) };
        let none = Dropout { p: 0.0, seed: 0, site: 0 };
        let biases = layers.map(|it| it.bias().map(|bias| bias.var(tape, ctx)));
        let all = std::array::from_fn(|i| {
            let Base::Frozen(w) = layers[i].base() else { unreachable!("{}: the base trains", layers[i].path()) };
            let lora = LowRank { a: &share.a, b: &share.b[i], scaling: share.scaling, dropout: none };
            Layer { w: w.as_ref(), bias: biases[i].as_ref(), lora: Some(lora), onto: None }
        });
        lora_linears(tape, x, all)
    }
}
