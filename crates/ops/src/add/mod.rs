//! Residual sums: `a + b` and `a + scale * b`.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod tests;

use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{Error, Tensor, with_float};

/// `a + b`, both of one shape and dtype.
pub fn add(tape: &Tape<'_>, a: &Var, b: &Var) -> Result<Var> {
    add_scaled(tape, a, b, 1.0)
}

/// `a + scale * b`, both of one shape and dtype, rounded once.
pub fn add_scaled(tape: &Tape<'_>, a: &Var, b: &Var, scale: f32) -> Result<Var> {
    check_alike("add", a.value(), b.value())?;
    let y = if a.value().gpu().is_some() {
        cuda::add_scaled(a.value(), b.value(), scale)?
    } else {
        let mut y = Tensor::scratch(a.value().shape(), a.value().dtype());
        with_float!(y.dtype(), T, cpu::forward::<T>(a.value().data(), b.value().data(), scale, y.data_mut()));
        y
    };
    Ok(tape.record("add", [a, b], y, move |dy, [a, b]| {
        let db = match b {
            true if scale != 1.0 => Some(scaled(&dy, scale)?),
            true => Some(dy.clone()),
            false => None,
        };
        Ok([a.then_some(dy), db])
    }))
}

fn scaled(dy: &Tensor, scale: f32) -> Result<Tensor> {
    if dy.gpu().is_some() {
        return Ok(cuda::scaled(dy, scale)?);
    }
    let mut dx = Tensor::scratch(dy.shape(), dy.dtype());
    with_float!(dx.dtype(), T, cpu::scale::<T>(dy.data(), scale, dx.data_mut()));
    Ok(dx)
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
