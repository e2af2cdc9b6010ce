//! Folding an adapter into the base, so that it costs nothing at run time, and taking it out again bit for bit.

use crate::{Adapter, Base, Error, Modules};
use halfbyte_tensor::Tensor;

/// What a merge replaced: the way back.
#[derive(Debug, Default)]
#[must_use = "it holds the base as it was, which is lost with it"]
pub struct Merged {
    /// By their places among the model's linear layers.
    matrices: Vec<(usize, Base)>,
    biases: Vec<(usize, Tensor)>,
    /// By their places among its other weights.
    weights: Vec<(usize, Tensor)>,
}

/// Folds an adapter into everything that it changes. `freeze` stores a matrix again (for a 4-bit base: quantises it again);
/// it gets the module's path. Passes then use the base alone.
///
/// If `freeze` or a device fails, what was folded in is taken out again. Fails, too, where the adapter changes an embedding and leaves a
/// head that is tied to it alone, since one tensor cannot be both.
pub fn merge<E: From<Error>>(
    adapter: &Adapter,
    modules: &mut Modules<'_>,
    mut freeze: impl FnMut(&str, Tensor) -> Result<Base, E>,
) -> Result<Merged, E> {
    check_tied(adapter, modules)?;
    let mut merged = Merged::default();
    match merged.fold_in(adapter, modules, &mut freeze) {
        Ok(()) => Ok(merged),
        Err(error) => {
            merged.undo(modules);
            Err(error)
        }
    }
}

/// Refuses what one tensor for embedding and head cannot hold.
pub fn check_tied(adapter: &Adapter, modules: &Modules<'_>) -> Result<(), Error> {
    let apart = |path: &str| adapter.update(path).is_some();
    let updated = modules.tied.as_ref().is_some_and(|it| apart(&it.embedding) || apart(&it.head));
    if adapter.unties_head() || updated {
        return Err(Error::Config(
            "the adapter has an embedding or an output head of its own while the other stays on the base's (ensure_weight_tying is false), and this model keeps one matrix for both; run base and adapter side by side instead".into(),
        ));
    }
    Ok(())
}

impl Merged {
    /// How many matrices the adapter was folded into.
    pub fn matrices(&self) -> usize {
        self.matrices.len()
    }

    /// Notes each base before it is replaced, so that what was done until an error can be undone.
    fn fold_in<E: From<Error>>(
        &mut self,
        adapter: &Adapter,
        modules: &mut Modules<'_>,
        freeze: &mut impl FnMut(&str, Tensor) -> Result<Base, E>,
    ) -> Result<(), E> {
        let failed = |e: halfbyte_autograd::Error| E::from(Error::from(e));
        for (at, linear) in modules.linears.iter_mut().enumerate() {
            if linear.is_changed_by(adapter) {
                let base = freeze(linear.path(), linear.dense(Some(adapter)).map_err(failed)?)?;
                self.matrices.push((at, linear.replace_base(base)));
            }
        }
        for (at, linear) in modules.linears.iter_mut().enumerate() {
            if let Some(bias) = linear.bias_mut().filter(|it| it.is_changed_by(adapter)) {
                let sum = bias.merged(Some(adapter)).map_err(failed)?;
                self.biases.push((at, bias.replace_value(sum)));
            }
        }
        for (at, weight) in modules.weights.iter_mut().enumerate().filter(|it| it.1.is_changed_by(adapter)) {
            let sum = weight.merged(Some(adapter)).map_err(failed)?;
            self.weights.push((at, weight.replace_value(sum)));
        }
        Ok(())
    }

    /// Puts the base back, bit for bit.
    pub fn undo(self, modules: &mut Modules<'_>) {
        for (at, base) in self.matrices {
            modules.linears[at].replace_base(base);
        }
        for (at, value) in self.biases {
            modules.linears[at].bias_mut().map(|it| it.replace_value(value));
        }
        for (at, value) in self.weights {
            modules.weights[at].replace_value(value);
        }
    }
}
