//! The products that the linear ops share: tensors as operands, and which precision each product takes.
//!
//! Activations and their gradients keep the dtype of the input; gradients of trainable tensors are f32.

use crate::FrozenMatrix;
use halfbyte_autograd::Result;
use halfbyte_matmul::{Compute, Dense, Operand, Out, Product, Source, matmul};
use halfbyte_tensor::{DType, Error, Tensor, load_f32, store_f32, vectorised, with_float};
use rayon::prelude::*;

/// bf16 activations take bf16 products; f16 ones are widened, since the kernels have no f16 products.
pub(crate) fn compute(activations: DType) -> Compute {
    if activations == DType::Bf16 { Compute::Bf16 } else { Compute::F32 }
}

/// The dtype in which an intermediate of a product over `activations` is kept: exact for f16, whose range is narrow.
pub(crate) fn compute_dtype(activations: DType) -> DType {
    if activations == DType::Bf16 { DType::Bf16 } else { DType::F32 }
}

/// A tensor (its leading extents folded) as something that a product reads.
pub(crate) fn source(t: &Tensor) -> Box<dyn Source + '_> {
    with_float!(t.dtype(), T, Box::new(Dense::new(t.rows(), t.cols(), t.data::<T>())))
}

/// A tensor as the place where a product goes.
pub(crate) fn out(t: &mut Tensor) -> Out<'_> {
    match t.dtype() {
        DType::F32 => Out::F32(t.data_mut()),
        DType::Bf16 => Out::Bf16(t.data_mut()),
        DType::F16 => Out::F16(t.data_mut()),
        other => unreachable!("a product goes to floating-point numbers, not to {other}"),
    }
}

/// `x (rows, k) Wᵀ + b` in `dtype`, for `w` of `(n, k)`.
pub(crate) fn forward(x: &Tensor, w: &dyn Source, bias: Option<&Tensor>, dtype: DType) -> Tensor {
    let mut y = Tensor::scratch(&[x.rows(), w.rows()], dtype);
    let bias = bias.map(|it| it.to_dtype(DType::F32));
    let xs = source(x);
    let product = Product::new(Operand::new(&*xs), Operand::new(w).t(), compute(x.dtype()));
    matmul(&Product { bias: bias.as_ref().map(|it| it.data()), ..product }, out(&mut y));
    y
}

/// The same for a frozen weight, in the dtype of `x`, unless the weight computes its forward itself.
pub(crate) fn frozen_forward(x: &Tensor, w: &dyn FrozenMatrix, bias: Option<&Tensor>) -> Result<Tensor> {
    let Some(y) = w.forward(x) else {
        return Ok(forward(x, &*w.source(), bias, x.dtype()));
    };
    let mut y = y?.to_dtype(x.dtype());
    if let Some(bias) = bias {
        y = y.into_unique();
        add_bias(&mut y, bias);
    }
    Ok(y)
}

/// `alpha * x (rows, k) Wᵀ` in `dtype`, for `w` of `(n, k)`.
pub(crate) fn scaled_forward(alpha: f32, x: &Tensor, w: &Tensor, dtype: DType) -> Tensor {
    let mut y = Tensor::scratch(&[x.rows(), w.rows()], dtype);
    let (xs, ws) = (source(x), source(w));
    let product = Product::new(Operand::new(&*xs), Operand::new(&*ws).t(), compute(x.dtype()));
    matmul(&Product { alpha, ..product }, out(&mut y));
    y
}

/// `x (rows, k) Wᵀ + h (rows, r) Bᵀ + bias` in the dtype of `x`, for `w` of `(n, k)` and `b` of `(n, r)`: one pass over
/// the output, unless the weight computes its forward itself.
pub(crate) fn updated_forward(
    x: &Tensor,
    w: &dyn FrozenMatrix,
    (h, b): (&Tensor, &Tensor),
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (hs, bs) = (source(h), source(b));
    let update = (Operand::new(&*hs), Operand::new(&*bs).t());
    if let Some(y) = w.forward(x) {
        let mut y = y?.to_dtype(x.dtype()).into_unique();
        if let Some(bias) = bias {
            add_bias(&mut y, bias);
        }
        let product = Product::new(update.0, update.1, compute(x.dtype()));
        matmul(&Product { accumulate: true, ..product }, out(&mut y));
        return Ok(y);
    }
    let mut y = Tensor::scratch(&[x.rows(), w.dims().0], x.dtype());
    let (xs, ws) = (source(x), w.source());
    let bias = bias.map(|it| it.to_dtype(DType::F32));
    let product = Product::new(Operand::new(&*xs), Operand::new(&*ws).t(), compute(x.dtype()));
    matmul(&Product { bias: bias.as_ref().map(|it| it.data()), more: &[update], ..product }, out(&mut y));
    Ok(y)
}

