//! Dropout whose mask is a function of (seed, site, index).
//!
//! A mask is never stored: the backward pass, a replayed checkpoint and a resumed run compute it again.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::place::{Cost, fill};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{Error, Place, Tensor, with_float};

/// Which elements are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dropout {
    /// The probability that an element becomes zero, from `[0, 1)`; the others are scaled by `1 / (1 - p)`. 0 is off.
    pub p: f32,
    /// Differs from step to step.
    pub seed: u64,
    /// Differs from place to place in a model.
    pub site: u64,
}

impl Dropout {
    /// Whether nothing is dropped.
    pub fn is_off(&self) -> bool {
        self.p == 0.0
    }

    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        if (0.0..1.0).contains(&self.p) {
            return Ok(());
        }
        Err(Error::invalid(op, format!("a dropout probability lies in [0, 1), got {}", self.p)).into())
    }
}

/// `x` with elements dropped, in its shape and dtype. Fails if the probability is out of range.
pub fn dropout(tape: &Tape<'_>, x: &Var, d: Dropout) -> Result<Var> {
    d.check("dropout")?;
    if !x.value().dtype().is_float() {
        return Err(Error::DType { op: "dropout", expected: "f32, bf16 or f16", got: x.value().dtype() }.into());
    }
    if d.is_off() {
        return Ok(x.clone());
    }
    let y = apply(x.value(), d)?;
    Ok(tape.record("dropout", [x], y, move |mut dy, _| {
        if dy.is_shared() {
            return Ok([Some(apply(&dy, d)?)]);
        }
        apply_in_place(&mut dy, d)?;
        Ok([Some(dy)])
    }))
}

/// The masked and scaled `x`; `x` itself, shared, if dropout is off.
pub(crate) fn apply(x: &Tensor, d: Dropout) -> Result<Tensor> {
    if d.is_off() {
        return Ok(x.clone());
    }
    let y = x.scratch_like(x.shape(), x.dtype());
    let cost = Cost::of(1, &[x, &y]);
    let host = |y: &mut Tensor| {
        with_float!(x.dtype(), T, cpu::apply(x.data::<T>(), y.data_mut::<T>(), d));
        Ok(())
    };
    fill(x, cost, y, host, |gpu, y| cuda::apply(gpu, x, d, y))
}

/// Masks and scales a tensor that nobody shares.
pub(crate) fn apply_in_place(x: &mut Tensor, d: Dropout) -> Result<()> {
    if d.is_off() {
        return Ok(());
    }
    match x.place() {
        Place::Host => with_float!(x.dtype(), T, cpu::apply_in_place(x.data_mut::<T>(), d)),
        Place::Gpu(_) => *x = apply(x, d)?,
        Place::Dry(ledger) => Cost::of(1, &[x, x]).count(ledger),
    }
    Ok(())
}
