//! The output head fused with the loss, in pieces, so that the full logits never exist.
//!
//! With a vocabulary of 50 thousand the logits of a batch outweigh every other activation. So a piece at a time is
//! projected and reduced to what the loss and its gradient need; what remains for the backward pass is one
//! multiplication. A head that does not train is taken in strips of the vocabulary (`strips`), one that does in chunks of
//! rows (`rows`). Rows whose target is [`IGNORE`](crate::IGNORE) take no part.

mod cpu;
mod cuda;
mod rows;
mod shaping;
mod softmax;
mod strips;
#[cfg(test)]
mod tests;

use crate::{
    frozen::{self, Epilogue, FrozenMatrix, Side},
    gpu_product::{self, Operand},
    ids::Targets,
    linear::no_bias,
    place::on_gpu,
    product::{self, Left, Right},
};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_matmul::Source;
use halfbyte_tensor::{DType, Error, Tensor};
pub use shaping::Shaping;

const OP: &str = "cross_entropy";

/// The output projection, and what becomes of its products.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a, 'm> {
    /// `(vocab, channels)`.
    pub matrix: Matrix<'a, 'm>,
    /// Added to every row of products, `(vocab)`; it may train, too. Only where products are not shaped.
    pub bias: Option<&'a Var>,
    /// From a product to a logit.
    pub shaping: Shaping,
}

/// The matrix of an output projection.
#[derive(Clone, Copy, Debug)]
pub enum Matrix<'a, 'm> {
    /// It never trains.
    Frozen(&'m dyn FrozenMatrix),
    /// It may train; a constant is fine too.
    Trainable(&'a Var),
}

impl<'a, 'm> Head<'a, 'm> {
    /// Logits are the products with a matrix that never trains.
    pub fn frozen(matrix: &'m dyn FrozenMatrix) -> Head<'a, 'm> {
        Head { matrix: Matrix::Frozen(matrix), bias: None, shaping: Shaping::default() }
    }

    /// Logits are the products with a matrix that may train.
    pub fn trainable(matrix: &'a Var) -> Head<'a, 'm> {
        Head { matrix: Matrix::Trainable(matrix), bias: None, shaping: Shaping::default() }
    }

    /// With other logits.
    #[must_use]
    pub fn shaped(self, shaping: Shaping) -> Head<'a, 'm> {
        Head { shaping, ..self }
    }

    /// With a bias.
    #[must_use]
    pub fn biased(self, bias: Option<&'a Var>) -> Head<'a, 'm> {
        Head { bias, ..self }
    }

    fn dims(&self) -> Result<(usize, usize)> {
        match self.matrix {
            Matrix::Frozen(w) => Ok(w.dims()),
            Matrix::Trainable(w) => product::check_matrix(OP, w.value()),
        }
    }

    fn source<'s>(&'s self) -> Box<dyn Source + 's> {
        match self.matrix {
            Matrix::Frozen(w) => w.source(),
            Matrix::Trainable(w) => product::source(w.value()),
        }
    }

    fn check(&self, op: &'static str) -> Result<()> {
        self.shaping.check(op)?;
        let Some(bias) = self.bias else { return Ok(()) };
        if self.shaping != Shaping::default() {
            return Err(Error::invalid(op, "expected a bias or shaped logits, got a head with both").into());
        }
        product::check_bias(op, Some(bias.value()), self.dims()?.0)
    }

    /// The bias in f32, in host memory.
    fn bias_values(&self) -> Option<Vec<f32>> {
        self.bias.map(|it| it.value().to_f32_vec())
    }

    fn requires_grad(&self) -> bool {
        matches!(self.matrix, Matrix::Trainable(w) if w.requires_grad())
    }

    /// What a format computes itself instead of a plain product.
    fn override_forward(&self, h: &Tensor) -> Option<Result<Tensor>> {
        match self.matrix {
            Matrix::Frozen(w) => w.forward(h),
            Matrix::Trainable(_) => None,
        }
    }
}

