//! The two thin products with the gradient of a layer's results, in one pass over it: `dh = s dy B` and `dB = s dyᵀ h`.
//!
//! Each reads all of `dy` for a result that is a hundredth of it, so by themselves they cost two passes over memory, for every layer.

use halfbyte_cuda::{Any, Gpu, InRows, Kind, Launch, T, kernels};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "thin", "kernel.cu", over Tensor;
    thin_gradients as ThinGradients {
        dy: InRows<*const T>, dy_stride: i32, b: Option<*const Any>, b_kind: Kind, h: Option<*const T>, scaling: f32, dh: *mut f32, db: *mut f32, rows: i32,
        cols: i32, rank: i32, width: i32, first: i32, tiles: i32,
    }
    join_gradients as JoinGradients {
        dh: *const f32, db: *const f32, dh_parts: i32, db_parts: i32, scaling: f32, to_a: Option<*mut T>, to_b: Option<*mut f32>,
        rows: i32, cols: i32, rank: i32, width: i32, first: i32,
    }
}

/// Rows and columns of a tile of `dy`; tiles of columns that a block has; warps of a block: as in the kernel.
const TILE: usize = 128;
const CHUNKS: usize = 2;
const WARPS: usize = 8;
/// Ranks whose sums fit the registers.
const MAX_RANK: usize = 32;
/// So many blocks occupy a large device, two to a multiprocessor.
const BLOCKS: usize = 264;

/// What the products of one layer read and write.
pub(in crate::lora_linear) struct ThinProducts<'a> {
    /// The gradient of the results, `(rows, out_features)`.
    pub(in crate::lora_linear) dy: &'a Tensor,
    /// `(out_features, rank)`, and where `s dy B` goes, if it is wanted.
    pub(in crate::lora_linear) to_a: Option<(&'a Tensor, &'a mut Tensor)>,
    /// The projections of the layers side by side, if `dB` is wanted.
    pub(in crate::lora_linear) h: Option<&'a Tensor>,
    /// The layer's columns of both.
    pub(in crate::lora_linear) place: (usize, usize),
    /// The columns of both.
    pub(in crate::lora_linear) width: usize,
    pub(in crate::lora_linear) scaling: f32,
}

/// Whether the kernel takes a gradient of this kind.
pub(in crate::lora_linear) fn fit(dy: &Tensor, rank: usize) -> bool {
    let sums = dy.rows().max(dy.cols()) * rank;
    dy.dtype() != DType::F32
        && dy.cols().is_multiple_of(8)
        && dy.stride().is_multiple_of(8)
        && (1..=MAX_RANK).contains(&rank)
        && !dy.is_empty()
        && u32::try_from(sums).is_ok()
}

/// Writes `s dy B` into its columns, and gives `dB`, f32.
///
/// # Errors
/// If the GPU fails.
pub(in crate::lora_linear) fn gradients(gpu: &Arc<Gpu>, products: ThinProducts<'_>) -> Result<Option<Tensor>> {
    by_blocks(gpu, products, BLOCKS)
}

