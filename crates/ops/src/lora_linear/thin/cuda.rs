//! The two thin products with the gradient of a layer's results, in one pass over it: `dh = s dy B` and `dB = s dyᵀ h`.
//!
//! Each reads all of `dy` for a result that is a hundredth of it, so by themselves they cost two passes over memory, for every layer.

use halfbyte_cuda::{Any, Gpu, InRows, Kind, Launch, T, Three, kernels};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "thin", "kernel.cu", over Tensor;
    thin_gradients as ThinGradients {
        dy: Three<InRows<*const T>>, dy_stride: Three<i32>, b: Three<Option<*const Any>>, b_kind: Three<Kind>, h: Option<*const T>,
        scaling: Three<f32>, dh: Three<Option<*mut f32>>, db: Three<Option<*mut f32>>, rows: i32, cols: Three<i32>, rank: Three<i32>,
        width: i32, first: Three<i32>, tiles: i32,
    }
    join_gradients as JoinGradients {
        dh: Three<Option<*const f32>>, db: Three<Option<*const f32>>, dh_parts: Three<i32>, db_parts: i32, scaling: Three<f32>,
        to_a: Option<*mut T>, to_b: Three<Option<*mut f32>>, rows: i32, cols: Three<i32>, rank: Three<i32>, width: i32, first: Three<i32>,
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

/// Layers whose products are one launch.
pub(in crate::lora_linear) const TOGETHER: usize = 3;

/// What the products of one layer read.
#[derive(Clone, Copy)]
pub(in crate::lora_linear) struct ThinProducts<'a> {
    /// The gradient of the results, `(rows, out_features)`.
    pub(in crate::lora_linear) dy: &'a Tensor,
    /// `(out_features, rank)`, if `s dy B` is wanted.
    pub(in crate::lora_linear) b: Option<&'a Tensor>,
    /// Whether `dB` is wanted.
    pub(in crate::lora_linear) wants_db: bool,
    /// The layer's columns of the projections and of `s dy B`.
    pub(in crate::lora_linear) place: (usize, usize),
    pub(in crate::lora_linear) scaling: f32,
}

/// What layers with one input share.
pub(in crate::lora_linear) struct Shared<'a> {
    /// The projections of the layers side by side, if any `dB` is wanted.
    pub(in crate::lora_linear) h: Option<&'a Tensor>,
    /// Where `s dy B` goes, as wide.
    pub(in crate::lora_linear) dh: Option<&'a mut Tensor>,
    /// The columns of both.
    pub(in crate::lora_linear) width: usize,
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

