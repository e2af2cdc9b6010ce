//! The products that the linear ops share: tensors as operands, and which precision each product takes.
//!
//! Activations and their gradients keep the dtype of the input; gradients of trainable tensors are f32. What multiplies here is the
//! host's half, and the dry run of one; a GPU's half is made of the steps in `gpu_product`.

use crate::{
    FrozenMatrix,
    gpu_product::cuda::column_sums,
    place::{Cost, fill},
};
use halfbyte_autograd::Result;
use halfbyte_matmul::{Compute, Dense, Operand, Out, PackedLeft, Product, Source, matmul};
use halfbyte_tensor::{DType, Error, Float, Place, Tensor, load_f32, pool, store_f32, vectorised, with_float};
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
    /// What a product reads, in host memory.
    source: Option<Box<dyn Source + 'a>>,
    packed: Option<PackedLeft>,
    /// The panels in the books: of a dry run, which has none, or of the pool.
    _counted: Option<Counted>,
}

/// Who counts the panels while they exist.
enum Counted {
    Dry { _panels: Tensor },
    Held { _panels: pool::Held },
}

impl<'a> Left<'a> {
    /// For one product.
    pub(crate) fn new(tensor: &'a Tensor) -> Left<'a> {
        let source = matches!(tensor.place(), Place::Host).then(|| source(tensor));
        Left { tensor, source, packed: None, _counted: None }
    }

    /// For several, which then share the packing.
    pub(crate) fn shared(tensor: &'a Tensor) -> Left<'a> {
        let it = Left::new(tensor);
        let packed = it.source.as_ref().and_then(|it| PackedLeft::new(&Operand::new(&**it), compute(tensor.dtype())));
        let bytes = PackedLeft::bytes((tensor.rows(), tensor.cols()), compute(tensor.dtype()));
        let counted = match tensor.place() {
            Place::Dry(_) => Some(Counted::Dry { _panels: tensor.scratch_like(&[bytes], DType::U8) }),
            _ => packed.as_ref().map(|_| Counted::Held { _panels: pool::hold(bytes) }),
        };
        Left { packed, _counted: counted, ..it }
    }

    pub(crate) fn tensor(&self) -> &'a Tensor {
        self.tensor
    }

    pub(crate) fn operand(&self) -> Operand<'_> {
        let source = self.source.as_deref().expect("the host's half of a product reads host memory");
        let operand = Operand::new(source);
        self.packed.as_ref().map_or(operand, |it| operand.packed(it))
    }
}

/// What stands on the right of a product, `(n, k)`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Right<'a> {
    Dense(&'a Tensor),
    Frozen(&'a dyn FrozenMatrix),
}

impl<'a> Right<'a> {
    fn dims(self) -> (usize, usize) {
        match self {
            Right::Dense(w) => (w.rows(), w.cols()),
            Right::Frozen(w) => w.dims(),
        }
    }

    fn bytes(self) -> usize {
        match self {
            Right::Dense(w) => w.bytes(),
            Right::Frozen(w) => w.bytes(),
        }
    }

    fn source(self) -> Box<dyn Source + 'a> {
        match self {
            Right::Dense(w) => source(w),
            Right::Frozen(w) => w.source(),
        }
    }
}

/// A result of `(m, n)` that sums over `k` terms and reads `read` bytes, filled by the host's half.
fn filled(
    out: Tensor,
    at: &Tensor,
    (k, read): (usize, usize),
    host: impl FnOnce(&mut Tensor) -> Result<()>,
) -> Result<Tensor> {
    let cost = Cost::new(2 * out.len() * k, read + out.bytes());
    fill(at, cost, out, host, |_, _| unreachable!("a GPU's half has products of its own"))
}

/// `x (rows, k) Wᵀ + b` in `dtype`, for `w` of `(n, k)`.
pub(crate) fn forward(x: &Left<'_>, w: Right<'_>, bias: Option<&Tensor>, dtype: DType) -> Result<Tensor> {
    let y = x.tensor.scratch_like(&[x.tensor.rows(), w.dims().0], dtype);
    filled(y, x.tensor, (w.dims().1, x.tensor.bytes() + w.bytes()), |y| {
        let (ws, bias) = (w.source(), bias.map(|it| it.to_dtype(DType::F32)));
        let product = Product::new(x.operand(), Operand::new(&*ws).t(), compute(x.tensor.dtype()));
        matmul(&Product { bias: bias.as_ref().map(|it| it.data()), ..product }, out(y));
        Ok(())
    })
}

/// `alpha * x (rows, k) Wᵀ` in `dtype`, for `w` of `(n, k)`.
pub(crate) fn scaled_forward(alpha: f32, x: &Left<'_>, w: &Tensor, dtype: DType) -> Result<Tensor> {
    let y = x.tensor.scratch_like(&[x.tensor.rows(), w.rows()], dtype);
    filled(y, x.tensor, (w.cols(), x.tensor.bytes() + w.bytes()), |y| {
        let ws = source(w);
        let product = Product::new(x.operand(), Operand::new(&*ws).t(), compute(x.tensor.dtype()));
        matmul(&Product { alpha, ..product }, out(y));
        Ok(())
    })
}