/// By so many blocks, about.
fn by_blocks(gpu: &Arc<Gpu>, products: ThinProducts<'_>, blocks: usize) -> Result<Option<Tensor>> {
    let ThinProducts { dy, to_a, h, place: (first, rank), width, scaling } = products;
    let (rows, cols, element) = (dy.rows(), dy.cols(), number(dy.dtype()));
    let (across, down) = (cols.div_ceil(CHUNKS * TILE), rows.div_ceil(TILE));
    // As few parts as still occupy the device.
    let tiles = (across * down).div_ceil(blocks).clamp(1, down);
    let parts = down.div_ceil(tiles);
    let (b, to_a) = to_a.unzip();
    let mut dh = dy.scratch_like(&[if b.is_some() { across * rows * rank } else { 1 }], DType::F32);
    let mut db = dy.scratch_like(&[if h.is_some() { parts * cols * rank } else { 1 }], DType::F32);
    let padded = rank.next_power_of_two().max(16);
    let elements = 2 * TILE * TILE + (CHUNKS + 2) * TILE * (padded + 8);
    let launch = Launch {
        grid: (across as u32, parts as u32, 1),
        block: (32 * WARPS as u32, 1, 1),
        shared: (elements * dy.dtype().size()) as u32,
    };
    let (dy_stride, b_kind) = (dy.stride(), number(b.map_or(DType::F32, Tensor::dtype)));
    let kernel = ThinGradients {
        dy,
        dy_stride,
        b,
        b_kind,
        h,
        scaling,
        dh: &mut dh,
        db: &mut db,
        rows,
        cols,
        rank,
        width,
        first,
        tiles,
    };
    // SAFETY: the parts have room for every block, and the factors as many rows as `dy` has columns or rows.
    unsafe { kernel.launch(gpu, element, launch) }?;
    gpu.count_operations((2 * rows * cols * rank * (usize::from(b.is_some()) + usize::from(h.is_some()))) as u64);
    let (wants_a, wants_b) = (to_a.is_some(), h.is_some());
    let mut found = wants_b.then(|| dy.scratch_like(&[cols, rank], DType::F32));
    let n = if wants_a { rows * rank } else { 0 } + if wants_b { cols * rank } else { 0 };
    let kernel = JoinGradients {
        dh: &dh,
        db: &db,
        dh_parts: across,
        db_parts: parts,
        scaling,
        to_a,
        to_b: found.as_mut(),
        rows,
        cols,
        rank,
        width,
        first,
    };
    // SAFETY: as above.
    unsafe { kernel.launch(gpu, element, Launch::elements(n)) }?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_tensor::Device;
    use halfbyte_testkit::{cuda::gpu, noise};

    /// A block that goes through all rows, and blocks that have a tile each, find the same, but for the order of their sums.
    #[test]
    fn the_sums_do_not_depend_on_how_rows_are_dealt_out() {
        let Some(gpu) = gpu() else { return };
        let there = |t: Tensor| t.to_device(&Device::Cuda(gpu.clone())).unwrap();
        let (rows, cols, rank, width) = (520, 272, 12, 24);
        let dy = there(noise(&[rows, cols], DType::Bf16, 1));
        let (b, h) = (there(noise(&[cols, rank], DType::F32, 2)), there(noise(&[rows, width], DType::Bf16, 3)));
        let of = |blocks: usize| {
            let mut dh = Tensor::zeros_on(&dy.device(), &[rows, width], DType::Bf16);
            let to_a = Some((&b, &mut dh));
            let products = ThinProducts { dy: &dy, to_a, h: Some(&h), place: (8, rank), width, scaling: 0.5 };
            let db = by_blocks(&gpu, products, blocks).unwrap().unwrap();
            [dh, db].map(|it| it.to_f32_vec())
        };
        let (few, many) = (of(1), of(BLOCKS));
        let [dy, b, h] = [&dy, &b, &h].map(|it| it.to_f32_vec());
        let to_a = |i: usize| -> f64 {
            let (row, column) = (i / width, i % width);
            let at = |c: usize, k: usize| f64::from(dy[row * cols + c]) * f64::from(b[c * rank + k]) * 0.5;
            if (8..8 + rank).contains(&column) { (0..cols).map(|c| at(c, column - 8)).sum() } else { 0.0 }
        };
        let to_b = |i: usize| -> f64 {
            let at = |r: usize| f64::from(dy[r * cols + i / rank]) * f64::from(h[r * width + 8 + i % rank]) * 0.5;
            (0..rows).map(at).sum()
        };
        let near = |what: &str, got: &[f32], wanted: &dyn Fn(usize) -> f64, tolerance: f64| {
            let largest = got.iter().fold(0.0f32, |most, it| most.max(it.abs()));
            for (i, got) in got.iter().enumerate() {
                let wanted = wanted(i);
                let off = (f64::from(*got) - wanted).abs();
                assert!(off <= tolerance * f64::from(largest), "{what} {i}: {got}, not {wanted}");
            }
        };
        for [dh, db] in [few, many] {
            // B was rounded to bf16, and so is this sum.
            near("dh", &dh, &to_a, 0.0078125);
            near("dB", &db, &to_b, 1e-6);
        }
    }
}