/// Writes `s dy B` of up to [`TOGETHER`] layers with as many rows into their columns, and gives their `dB`, f32.
///
/// # Errors
/// If the GPU fails.
pub(in crate::lora_linear) fn gradients(
    gpu: &Arc<Gpu>,
    layers: &[ThinProducts<'_>],
    shared: Shared<'_>,
) -> Result<Vec<Option<Tensor>>> {
    by_blocks(gpu, layers, shared, BLOCKS)
}

/// By so many blocks, about.
fn by_blocks(
    gpu: &Arc<Gpu>,
    layers: &[ThinProducts<'_>],
    Shared { h, dh: to_a, width }: Shared<'_>,
    blocks: usize,
) -> Result<Vec<Option<Tensor>>> {
    assert!((1..=TOGETHER).contains(&layers.len()), "as many layers as one launch takes");
    // Where there are fewer, no block asks for the others.
    let of: [&ThinProducts<'_>; TOGETHER] = std::array::from_fn(|i| layers.get(i).unwrap_or(&layers[0]));
    let (dy, rows, element) = (of[0].dy, of[0].dy.rows(), number(of[0].dy.dtype()));
    let across = of.map(|it| it.dy.cols().div_ceil(CHUNKS * TILE));
    let (down, all) = (rows.div_ceil(TILE), across[..layers.len()].iter().sum::<usize>());
    // As few parts as still occupy the device.
    let tiles = (all * down).div_ceil(blocks).clamp(1, down);
    let parts = down.div_ceil(tiles);
    let scratch = |len: usize, wanted: bool| wanted.then(|| dy.scratch_like(&[len], DType::F32));
    let each = |of_layer: &dyn Fn(usize, &ThinProducts<'_>) -> Option<Tensor>| -> [Option<Tensor>; TOGETHER] {
        std::array::from_fn(|i| layers.get(i).and_then(|it| of_layer(i, it)))
    };
    let mut dh = each(&|i, it| scratch(across[i] * rows * it.place.1, it.b.is_some()));
    let mut db = each(&|_, it| scratch(parts * it.dy.cols() * it.place.1, it.wants_db));
    let padded = of.map(|it| it.place.1.next_power_of_two().max(16)).into_iter().max().unwrap_or(16);
    let elements = 2 * TILE * TILE + (CHUNKS + 2) * TILE * (padded + 8);
    let launch = Launch {
        grid: (across.into_iter().max().unwrap_or(1) as u32, parts as u32, layers.len() as u32),
        block: (32 * WARPS as u32, 1, 1),
        shared: (elements * dy.dtype().size()) as u32,
    };
    let (cols, rank) = (of.map(|it| it.dy.cols()), of.map(|it| it.place.1));
    let (scaling, first) = (of.map(|it| it.scaling), of.map(|it| it.place.0));
    let bytes = |it: &Option<Tensor>| it.as_ref().map_or(0, Tensor::bytes);
    let parts_bytes: usize = dh.iter().chain(&db).map(bytes).sum();
    let read = |it: &ThinProducts<'_>| it.dy.bytes() + it.b.map_or(0, Tensor::bytes);
    gpu.next_moves(layers.iter().map(read).sum::<usize>() + h.map_or(0, Tensor::bytes) + parts_bytes);
    let kernel = ThinGradients {
        dy: of.map(|it| it.dy),
        dy_stride: of.map(|it| it.dy.stride()),
        b: of.map(|it| it.b),
        b_kind: of.map(|it| number(it.b.map_or(DType::F32, Tensor::dtype))),
        h,
        scaling,
        dh: dh.each_mut().map(Option::as_mut),
        db: db.each_mut().map(Option::as_mut),
        rows,
        cols,
        rank,
        width,
        first,
        tiles,
    };
    // SAFETY: the parts have room for every block, and the factors as many rows as `dy` has columns or rows.
    unsafe { kernel.launch(gpu, element, launch) }?;
    let products = |it: &ThinProducts<'_>| usize::from(it.b.is_some()) + usize::from(it.wants_db);
    let operations: usize = layers.iter().map(|it| 2 * rows * it.dy.cols() * it.place.1 * products(it)).sum();
    gpu.count_operations(operations as u64);
    let mut found = each(&|_, it| it.wants_db.then(|| dy.scratch_like(&[it.dy.cols(), it.place.1], DType::F32)));
    let sums = |it: &ThinProducts<'_>| {
        it.place.1 * (if it.b.is_some() { rows } else { 0 } + if it.wants_db { it.dy.cols() } else { 0 })
    };
    let most = layers.iter().map(sums).max().unwrap_or(0);
    let written = layers.iter().filter(|it| it.b.is_some()).map(|it| rows * it.place.1 * dy.dtype().size());
    gpu.next_moves(parts_bytes + written.sum::<usize>() + found.iter().map(bytes).sum::<usize>());
    let wide = Launch::elements(most);
    let launch = Launch { grid: (wide.grid.0, layers.len() as u32, 1), ..wide };
    let kernel = JoinGradients {
        dh: dh.each_ref().map(Option::as_ref),
        db: db.each_ref().map(Option::as_ref),
        dh_parts: std::array::from_fn(|i| if dh[i].is_some() { across[i] } else { 0 }),
        db_parts: parts,
        scaling,
        to_a,
        to_b: found.each_mut().map(Option::as_mut),
        rows,
        cols,
        rank,
        width,
        first,
    };
    // SAFETY: as above.
    unsafe { kernel.launch(gpu, element, launch) }?;
    Ok(found.into_iter().take(layers.len()).collect())
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
            let products = ThinProducts { dy: &dy, b: Some(&b), wants_db: true, place: (8, rank), scaling: 0.5 };
            let shared = Shared { h: Some(&h), dh: Some(&mut dh), width };
            let db = by_blocks(&gpu, &[products], shared, blocks).unwrap().remove(0).unwrap();
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

    /// Layers of other widths and ranks, of which one lacks a product: what they find together is what each finds alone.
    #[test]
    fn layers_of_one_launch_do_not_meet() {
        let Some(gpu) = gpu() else { return };
        let there = |t: Tensor| t.to_device(&Device::Cuda(gpu.clone())).unwrap();
        let (rows, width) = (300, 48);
        let shapes = [(528, 0, 16), (264, 16, 20), (8, 36, 7)];
        let dys = shapes.map(|(cols, ..)| there(noise(&[rows, cols], DType::Bf16, cols as u64)));
        let bs = shapes.map(|(cols, _, rank)| there(noise(&[cols, rank], DType::F32, 2)));
        let h = there(noise(&[rows, width], DType::Bf16, 3));
        let layers: [ThinProducts<'_>; TOGETHER] = std::array::from_fn(|i| ThinProducts {
            dy: &dys[i],
            b: (i != 1).then_some(&bs[i]),
            wants_db: i != 2,
            place: (shapes[i].1, shapes[i].2),
            scaling: 0.5 * (i + 1) as f32,
        });
        // Of so many blocks that each has one tile, whoever else is there.
        let of = |some: &[ThinProducts<'_>]| {
            let mut dh = Tensor::zeros_on(&h.device(), &[rows, width], DType::Bf16);
            let shared = Shared { h: Some(&h), dh: Some(&mut dh), width };
            let dbs = by_blocks(&gpu, some, shared, usize::MAX).unwrap();
            (dh.to_f32_vec(), dbs.into_iter().map(|it| it.map(|it| it.to_f32_vec())).collect::<Vec<_>>())
        };
        let (together, found) = of(&layers);
        let mut sum = vec![0.0; together.len()];
        for (i, layer) in layers.iter().enumerate() {
            let (alone, db) = of(&[*layer]);
            assert!(db[0] == found[i], "dB of layer {i}");
            assert_eq!(db[0].is_some(), i != 2);
            assert_eq!(alone.iter().any(|it| *it != 0.0), i != 1, "dh of layer {i}");
            sum.iter_mut().zip(alone).for_each(|(sum, it)| *sum += it);
        }
        assert!(together == sum, "each has columns of its own");
    }
}
