use crate::coded::CodedMatrix;
use halfbyte_cuda::{F16, Gpu, Launch, T, kernels};
use halfbyte_ops::{
    frozen::Coded,
    gpu_product::{Operand, Window, multiply, product as multiplied},
};
use halfbyte_tensor::{DType, Device, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "llm_int8", "kernel.cu", over Tensor;
    find_outliers as FindOutliers { x: *const T, flags: *mut i32, any: *mut i32, rows: i32, cols: i32 }
    quantise as Quantise { x: *const T, flags: *const i32, codes: *mut F16, rest: *mut F16, absmax: *mut f32, cols: i32 }
    rescale as Rescale { y: *mut f32, rows: *const f32, cols: *const f32, n: i32, count: usize }
}

/// As in host memory, with f16 products, since f16 holds the codes exactly; their sums are f32, too.
pub(super) fn product(gpu: &Arc<Gpu>, w: &CodedMatrix, x: &Tensor) -> Result<Tensor> {
    let (rows, cols, n) = (x.rows(), x.cols(), w.dims.0);
    if rows == 0 {
        return Ok(x.scratch_like(&[rows, n], DType::F32));
    }
    let mut flags = x.scratch_like(&[cols], DType::U32);
    let mut any = Tensor::zeros_on(&x.device(), &[1], DType::U32);
    let element = number(x.dtype());
    let kernel = FindOutliers { x, flags: &mut flags, any: &mut any, rows, cols };
    // SAFETY: a thread a column, each over all rows; a flag a column.
    unsafe { kernel.launch(gpu, element, Launch::elements(cols)) }?;
    let mut quantised = x.scratch_like(&[rows, cols], DType::F16);
    let mut rest = x.scratch_like(&[rows, cols], DType::F16);
    let mut largest = x.scratch_like(&[rows], DType::F32);
    let kernel = Quantise { x, flags: &flags, codes: &mut quantised, rest: &mut rest, absmax: &mut largest, cols };
    // SAFETY: a block a row, and both outputs have the shape of `x`.
    unsafe { kernel.launch(gpu, element, Launch::rows(rows, 256)) }?;
    let mut workspace = x.scratch_like(&[n, cols], DType::F16);
    w.decode_codes(Window::whole(&mut workspace))?;
    let mut y = multiplied(1.0, Operand::new(&quantised), Operand::new(&workspace).t(), DType::F32)?;
    let count = y.len();
    let kernel = Rescale { y: &mut y, rows: &largest, cols: w.absmax(), n, count };
    // SAFETY: a scale a row and one a column of `y`.
    unsafe { kernel.launch(gpu, element, Launch::elements(count)) }?;
    if any.to_device(&Device::Cpu)?.data::<u32>()[0] != 0 {
        w.decode(Window::whole(&mut workspace))?;
        multiply(1.0, Operand::new(&rest), Operand::new(&workspace).t(), 1.0, &mut y)?;
    }
    Ok(y)
}
