use crate::coded::CodedMatrix;
use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_ops::{
    frozen::Coded,
    gpu_product::{Operand, Window, multiply, product as multiplied},
};
use halfbyte_tensor::{DType, Device, Result, Tensor, cuda::Call};
use std::sync::Arc;

const SOURCE: Source = Source { name: "llm_int8", text: include_str!("kernel.cu") };

/// As in host memory, with f16 products, since f16 holds the codes exactly; their sums are f32, too.
pub(super) fn product(gpu: &Arc<Gpu>, w: &CodedMatrix, x: &Tensor) -> Result<Tensor> {
    let (rows, cols, n) = (x.rows(), x.cols(), w.dims.0);
    if rows == 0 {
        return Ok(x.scratch_like(&[rows, n], DType::F32));
    }
    let mut flags = x.scratch_like(&[cols], DType::U32);
    let mut any = Tensor::zeros_on(&x.device(), &[1], DType::U32);
    let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).write(&mut flags).write(&mut any).int(rows).int(cols);
    // SAFETY: a thread a column, each over all rows; a flag a column.
    unsafe { call.run("find_outliers", Launch::elements(cols)) }?;
    let mut quantised = x.scratch_like(&[rows, cols], DType::F16);
    let mut rest = x.scratch_like(&[rows, cols], DType::F16);
    let mut largest = x.scratch_like(&[rows], DType::F32);
    let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).read(&flags).write(&mut quantised).write(&mut rest);
    // SAFETY: a block a row, and both outputs have the shape of `x`.
    unsafe { call.write(&mut largest).int(cols).run("quantise", Launch::rows(rows, 256)) }?;
    let mut workspace = x.scratch_like(&[n, cols], DType::F16);
    w.decode_codes(Window::whole(&mut workspace))?;
    let mut y = multiplied(1.0, Operand::new(&quantised), Operand::new(&workspace).t(), DType::F32)?;
    let count = y.len();
    let call =
        Call::new(gpu, &SOURCE, x.dtype()).write(&mut y).read(&largest).read(w.absmax()).int(n).long(count as u64);
    // SAFETY: a scale a row and one a column of `y`.
    unsafe { call.run("rescale", Launch::elements(count)) }?;
    if any.to_device(&Device::Cpu)?.data::<u32>()[0] != 0 {
        w.decode(Window::whole(&mut workspace))?;
        multiply(1.0, Operand::new(&rest), Operand::new(&workspace).t(), 1.0, &mut y)?;
    }
    Ok(y)
}
