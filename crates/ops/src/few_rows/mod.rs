//! Products of a few rows with frozen matrices on a GPU, as in generation. What they cost is reading the weights and starting kernels: so
//! 4-bit codes are multiplied as they are stored, the matrices of one input by one launch, and what is added to an output, a low-rank
//! update, a bias, a residual, is added before that is rounded.

mod cuda;

use crate::{
    FrozenMatrix,
    frozen::{self, FEW_ROWS, FourBit, OnDevice},
    gpu_product::{
        Operand,
        cuda::{product, product_onto},
    },
    place::on_gpu,
};
use halfbyte_autograd::Result;
use halfbyte_tensor::{DType, Tensor};

pub(crate) use cuda::project;

/// So many matrices a launch takes.
pub(crate) const TOGETHER: usize = 3;
/// The rank of an update, at most.
pub(crate) const MAX_RANK: usize = 64;

/// A product `x Wᵀ` and what is added to it.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    /// `(out_features, in_features)`.
    pub(crate) w: &'a dyn FrozenMatrix,
    pub(crate) addends: Addends<'a>,
}

/// What is added to a product before it is rounded.
#[derive(Clone, Copy, Default)]
pub(crate) struct Addends<'a> {
    pub(crate) update: Option<Update<'a>>,
    /// `(out_features)`, to every row.
    pub(crate) bias: Option<&'a Tensor>,
    /// `(rows, out_features)` in the dtype of `x`.
    pub(crate) onto: Option<&'a Tensor>,
}

/// `scaling * h Bᵀ`, where `h` is the input's projections, some columns of them.
#[derive(Clone, Copy)]
pub(crate) struct Update<'a> {
    /// `(out_features, rank)`, of rank [`MAX_RANK`] at most.
    pub(crate) b: &'a Tensor,
    pub(crate) scaling: f32,
    /// `(rows, width)` in the dtype of `x`, all products' of a call.
    pub(crate) h: &'a Tensor,
    /// The first of the columns.
    pub(crate) first: usize,
}

/// Whether this is the way for an input and what it is multiplied with: more than [`FEW_ROWS`] rows go it where all that is 4-bit codes.
pub(crate) fn fit<'a>(x: &Tensor, mut all: impl Iterator<Item = &'a dyn FrozenMatrix>) -> bool {
    on_gpu(x)
        && (x.rows() <= FEW_ROWS
            || (cuda::takes(x) && x.is_dense() && all.all(|w| w.on_device().is_some_and(|it| codes(it, x).is_some()))))
}

/// The products of one input, each in its dtype.
///
/// Fails if a weight lies elsewhere, or the GPU fails.
pub(crate) fn multiply(x: &Tensor, products: &[Product<'_>]) -> Result<Vec<Tensor>> {
    let four_bit: Vec<Option<FourBit<'_>>> = products.iter().map(|it| four_bit(it.w, x)).collect::<Result<_>>()?;
    let mut ys = Vec::with_capacity(products.len());
    for (products, four_bit) in products.chunks(TOGETHER).zip(four_bit.chunks(TOGETHER)) {
        let addends = products.iter().map(|it| &it.addends);
        let together: Option<Vec<_>> = four_bit.iter().zip(addends).map(|(w, it)| Some(((*w)?, it))).collect();
        match together {
            Some(all) => ys.extend(cuda::multiply(x, &all)?),
            None => {
                for (product, w) in products.iter().zip(four_bit) {
                    ys.push(alone(x, product, *w)?);
                }
            }
        }
    }
    Ok(ys)
}

/// A product that shares no launch.
fn alone(x: &Tensor, it: &Product<'_>, four_bit: Option<FourBit<'_>>) -> Result<Tensor> {
    let Product { w, addends } = it;
    if let Some(four_bit) = four_bit {
        let mut ys = cuda::multiply(x, &[(four_bit, addends)])?;
        return Ok(ys.pop().expect("as many results as matrices"));
    }
    let plain = addends.update.is_none() && addends.bias.is_none();
    let base = match w.forward(x) {
        Some(y) => y?,
        None => {
            let w = frozen::decoded(*w, x.dtype())?;
            let (left, right) = (Operand::new(x), Operand::new(&w).t());
            match addends.onto {
                Some(onto) if plain => return Ok(product_onto(left, right, onto)?),
                None if plain => return Ok(product(1.0, left, right, x.dtype())?),
                _ => product(1.0, left, right, DType::F32)?,
            }
        }
    };
    if plain && addends.onto.is_none() {
        return Ok(base.into_dtype(x.dtype()));
    }
    Ok(cuda::add_up(&base, addends, x.dtype())?)
}

/// The codes of a matrix that the kernel multiplies, if they are of four bits and it takes them.
fn four_bit<'a>(w: &'a dyn FrozenMatrix, x: &Tensor) -> Result<Option<FourBit<'a>>> {
    Ok(codes(frozen::there(w)?, x))
}

fn codes<'a>(w: OnDevice<'a>, x: &Tensor) -> Option<FourBit<'a>> {
    match w {
        OnDevice::Coded(it) => it.four_bit().filter(|it| cuda::fit(it, x)),
        OnDevice::Dense(_) => None,
    }
}
