use halfbyte_cuda::{Any, Gpu, Kind, Launch, Number, T, kernels};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};

kernels! {
    const SOURCE = "dora", "kernel.cu", over Tensor;
    scale_columns as ScaleColumns {
        x: *const T, magnitude: *const f32, norm: *const f32, shift: Option<*const Any>, kind: Kind, y: *mut T, cols: i32, n: usize,
    }
    sum_of_products as SumOfProducts { a: *const T, b: *const T, norm: *const f32, sums: *mut f32, rows: i32, cols: i32 }
    row_norms as RowNorms { x: *const T, norms: *mut f32, cols: i32 }
}

pub(super) fn scale_columns(
    gpu: &Gpu,
    x: &Tensor,
    [magnitude, norm]: [&Tensor; 2],
    shift: Option<&Tensor>,
    y: &mut Tensor,
) -> Result<()> {
    let (kind, cols, n) = (number(shift.map_or(DType::F32, Tensor::dtype)), x.cols(), x.len());
    let kernel = ScaleColumns { x, magnitude, norm, shift, kind, y, cols, n };
    // SAFETY: a magnitude, a norm and a shift a column.
    unsafe { kernel.launch(gpu, number(x.dtype()), Launch::elements(n)) }
}

pub(super) fn magnitude_gradient(gpu: &Gpu, dy: &Tensor, u: &Tensor, norm: &Tensor, sums: &mut Tensor) -> Result<()> {
    let (rows, cols) = (u.rows(), u.cols());
    let kernel = SumOfProducts { a: dy, b: u, norm, sums, rows, cols };
    // SAFETY: a thread a column, each over all rows.
    unsafe { kernel.launch(gpu, number(u.dtype()), Launch::elements(cols)) }
}

pub(super) fn row_norms(gpu: &Gpu, v: &Tensor, norms: &mut Tensor) -> Result<()> {
    let kernel = RowNorms { x: v, norms, cols: v.cols() };
    // SAFETY: a block a row, a norm a row.
    unsafe { kernel.launch(gpu, Number::F32, Launch::rows(v.rows(), 256)) }
}
