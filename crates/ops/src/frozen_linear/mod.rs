//! `y = x Wᵀ + b` for a weight that never trains.

#[cfg(test)]
pub(crate) mod test_support;
#[cfg(test)]
mod tests;

use crate::{
    frozen::{self, Epilogue, FrozenMatrix, Side},
    linear::no_bias,
    product::{self, Left},
};
use halfbyte_autograd::{Result, Tape, Var};

/// `x (rows, in_features) Wᵀ + bias (out_features)`: `(rows, out_features)` in the dtype of `x`.
///
/// Nothing of `x` is saved: the backward pass reads the weight again, transposed. Fails if the shapes do not fit.
pub fn frozen_linear<'m>(tape: &Tape<'m>, x: &Var, w: &'m dyn FrozenMatrix, bias: Option<&Var>) -> Result<Var> {
    let (n, k) = w.dims();
    product::check_input("frozen_linear", x.value(), k)?;
    product::check_bias("frozen_linear", bias.map(Var::value), n)?;
    let (dtype, shape) = (x.value().dtype(), x.value().shape().to_vec());
    let epilogue = Epilogue { bias: bias.map(Var::value), dtype };
    let y = frozen::multiply(&Left::new(x.value()), w, Side::Forward, epilogue)?;
    let none = no_bias();
    Ok(tape.record("frozen_linear", [x, bias.unwrap_or(&none)], y, move |dy, [x, bias]| {
        let epilogue = Epilogue { bias: None, dtype };
        let dx = x.then(|| Ok(frozen::multiply(&Left::new(&dy), w, Side::Backward, epilogue)?.reshape(&shape)?));
        let dx: Option<Result<_>> = dx;
        Ok([dx.transpose()?, bias.then(|| product::bias_gradient(&dy)).transpose()?])
    }))
}