/// `alpha * dy (rows, n) W` in `dtype`, for `w` of `(n, k)`.
pub(crate) fn backward_x(alpha: f32, dy: &Tensor, w: &dyn Source, dtype: DType) -> Tensor {
    let mut dx = Tensor::scratch(&[dy.rows(), w.cols()], dtype);
    let ds = source(dy);
    let product = Product::new(Operand::new(&*ds), Operand::new(w), compute(dy.dtype()));
    matmul(&Product { alpha, ..product }, out(&mut dx));
    dx
}

/// `dy (rows, n) W + dh (rows, r) A` in the dtype of `dy`, for `w` of `(n, k)` and `a` of `(r, k)`.
pub(crate) fn updated_backward_x(dy: &Tensor, w: &dyn Source, (dh, a): (&Tensor, &Tensor)) -> Tensor {
    let mut dx = Tensor::scratch(&[dy.rows(), w.cols()], dy.dtype());
    let (ds, hs, a_rows) = (source(dy), source(dh), source(a));
    let product = Product::new(Operand::new(&*ds), Operand::new(w), compute(dy.dtype()));
    matmul(&Product { more: &[(Operand::new(&*hs), Operand::new(&*a_rows))], ..product }, out(&mut dx));
    dx
}

/// Adds `dy (rows, n) W` to `dx (rows, k)`, for `w` of `(n, k)`.
pub(crate) fn accumulate_backward_x(dx: &mut Tensor, dy: &Tensor, w: &dyn Source) {
    let ds = source(dy);
    let product = Product::new(Operand::new(&*ds), Operand::new(w), compute(dx.dtype()));
    matmul(&Product { accumulate: true, ..product }, out(dx));
}

/// `alpha * dyᵀ x`, f32 `(n, k)`: the gradient of a trainable `w`.
pub(crate) fn backward_w(alpha: f32, dy: &Tensor, x: &Tensor, activations: DType) -> Tensor {
    let mut dw = Tensor::scratch(&[dy.cols(), x.cols()], DType::F32);
    let (ds, xs) = (source(dy), source(x));
    let product = Product::new(Operand::new(&*ds).t(), Operand::new(&*xs), compute(activations));
    matmul(&Product { alpha, ..product }, out(&mut dw));
    dw
}

/// The sums of the columns of `dy (rows, n)`, f32 `(n)`: the gradient of a bias.
pub(crate) fn backward_bias(dy: &Tensor) -> Tensor {
    const STRIP: usize = 256;
    let n = dy.cols();
    let mut db = Tensor::zeros(&[n], DType::F32);
    with_float!(dy.dtype(), T, {
        let dy = dy.data::<T>();
        db.data_mut::<f32>().par_chunks_mut(STRIP).enumerate().for_each(|(i, sums)| {
            vectorised!({
                let mut wide = [0.0; STRIP];
                for row in dy.chunks(n) {
                    load_f32(&row[i * STRIP..][..sums.len()], &mut wide[..sums.len()]);
                    for (s, v) in sums.iter_mut().zip(&wide) {
                        *s += v;
                    }
                }
            })
        });
    });
    db
}

/// Refuses anything but floating-point activations of `k` columns.
pub(crate) fn check_input(op: &'static str, x: &Tensor, k: usize) -> Result<()> {
    check_float(op, x)?;
    if x.shape().is_empty() || x.cols() != k {
        return Err(Error::shape(op, format!("activations of shape (rows, {k})"), x.shape()).into());
    }
    Ok(())
}

/// Refuses a weight that is not a floating-point matrix, and gives its extents.
pub(crate) fn check_matrix(op: &'static str, w: &Tensor) -> Result<(usize, usize)> {
    check_float(op, w)?;
    match *w.shape() {
        [n, k] => Ok((n, k)),
        _ => Err(Error::shape(op, "a weight of shape (out_features, in_features)", w.shape()).into()),
    }
}

/// Refuses a bias that is not `n` floating-point numbers.
pub(crate) fn check_bias(op: &'static str, bias: Option<&Tensor>, n: usize) -> Result<()> {
    let Some(bias) = bias else { return Ok(()) };
    check_float(op, bias)?;
    if bias.shape() != [n] {
        return Err(Error::shape(op, format!("a bias of shape ({n})"), bias.shape()).into());
    }
    Ok(())
}

pub(crate) fn check_float(op: &'static str, t: &Tensor) -> Result<()> {
    if !t.dtype().is_float() {
        return Err(Error::DType { op, expected: "f32, bf16 or f16", got: t.dtype() }.into());
    }
    Ok(())
}

fn add_bias(y: &mut Tensor, bias: &Tensor) {
    let (bias, n) = (bias.to_dtype(DType::F32), y.cols());
    if y.is_empty() {
        return;
    }
    with_float!(y.dtype(), T, {
        y.data_mut::<T>().par_chunks_mut(n).for_each(|row| {
            vectorised!({
                let mut wide = vec![0.0; n];
                load_f32(row, &mut wide);
                for (v, b) in wide.iter_mut().zip(bias.data::<f32>()) {
                    *v += b;
                }
                store_f32(&wide, row);
            })
        });
    });
}
