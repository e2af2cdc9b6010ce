use crate::{
    FrozenMatrix,
    gpu_product::cuda::{Operand, decode, multiply},
};
use halfbyte_cuda::{Launch, Source};
use halfbyte_tensor::{DType, Result, Tensor, cuda};

const SOURCE: Source = Source { name: "dora", text: include_str!("kernel.cu") };

pub(super) fn scale_columns(x: &Tensor, factor: &[f32], shift: Option<&[f32]>) -> Result<Tensor> {
    let mut y = x.scratch_like(x.shape(), x.dtype());
    let Some(gpu) = x.gpu().filter(|_| !x.is_empty()) else { return Ok(y) };
    let factor = cuda::upload_f32(gpu, &[factor.len()], factor)?;
    let shift = shift.map(|it| cuda::upload_f32(gpu, &[it.len()], it)).transpose()?;
    let call = cuda::Call::new(gpu, &SOURCE, x.dtype()).read(x).read(&factor).read_or_null(shift.as_ref());
    let call = call.write(&mut y).int(x.cols()).long(x.len() as u64);
    // SAFETY: a factor and a shift a column.
    unsafe { call.run("scale_columns", Launch::elements(x.len())) }?;
    Ok(y)
}

/// The sums over rows of `dy u / norm`, f32.
pub(super) fn magnitude_gradient(dy: &Tensor, u: &Tensor, norm: &[f32]) -> Result<Tensor> {
    let (rows, cols) = (u.rows(), u.cols());
    let mut sums = u.scratch_like(&[cols], DType::F32);
    let Some(gpu) = u.gpu() else { return Ok(sums) };
    let norm = cuda::upload_f32(gpu, &[cols], norm)?;
    let call = cuda::Call::new(gpu, &SOURCE, u.dtype()).read(dy).read(u).read(&norm).write(&mut sums);
    // SAFETY: a thread a column, each over all rows.
    unsafe { call.int(rows).int(cols).run("sum_of_products", Launch::elements(cols)) }?;
    Ok(sums)
}

pub(super) fn row_norms(
    w: &dyn FrozenMatrix,
    update: Option<(&Tensor, &Tensor, f32)>,
) -> halfbyte_autograd::Result<Vec<f32>> {
    let mut v = decode(w, DType::F32)?.into_unique();
    if let Some((a, b, scaling)) = update {
        multiply(scaling, Operand::new(b), Operand::new(a), 1.0, &mut v)?;
    }
    let mut norms = v.scratch_like(&[v.rows()], DType::F32);
    let Some(gpu) = v.gpu().cloned() else { return Ok(Vec::new()) };
    let call = cuda::Call::new(&gpu, &SOURCE, DType::F32).read(&v).write(&mut norms).int(v.cols());
    // SAFETY: a block a row, a norm a row.
    unsafe { call.run("row_norms", Launch::rows(v.rows(), 256)) }?;
    Ok(norms.read_f32()?)
}
