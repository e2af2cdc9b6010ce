//! The products that the linear ops share: tensors as operands, and which precision each product takes.
//!
//! Activations and their gradients keep the dtype of the input; gradients of trainable tensors are f32.

use crate::FrozenMatrix;
use halfbyte_autograd::Result;
use halfbyte_matmul::{Compute, Dense, Operand, Out, PackedLeft, Product, Source, matmul};
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

/// Activations on the left of products.
pub(crate) struct Left<'a> {
    tensor: &'a Tensor,
    source: Box<dyn Source + 'a>,
    packed: Option<PackedLeft>,
}

impl<'a> Left<'a> {
    /// For one product.
    pub(crate) fn new(tensor: &'a Tensor) -> Left<'a> {
        Left { tensor, source: source(tensor), packed: None }
    }

    /// For several, which then share the packing.
    pub(crate) fn shared(tensor: &'a Tensor) -> Left<'a> {
        let source = source(tensor);
        let packed = PackedLeft::new(&Operand::new(&*source), compute(tensor.dtype()));
        Left { tensor, source, packed }
    }

    pub(crate) fn tensor(&self) -> &'a Tensor {
        self.tensor
    }

    fn operand(&self) -> Operand<'_> {
        let operand = Operand::new(&*self.source);
        self.packed.as_ref().map_or(operand, |it| operand.packed(it))
    }
}

/// `x (rows, k) Wᵀ + b` in `dtype`, for `w` of `(n, k)`.
pub(crate) fn forward(x: &Left<'_>, w: &dyn Source, bias: Option<&Tensor>, dtype: DType) -> Tensor {
    let mut y = Tensor::scratch(&[x.tensor.rows(), w.rows()], dtype);
    let bias = bias.map(|it| it.to_dtype(DType::F32));
    let product = Product::new(x.operand(), Operand::new(w).t(), compute(x.tensor.dtype()));
    matmul(&Product { bias: bias.as_ref().map(|it| it.data()), ..product }, out(&mut y));
    y
}

/// The same for a frozen weight, in the dtype of `x`, unless the weight computes its forward itself.
pub(crate) fn frozen_forward(x: &Left<'_>, w: &dyn FrozenMatrix, bias: Option<&Tensor>) -> Result<Tensor> {
    let dtype = x.tensor.dtype();
    let Some(y) = w.forward(x.tensor) else {
        return Ok(forward(x, &*w.source(), bias, dtype));
    };
    let mut y = y?.to_dtype(dtype);
    if let Some(bias) = bias {
        y = y.into_unique();
        add_bias(&mut y, bias);
    }
    Ok(y)
}

/// `alpha * x (rows, k) Wᵀ` in `dtype`, for `w` of `(n, k)`.
pub(crate) fn scaled_forward(alpha: f32, x: &Left<'_>, w: &Tensor, dtype: DType) -> Tensor {
    let mut y = Tensor::scratch(&[x.tensor.rows(), w.rows()], dtype);
    let ws = source(w);
    let product = Product::new(x.operand(), Operand::new(&*ws).t(), compute(x.tensor.dtype()));
    matmul(&Product { alpha, ..product }, out(&mut y));
    y
}

/// `x (rows, k) Wᵀ + h (rows, r) Bᵀ + bias` in the dtype of `x`, for `w` of `(n, k)` and `b` of `(n, r)`: one pass over
/// the output, unless the weight computes its forward itself.
pub(crate) fn updated_forward(
    x: &Left<'_>,
    w: &dyn FrozenMatrix,
    (h, b): (&Tensor, &Tensor),
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (hs, bs) = (source(h), source(b));
    let update = (Operand::new(&*hs), Operand::new(&*bs).t());
    let dtype = x.tensor.dtype();
    if let Some(y) = w.forward(x.tensor) {
        let mut y = y?.to_dtype(dtype).into_unique();
        if let Some(bias) = bias {
            add_bias(&mut y, bias);
        }
        let product = Product::new(update.0, update.1, compute(dtype));
        matmul(&Product { accumulate: true, ..product }, out(&mut y));
        return Ok(y);
    }
    let mut y = Tensor::scratch(&[x.tensor.rows(), w.dims().0], dtype);
    let ws = w.source();
    let bias = bias.map(|it| it.to_dtype(DType::F32));
    let product = Product::new(x.operand(), Operand::new(&*ws).t(), compute(dtype));
    matmul(&Product { bias: bias.as_ref().map(|it| it.data()), more: &[update], ..product }, out(&mut y));
    Ok(y)
}

/// `alpha * dy (rows, n) W` in `dtype`, for `w` of `(n, k)`.
pub(crate) fn backward_x(alpha: f32, dy: &Left<'_>, w: &dyn Source, dtype: DType) -> Tensor {
    let mut dx = Tensor::scratch(&[dy.tensor.rows(), w.cols()], dtype);
    let product = Product::new(dy.operand(), Operand::new(w), compute(dy.tensor.dtype()));
    matmul(&Product { alpha, ..product }, out(&mut dx));
    dx
}

/// The sum of `dy (rows, n) W` over pairs with `w` of `(n, k)`, each `n` its own, in one pass over `dx (rows, k)`; it is
/// added to what `dx` holds if `accumulate`.
pub(crate) fn sum_backward_x(pairs: &[(&Left<'_>, &dyn Source)], accumulate: bool, dx: &mut Tensor) {
    let pairs: Vec<_> = pairs.iter().map(|(dy, w)| (dy.operand(), Operand::new(*w))).collect();
    if let Some(((a, b), more)) = pairs.split_first() {
        let product = Product::new(*a, *b, compute(dx.dtype()));
        matmul(&Product { accumulate, more, ..product }, out(dx));
    }
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
