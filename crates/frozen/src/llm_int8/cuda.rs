//! The same on a GPU. f16 holds the codes exactly, and the sums are f32, as on the CPU.

use halfbyte_cuda::{Launch, Source};
use halfbyte_ops::{
    FrozenMatrix,
    gpu_product::{Operand, decode, multiply, product},
};
use halfbyte_tensor::{DType, Device, Result, Tensor, cuda::Call};

const SOURCE: Source = Source { name: "llm_int8", text: include_str!("kernel.cu") };

/// `x (rows, in_features) Wᵀ` in f32; `codes` decodes to the weight's codes, `weight` to its values, and `absmax` is that of its rows.
pub(crate) fn product_on_gpu(
    x: &Tensor,
    (codes, weight): (&dyn FrozenMatrix, &dyn FrozenMatrix),
    absmax: &Tensor,
) -> Result<Tensor> {
    let (rows, cols, n) = (x.rows(), x.cols(), weight.dims().0);
    let Some(gpu) = x.gpu().filter(|_| rows > 0) else { return Ok(x.scratch_like(&[rows, n], DType::F32)) };
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
    let whole = decode(codes, DType::F16)?;
    let mut y = product(1.0, Operand::new(&quantised), Operand::new(&whole).t(), DType::F32)?;
    drop(whole);
    let count = y.len();
    let call = Call::new(gpu, &SOURCE, x.dtype()).write(&mut y).read(&largest).read(absmax).int(n).long(count as u64);
    // SAFETY: a scale a row and one a column of `y`.
    unsafe { call.run("rescale", Launch::elements(count)) }?;
    if any.to_device(&Device::Cpu)?.data::<u32>()[0] != 0 {
        let values = decode(weight, DType::F16)?;
        multiply(1.0, Operand::new(&rest), Operand::new(&values).t(), 1.0, &mut y)?;
    }
    Ok(y)
}