/// `x (rows, k) Wᵀ + h (rows, r) Bᵀ + bias` in the dtype of `x`, for `w` of `(n, k)` and `b` of `(n, r)`: one pass over
/// the output, unless `own` holds what the weight computed of `x Wᵀ` by itself.
pub(crate) fn updated_forward(
    x: &Left<'_>,
    (w, own): (&dyn FrozenMatrix, Option<Tensor>),
    (h, b): (&Tensor, &Tensor),
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (dtype, (n, k)) = (x.tensor.dtype(), w.dims());
    let own = own.map(|it| it.into_dtype(dtype).into_unique());
    let inner = h.cols() + if own.is_some() { 0 } else { k };
    let read = x.tensor.bytes() + w.bytes() + h.bytes() + b.bytes();
    let (y, is_own) = match own {
        Some(y) => (y, true),
        None => (x.tensor.scratch_like(&[x.tensor.rows(), n], dtype), false),
    };
    filled(y, x.tensor, (inner, read), |y| {
        let (hs, bs) = (source(h), source(b));
        let update = (Operand::new(&*hs), Operand::new(&*bs).t());
        if is_own {
            if let Some(bias) = bias {
                add_bias(y, bias);
            }
            let product = Product::new(update.0, update.1, compute(dtype));
            matmul(&Product { accumulate: true, ..product }, out(y));
            return Ok(());
        }
        let (ws, bias) = (w.source(), bias.map(|it| it.to_dtype(DType::F32)));
        let product = Product::new(x.operand(), Operand::new(&*ws).t(), compute(dtype));
        matmul(&Product { bias: bias.as_ref().map(|it| it.data()), more: &[update], ..product }, out(y));
        Ok(())
    })
}

/// `alpha * dy (rows, n) W` in `dtype`, for `w` of `(n, k)`.
pub(crate) fn backward_x(alpha: f32, dy: &Left<'_>, w: Right<'_>, dtype: DType) -> Result<Tensor> {
    let (n, k) = w.dims();
    let dx = dy.tensor.scratch_like(&[dy.tensor.rows(), k], dtype);
    filled(dx, dy.tensor, (n, dy.tensor.bytes() + w.bytes()), |dx| {
        let ws = w.source();
        let product = Product::new(dy.operand(), Operand::new(&*ws), compute(dy.tensor.dtype()));
        matmul(&Product { alpha, ..product }, out(dx));
        Ok(())
    })
}

/// The sum of `dy (rows, n) W` over pairs with `w` of `(n, k)`, each `n` its own, in one pass over `dx (rows, k)`; it is
/// added to what `dx` holds if `accumulate`.
pub(crate) fn sum_backward_x(pairs: &[(&Left<'_>, Right<'_>)], accumulate: bool, dx: Tensor) -> Result<Tensor> {
    let Some(at) = pairs.first().map(|it| it.0.tensor) else { return Ok(dx) };
    let inner = pairs.iter().map(|it| it.1.dims().0).sum();
    let read = pairs.iter().map(|(dy, w)| dy.tensor.bytes() + w.bytes()).sum();
    filled(dx, at, (inner, read), |dx| {
        let sources: Vec<_> = pairs.iter().map(|it| it.1.source()).collect();
        let terms: Vec<_> = pairs.iter().zip(&sources).map(|(it, w)| (it.0.operand(), Operand::new(&**w))).collect();
        if let Some(((a, b), more)) = terms.split_first() {
            let product = Product::new(*a, *b, compute(dx.dtype()));
            matmul(&Product { accumulate, more, ..product }, out(dx));
        }
        Ok(())
    })
}

/// `alpha * dyᵀ x`, f32 `(n, k)`: the gradient of a trainable `w`.
pub(crate) fn backward_w(alpha: f32, dy: &Tensor, x: &Tensor, activations: DType) -> Result<Tensor> {
    let dw = dy.scratch_like(&[dy.cols(), x.cols()], DType::F32);
    filled(dw, dy, (dy.rows(), dy.bytes() + x.bytes()), |dw| {
        let (ds, xs) = (source(dy), source(x));
        let product = Product::new(Operand::new(&*ds).t(), Operand::new(&*xs), compute(activations));
        matmul(&Product { alpha, ..product }, out(dw));
        Ok(())
    })
}

/// The sums of the columns of `dy (rows, n)`, f32 `(n)`: the gradient of a bias.
pub(crate) fn bias_gradient(dy: &Tensor) -> Result<Tensor> {
    let db = dy.scratch_like(&[dy.cols()], DType::F32);
    let cost = Cost::of(1, &[dy, &db]);
    let host = |db: &mut Tensor| {
        with_float!(dy.dtype(), T, sum_columns(dy.data::<T>(), db.data_mut()));
        Ok(())
    };
    fill(dy, cost, db, host, |gpu, db| column_sums(gpu, dy, db))
}

fn sum_columns<T: Float>(dy: &[T], sums: &mut [f32]) {
    const STRIP: usize = 256;
    let n = sums.len();
    sums.par_chunks_mut(STRIP).enumerate().for_each(|(i, sums)| {
        vectorised!({
            sums.fill(0.0);
            let mut wide = [0.0; STRIP];
            for row in dy.chunks(n) {
                load_f32(&row[i * STRIP..][..sums.len()], &mut wide[..sums.len()]);
                for (s, v) in sums.iter_mut().zip(&wide) {
                    *s += v;
                }
            }
        })
    });
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

/// Adds a bias to every row of a result in host memory; in a dry run that costs nothing to speak of.
pub(crate) fn add_bias(y: &mut Tensor, bias: &Tensor) {
    if !matches!(y.place(), Place::Host) {
        return;
    }
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
