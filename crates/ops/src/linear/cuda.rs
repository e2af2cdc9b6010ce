use crate::gpu_product::{
    Operand,
    cuda::{add_bias, product},
};
use halfbyte_tensor::{DType, Result, Tensor};

/// `x wᵀ + bias` in the dtype of `x`.
pub(super) fn forward(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let w = w.to_dtype(x.dtype());
    let mut y = product(1.0, Operand::new(x), Operand::new(&w).t(), x.dtype())?;
    add_bias(&mut y, bias)?;
    Ok(y)
}

/// `dy w` in the dtype of `dy`.
pub(super) fn input_gradient(dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    product(1.0, Operand::new(dy), Operand::new(&w.to_dtype(dy.dtype())), dy.dtype())
}

/// `dyᵀ x`, f32.
pub(super) fn weight_gradient(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    product(1.0, Operand::new(dy).t(), Operand::new(x), DType::F32)
}
