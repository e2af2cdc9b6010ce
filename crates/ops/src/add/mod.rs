//! Residual sums and multiples: `a + b`, `a + scale * b` and `factor * x`.

pub(crate) mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::place::{Cost, fill};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{Error, Tensor, with_float};

/// `a + b`, both of one shape and dtype.
pub fn add(tape: &Tape<'_>, a: &Var, b: &Var) -> Result<Var> {
    add_scaled(tape, a, b, 1.0)
}

/// `a + scale * b`, both of one shape and dtype, rounded once.
pub fn add_scaled(tape: &Tape<'_>, a: &Var, b: &Var, scale: f32) -> Result<Var> {
    check_alike("add", a.value(), b.value())?;
    let y = sum(a.value(), b.value(), scale)?;
    Ok(tape.record("add", [a, b], y, move |dy, [a, b]| {
        let db = match b {
            true if scale != 1.0 => Some(scaled(&dy, scale)?),
            true => Some(dy.clone()),
            false => None,
        };
        Ok([a.then_some(dy), db])
    }))
}

/// `factor * x`, rounded once.
///
/// # Errors
/// If `x` holds no floating-point numbers.
pub fn scale(tape: &Tape<'_>, x: &Var, factor: f32) -> Result<Var> {
    crate::product::check_float("scale", x.value())?;
    let y = scaled(x.value(), factor)?;
    Ok(tape.record("scale", [x], y, move |dy, _| Ok([Some(scaled(&dy, factor)?)])))
}

/// `a + scale * b`.
pub(crate) fn sum(a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    let y = a.scratch_like(a.shape(), a.dtype());
    let cost = Cost::of(2, &[a, b, &y]);
    let host = |y: &mut Tensor| {
        with_float!(a.dtype(), T, cpu::forward::<T>(a.data(), b.data(), scale, y.data_mut()));
        Ok(())
    };
    fill(a, cost, y, host, |gpu, y| cuda::add_scaled(gpu, [a, b], scale, y))
}

/// `scale * x`.
pub(crate) fn scaled(x: &Tensor, scale: f32) -> Result<Tensor> {
    let y = x.scratch_like(x.shape(), x.dtype());
    let cost = Cost::of(1, &[x, &y]);
    let host = |y: &mut Tensor| {
        with_float!(x.dtype(), T, cpu::scale::<T>(x.data(), scale, y.data_mut()));
        Ok(())
    };
    fill(x, cost, y, host, |gpu, y| cuda::scaled(gpu, x, scale, y))
}

/// Refuses two operands that are not floating-point numbers of one shape and dtype.
pub(crate) fn check_alike(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    crate::product::check_float(op, a)?;
    if b.dtype() != a.dtype() {
        return Err(
            Error::invalid(op, format!("expected {} as in the first operand, got {}", a.dtype(), b.dtype())).into()
        );
    }
    if b.shape() != a.shape() {
        return Err(Error::shape(op, format!("shape {:?} as in the first operand", a.shape()), b.shape()).into());
    }
    Ok(())
}
