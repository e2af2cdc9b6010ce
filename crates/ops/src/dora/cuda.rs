use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_tensor::{DType, Result, Tensor, cuda};
use std::sync::Arc;

const SOURCE: Source = Source { name: "dora", text: include_str!("kernel.cu") };

pub(super) fn scale_columns(
    gpu: &Arc<Gpu>,
    x: &Tensor,
    [magnitude, norm]: [&Tensor; 2],
    shift: Option<&Tensor>,
    y: &mut Tensor,
) -> Result<()> {
    let call = cuda::Call::new(gpu, &SOURCE, x.dtype()).read(x).read(magnitude).read(norm).read_or_null(shift);
    let call = call.kind(shift.map_or(DType::F32, Tensor::dtype)).write(y).int(x.cols()).long(x.len() as u64);
    // SAFETY: a magnitude, a norm and a shift a column.
    unsafe { call.run("scale_columns", Launch::elements(x.len())) }
}

pub(super) fn magnitude_gradient(
    gpu: &Arc<Gpu>,
    dy: &Tensor,
    u: &Tensor,
    norm: &Tensor,
    sums: &mut Tensor,
) -> Result<()> {
    let (rows, cols) = (u.rows(), u.cols());
    let call = cuda::Call::new(gpu, &SOURCE, u.dtype()).read(dy).read(u).read(norm).write(sums);
    // SAFETY: a thread a column, each over all rows.
    unsafe { call.int(rows).int(cols).run("sum_of_products", Launch::elements(cols)) }
}

pub(super) fn row_norms(gpu: &Arc<Gpu>, v: &Tensor, norms: &mut Tensor) -> Result<()> {
    let call = cuda::Call::new(gpu, &SOURCE, DType::F32).read(v).write(norms).int(v.cols());
    // SAFETY: a block a row, a norm a row.
    unsafe { call.run("row_norms", Launch::rows(v.rows(), 256)) }
}
