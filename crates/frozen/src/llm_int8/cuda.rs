use crate::coded::CodedMatrix;
use halfbyte_cuda::{F16, Gpu, Launch, T, kernels};
use halfbyte_ops::gpu_product::{Operand, Window, product as multiplied};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "llm_int8", "kernel.cu", over Tensor;
    find_outliers as FindOutliers { x: *const T, flags: *mut i32, rows: i32, cols: i32 }
    list_outliers as ListOutliers { flags: *const i32, outliers: *mut i32, count: *mut i32, cols: i32 }
    quantise as Quantise { x: *const T, flags: *const i32, codes: *mut F16, absmax: *mut f32, cols: i32 }
    finish as Finish {
        x: *const T, codes: *const u8, scales: *const f32, unit: f32, rows: *const f32, outliers: *const i32, count: *const i32,
        y: *mut f32, m: i32, n: i32, k: i32,
    }
}

/// Threads that list outliers, rows and columns of the result that a block finishes: as in the kernels.
const LISTING: u32 = 256;
const TILE: usize = 64;
/// Rows that a thread looks through for outliers.
const LOOKED_THROUGH: usize = 64;

/// As in host memory, with f16 products, since f16 holds the codes exactly; their sums are f32, too. The outliers' part is left to a
/// kernel that goes through as many columns as the device has found.
pub(super) fn product(gpu: &Arc<Gpu>, w: &CodedMatrix, x: &Tensor) -> Result<Tensor> {
    let (m, (n, k)) = (x.rows(), w.dims);
    if m * n == 0 {
        return Ok(x.scratch_like(&[m, n], DType::F32));
    }
    let element = number(x.dtype());
    let mut flags = Tensor::zeros_on(&x.device(), &[k], DType::U32);
    let Launch { grid, block, shared } = Launch::elements(k);
    let slabs = m.div_ceil(LOOKED_THROUGH).min(usize::from(u16::MAX)) as u32;
    let kernel = FindOutliers { x, flags: &mut flags, rows: m, cols: k };
    // SAFETY: a flag a column.
    unsafe { kernel.launch(gpu, element, Launch { grid: (grid.0, slabs, 1), block, shared }) }?;
    let [mut outliers, mut count] = [k, 1].map(|it| x.scratch_like(&[it], DType::U32));
    let kernel = ListOutliers { flags: &flags, outliers: &mut outliers, count: &mut count, cols: k };
    // SAFETY: one block, and at most all columns are listed.
    unsafe { kernel.launch(gpu, element, Launch::rows(1, LISTING)) }?;
    let (mut quantised, mut largest) = (x.scratch_like(&[m, k], DType::F16), x.scratch_like(&[m], DType::F32));
    let kernel = Quantise { x, flags: &flags, codes: &mut quantised, absmax: &mut largest, cols: k };
    // SAFETY: a block a row, and the codes have the shape of `x`.
    unsafe { kernel.launch(gpu, element, Launch::rows(m, 256)) }?;
    let mut workspace = x.scratch_like(&[n, k], DType::F16);
    w.decode_codes(Window::whole(&mut workspace))?;
    let mut y = multiplied(1.0, Operand::new(&quantised), Operand::new(&workspace).t(), DType::F32)?;
    let (codes, scales, unit) = (w.codes(), w.absmax(), w.code.unit);
    let (rows, outliers, count) = (&largest, &outliers, &count);
    let kernel = Finish { x, codes, scales, unit, rows, outliers, count, y: &mut y, m, n, k };
    let grid = (n.div_ceil(TILE) as u32, m.div_ceil(TILE) as u32, 1);
    // SAFETY: a block a tile of `y`, with a scale for each of its rows and columns.
    unsafe { kernel.launch(gpu, element, Launch { grid, block: (256, 1, 1), shared: 0 }) }?;
    Ok(y)
}