/// The sum of the cross-entropies of the logits, the head's shaping of `h Wᵀ` (softmax over the vocabulary), against `targets`, over `denominator`: a scalar
/// f32 `[1]` where `h` is, for `h (rows, channels)` and one target a row.
///
/// Logits, softmax and the gradient of a trainable head are f32, sums over rows and strips f64. On a recording tape the gradients are
/// computed on the way. Nothing waits for a GPU. Fails if no target counts, a target is outside the vocabulary, or the shapes do not fit.
pub fn cross_entropy<'m>(
    tape: &Tape<'m>,
    h: &Var,
    head: Head<'_, 'm>,
    targets: &Targets,
    denominator: f32,
) -> Result<Var> {
    head.check(OP)?;
    let (vocab, channels) = head.dims()?;
    product::check_input(OP, h.value(), channels)?;
    check_targets(targets, h.value().rows(), vocab)?;
    if !(denominator.is_finite() && denominator > 0.0) {
        let message = format!("the denominator must be positive and finite, got {denominator}");
        return Err(Error::invalid(OP, message).into());
    }
    let job = cpu::Job {
        h: h.value(),
        head: &head,
        targets,
        denominator,
        want_dh: tape.is_recording() && h.requires_grad(),
        want_dw: tape.is_recording() && head.requires_grad(),
        want_db: tape.is_recording() && head.bias.is_some_and(Var::requires_grad),
        at_once: cpu::AtOnce::new(vocab),
    };
    let cpu::Found { loss, dh, dw, db } = job.run()?;
    let (dtype, shape) = (h.value().dtype(), h.value().shape().to_vec());
    let none = no_bias();
    let w = if let Matrix::Trainable(w) = head.matrix { w } else { &none };
    Ok(tape.record(OP, [h, w, head.bias.unwrap_or(&none)], loss, move |dy, _| {
        // The seed of the backward pass, which stays in host memory: reading it waits for nobody.
        let scale = dy.to_f32_vec()[0];
        let dh = dh.map(|it| Ok(cpu::scaled(it, scale)?.to_dtype(dtype).reshape(&shape)?));
        let dh: Option<Result<Tensor>> = dh;
        let [dw, db] = [dw, db].map(|it| it.map(|it| cpu::scaled(it, scale)).transpose());
        Ok([dh.transpose()?, dw?, db?])
    }))
}

/// All logits, f32 `(rows, vocab)`, of `h (rows, channels)`: for a few rows, as generation needs them.
pub fn logits(h: &Tensor, head: Head<'_, '_>) -> Result<Tensor> {
    product::check_input("logits", h, head.dims()?.1)?;
    head.check("logits")?;
    let bias = head.bias.map(Var::value);
    let x = Left::new(h);
    let products = match head.matrix {
        Matrix::Frozen(w) => frozen::multiply(&x, w, Side::Forward, Epilogue { bias, dtype: DType::F32 }),
        Matrix::Trainable(w) if on_gpu(h) => {
            let w = w.value().to_dtype(h.dtype());
            let mut products = gpu_product::product(1.0, Operand::new(h), Operand::new(&w).t(), DType::F32)?;
            gpu_product::cuda::add_bias(&mut products, bias)?;
            Ok(products)
        }
        Matrix::Trainable(w) => product::forward(&x, Right::Dense(w.value()), bias, DType::F32),
    };
    head.shaping.of_products(products?)
}

/// Refuses targets that do not fit the rows or the vocabulary, and such of which none counts.
fn check_targets(targets: &Targets, rows: usize, vocab: usize) -> Result<()> {
    if targets.len() != rows {
        return Err(Error::shape(OP, format!("{rows} targets, one for each row"), &[targets.len()]).into());
    }
    if let Some((row, target)) = targets.rows().iter().zip(targets.ids()).find(|it| *it.1 as usize >= vocab) {
        let message = format!("target {target} of row {row} is outside the vocabulary of {vocab}");
        return Err(Error::invalid(OP, message).into());
    }
    if targets.rows().is_empty() {
        let message = "no target counts: every position is masked out of the loss";
        return Err(Error::invalid(OP, message).into());
    }
    Ok(())
}
