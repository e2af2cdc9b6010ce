use super::{
    FEW_ROWS, FrozenMatrix, OnDevice,
    ahead::{self, Asked},
};
use crate::{
    few_rows::{self, Addends, Product},
    gpu_product::{
        Operand, Window,
        cuda::{self, product, put},
    },
    place::on_gpu,
    product::{self, Left, Right},
};
use halfbyte_autograd::Result;
use halfbyte_tensor::{DType, Device, Error, Place, Tensor, cuda::workspace};

/// Which of the products with a weight `W (out_features, in_features)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// `x Wᵀ`.
    Forward,
    /// `dy W`.
    Backward,
}

/// What a product's result is, beyond the product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epilogue<'a> {
    /// Added to every row.
    pub(crate) bias: Option<&'a Tensor>,
    /// The dtype of the result: that of the left operand, or f32.
    pub(crate) dtype: DType,
}

/// `x` times a frozen matrix, with as many rows as `x`: the door through which all such products go.
///
/// Fails if the weight lies elsewhere than `x`, or the device fails.
pub(crate) fn multiply(x: &Left<'_>, w: &dyn FrozenMatrix, side: Side, epilogue: Epilogue<'_>) -> Result<Tensor> {
    let Epilogue { bias, dtype } = epilogue;
    if side == Side::Forward && dtype == x.tensor().dtype() && few_rows::fit(x.tensor(), [w].into_iter()) {
        let addends = Addends { bias, ..Addends::default() };
        let mut ys = few_rows::multiply(x.tensor(), &[Product { w, addends }])?;
        return Ok(ys.pop().expect("as many results as matrices"));
    }
    let own = match side {
        Side::Forward => w.forward(x.tensor()).transpose()?,
        Side::Backward => None,
    };
    let mut y = match own {
        Some(y) => y.into_dtype(dtype).into_unique(),
        None if on_gpu(x.tensor()) => {
            let (left, w) = (x.tensor(), decoded_beside(w, x.tensor(), (0, 0))?);
            let right = if side == Side::Forward { Operand::new(&w).t() } else { Operand::new(&w) };
            product(1.0, Operand::new(left), right, dtype)?
        }
        None => {
            return match side {
                Side::Forward => product::forward(x, Right::Frozen(w), bias, dtype),
                Side::Backward => product::backward_x(1.0, x, Right::Frozen(w), dtype),
            };
        }
    };
    add_bias(&mut y, bias)?;
    Ok(y)
}

/// The matrix in `dtype` on its GPU: itself if it is kept so, else decoded into memory of the pool.
pub(crate) fn decoded(w: &dyn FrozenMatrix, dtype: DType) -> Result<Tensor> {
    let there = there(w)?;
    match there {
        OnDevice::Dense(weight) => Ok(weight.to_dtype(dtype)),
        OnDevice::Coded(it) => {
            let (rows, cols) = w.dims();
            on_the_spot(&Asked::new(&[(it.decoder(), rows)], cols, (0, 0), dtype), &there.device())
        }
    }
}

/// The matrix for a product with `x`, in its dtype, with so many rows and columns behind it that the caller fills: the others of a step are
/// decoded beside the product before, where the order of the step before said what comes.
pub(crate) fn decoded_beside(w: &dyn FrozenMatrix, x: &Tensor, beyond: (usize, usize)) -> Result<Tensor> {
    let (there, (rows, cols), dtype) = (there(w)?, w.dims(), x.dtype());
    match there {
        OnDevice::Dense(weight) if beyond == (0, 0) => Ok(weight.to_dtype(dtype)),
        OnDevice::Dense(weight) => {
            let mut out = Tensor::scratch_on(&there.device(), &[rows + beyond.0, cols + beyond.1], dtype);
            put(1.0, weight, 0, Window::whole(&mut out).rows(0, rows).columns(0, cols))?;
            Ok(out)
        }
        OnDevice::Coded(it) => asked_for(Asked::new(&[(it.decoder(), rows)], cols, beyond, dtype), x),
    }
}

/// [`decoded_beside`] of matrices of codes with as many columns, below each other, and so many rows behind them.
///
/// # Panics
/// If one is kept otherwise: [`is_coded`] tells.
pub(crate) fn decoded_below(ws: &[&dyn FrozenMatrix], x: &Tensor, beyond: usize) -> Result<Tensor> {
    let cols = ws.first().map_or(0, |it| it.dims().1);
    let coded = |w: &&dyn FrozenMatrix| match there(*w)? {
        OnDevice::Coded(it) => Ok((it.decoder(), w.dims().0)),
        OnDevice::Dense(_) => panic!("asked of matrices that are kept in codes"),
    };
    let matrices: Vec<_> = ws.iter().map(coded).collect::<Result<_>>()?;
    asked_for(Asked::new(&matrices, cols, (beyond, 0), x.dtype()), x)
}

/// Whether a matrix away from host memory has to be decoded there.
pub(crate) fn is_coded(w: &dyn FrozenMatrix) -> bool {
    matches!(w.on_device(), Some(OnDevice::Coded(_)))
}

/// Where `x` is; ahead, if that can be.
fn asked_for(asked: Asked, x: &Tensor) -> Result<Tensor> {
    match x.place() {
        // The few rows of a token are through before the next matrix is decoded.
        Place::Gpu(gpu) if x.rows() > FEW_ROWS && gpu.works_ahead() => Ok(ahead::decoded(gpu, asked)?),
        _ => on_the_spot(&asked, &x.device()),
    }
}

/// Decoded when it is asked for.
fn on_the_spot(asked: &Asked, device: &Device) -> Result<Tensor> {
    let mut out = match device {
        Device::Cuda(gpu) => workspace(gpu, &asked.shape(), asked.dtype())?,
        Device::Cpu | Device::Dry(_) => Tensor::scratch_on(device, &asked.shape(), asked.dtype()),
    };
    asked.decode(&mut out)?;
    Ok(out)
}

/// What of the matrix lies on a GPU.
pub(crate) fn there(w: &dyn FrozenMatrix) -> Result<OnDevice<'_>> {
    let message = "the weight lies in host memory, the activations on a GPU";
    w.on_device().ok_or_else(|| Error::invalid("frozen_linear", message).into())
}

/// Adds a bias to a result that came without.
fn add_bias(y: &mut Tensor, bias: Option<&Tensor>) -> Result<()> {
    match bias {
        Some(_) if on_gpu(y) => cuda::add_bias(y, bias)?,
        Some(bias) => product::add_bias(y, bias),
        None => {}
    }
    Ok(())
}
