use super::{Addends, MAX_RANK, TOGETHER, Update};
use crate::{
    frozen::{FEW_ROWS, FourBit},
    place::on_device,
};
use halfbyte_cuda::{Any, Kind, Launch, Source, T, Three, Version, kernels};
use halfbyte_tensor::{DType, Result, Tensor, cuda::number};

kernels! {
    const SOURCE = "few_rows", "kernel.cu", over Tensor;
    const MORE = "few_rows_more", "more.cuh" "kernel.cu", over Tensor;
    multiply as Multiply {
        x: *const T, codes: Three<Option<*const u8>>, tables: Three<Option<*const f32>>, absmax: Three<Option<*const f32>>,
        scale_codes: Three<Option<*const u8>>, nested: Three<Option<*const f32>>, offset: Three<f32>, shift: Three<i32>,
        b: Three<Option<*const Any>>, b_kind: Three<Kind>, rank: Three<i32>, first: Three<i32>, scaling: Three<f32>,
        h: Option<*const T>, width: i32, bias: Three<Option<*const Any>>, bias_kind: Three<Kind>, onto: Three<Option<*const T>>,
        y: Three<Option<*mut T>>, n: Three<i32>, m: i32, k: i32,
    }
    project as Project {
        x: *const T, a: Three<Option<*const Any>>, kind: Three<Kind>, end: Three<i32>, h: *mut T, m: i32, k: i32, width: i32,
    }
    add_up as AddUp {
        base: *const Any, base_kind: Kind, b: Option<*const Any>, b_kind: Kind, rank: i32, first: i32, scaling: f32,
        h: Option<*const T>, width: i32, bias: Option<*const Any>, bias_kind: Kind, onto: Option<*const T>, y: *mut T, m: i32, n: i32,
    }
}

/// Rows of the input that the kernel takes in 16 bits, by whichever of two modules: the second is compiled when it is first met.
pub(super) const MOST_ROWS: usize = 32;

/// The module for so many rows of the input, and rows of a matrix that a block of it multiplies.
fn module(rows: usize) -> (&'static Source, usize) {
    if rows <= FEW_ROWS { (&SOURCE, 16) } else { (&MORE, 32) }
}

/// Warps of a block, and elements of a row that these multiply at once: as in the kernel.
const WARPS: usize = 8;
const UNIT: usize = 64;
/// Elements that a thread takes of a row of `A`, and how many threads a row has at most.
const AT_ONCE: usize = 8;
const MOST_THREADS: usize = 512;

/// Whether it takes so many rows.
pub(super) fn takes(x: &Tensor) -> bool {
    x.rows() <= if x.dtype() == DType::F32 { FEW_ROWS } else { MOST_ROWS }
}

/// Whether the kernel multiplies such a matrix with an input of this dtype: those of 16 bits go to tensor cores, by whole units.
pub(super) fn fit(w: &FourBit<'_>, x: &Tensor) -> bool {
    let has_tensor_cores = || x.gpu().is_some_and(|it| it.info().compute_capability >= Version { major: 8, minor: 0 });
    x.dtype() == DType::F32 || (w.dims.1.is_multiple_of(UNIT) && has_tensor_cores())
}

/// The products of an input of at most [`FEW_ROWS`] rows, or [`MOST_ROWS`] in 16 bits, with at most [`TOGETHER`] matrices.
pub(super) fn multiply(x: &Tensor, all: &[(FourBit<'_>, &Addends<'_>)]) -> Result<Vec<Tensor>> {
    let (m, k) = (x.rows(), x.cols());
    assert!(takes(x) && all.len() <= TOGETHER, "{m} rows and {} matrices in a launch", all.len());
    let new = |i: usize| all.get(i).map(|it| x.scratch_like(&[m, it.0.dims.0], x.dtype()));
    let mut ys = [new(0), new(1), new(2)];
    let n = [0, 1, 2].map(|i| all.get(i).map_or(0, |it| it.0.dims.0));
    let blocks: usize = n.iter().map(|it| it.div_ceil(module(m).1)).sum();
    if m * blocks > 0 {
        start(x, all, (ys.each_mut().map(Option::as_mut), n), blocks)?;
        if let Some(gpu) = x.gpu() {
            let updates = all.iter().filter_map(|it| Some((it.0.dims.0, it.1.update?.b.cols())));
            let terms: usize = all.iter().map(|it| it.0.dims.0 * k).chain(updates.map(|(n, rank)| n * rank)).sum();
            gpu.count_operations((2 * m * terms) as u64);
        }
    }
    Ok(ys.into_iter().flatten().collect())
}

/// Launches the kernel over matrices of `n` rows.
fn start(
    x: &Tensor,
    all: &[(FourBit<'_>, &Addends<'_>)],
    (y, n): ([Option<&mut Tensor>; TOGETHER], [usize; TOGETHER]),
    blocks: usize,
) -> Result<()> {
    let w = [0, 1, 2].map(|i| all.get(i).map(|it| it.0));
    let addends = [0, 1, 2].map(|i| all.get(i).map(|it| *it.1).unwrap_or_default());
    let updates = addends.map(|it| it.update);
    assert!(
        updates.iter().flatten().all(|it| it.b.cols() <= MAX_RANK),
        "updates of few rows have a rank up to {MAX_RANK}"
    );
    let h = updates.iter().flatten().next().map(|it| it.h);
    let kind = |t: Option<&Tensor>| number(t.map_or(DType::F32, Tensor::dtype));
    on_device(x, |gpu| {
        let kernel = Multiply {
            x,
            codes: w.map(|it| Some(it?.codes)),
            tables: w.map(|it| Some(it?.tables)),
            absmax: w.map(|it| it?.absmax),
            scale_codes: w.map(|it| it?.scale_codes),
            nested: w.map(|it| it?.nested),
            offset: w.map(|it| it.map_or(0.0, |it| it.offset)),
            shift: w.map(|it| it.map_or(0, |it| it.shift)),
            b: updates.map(|it| Some(it?.b)),
            b_kind: updates.map(|it| kind(it.map(|it| it.b))),
            rank: updates.map(|it| it.map_or(0, |it| it.b.cols())),
            first: updates.map(|it| it.map_or(0, |it| it.first)),
            scaling: updates.map(|it| it.map_or(0.0, |it| it.scaling)),
            h,
            width: h.map_or(0, Tensor::cols),
            bias: addends.map(|it| it.bias),
            bias_kind: addends.map(|it| kind(it.bias)),
            onto: addends.map(|it| it.onto),
            y,
            n,
            m: x.rows(),
            k: x.cols(),
        };
        // SAFETY: the codes fill the matrices, with a scale for every block of them, and a block has a tile of one; what is added has a
        // row for each of a matrix or of `x`.
        unsafe {
            kernel.launch_from(module(x.rows()).0, gpu, number(x.dtype()), Launch::rows(blocks, 32 * WARPS as u32))
        }
    })
}

/// `x [A ; A' ; A'']ᵀ`, `(rows, width)` in the dtype of `x`, of at most [`TOGETHER`] factors `(rank, in_features)`; zeros behind
/// their columns.
///
/// Fails if the GPU does.
pub(crate) fn project(x: &Tensor, factors: &[&Tensor], width: usize) -> Result<Tensor> {
    let (m, k) = (x.rows(), x.cols());
    assert!(takes(x) && factors.len() <= TOGETHER, "{m} rows and {} factors in a launch", factors.len());
    let mut h = x.scratch_like(&[m, width], x.dtype());
    let mut ranks = 0;
    let end = [0, 1, 2].map(|i| {
        ranks += factors.get(i).map_or(0, |it| it.rows());
        ranks
    });
    assert!(ranks <= width, "{ranks} columns of {width}");
    if m * width == 0 {
        return Ok(h);
    }
    let a = [0, 1, 2].map(|i| factors.get(i).copied());
    let kind = a.map(|it| number(it.map_or(DType::F32, Tensor::dtype)));
    let threads = k.div_ceil(AT_ONCE).next_multiple_of(32).clamp(32, MOST_THREADS);
    on_device(x, |gpu| {
        let kernel = Project { x, a, kind, end, h: &mut h, m, k, width };
        let grid = (width as u32, m.div_ceil(FEW_ROWS) as u32, 1);
        // SAFETY: a block a column and eight rows, each with a row of a factor or none.
        unsafe {
            kernel.launch_from(
                &SOURCE,
                gpu,
                number(x.dtype()),
                Launch { grid, block: (threads as u32, 1, 1), shared: 0 },
            )
        }?;
        gpu.count_operations((2 * m * k * ranks) as u64);
        Ok(())
    })?;
    Ok(h)
}

/// A product of another way with what is added to it, rounded once to `dtype`.
pub(super) fn add_up(base: &Tensor, addends: &Addends<'_>, dtype: DType) -> Result<Tensor> {
    let (m, n) = (base.rows(), base.cols());
    let mut y = base.scratch_like(base.shape(), dtype);
    if m * n == 0 {
        return Ok(y);
    }
    let Addends { update, bias, onto } = *addends;
    let kind = |t: Option<&Tensor>| number(t.map_or(DType::F32, Tensor::dtype));
    let (b, h) = update.map(|Update { b, h, .. }| (b, h)).unzip();
    on_device(base, |gpu| {
        let kernel = AddUp {
            base,
            base_kind: number(base.dtype()),
            b,
            b_kind: kind(b),
            rank: b.map_or(0, Tensor::cols),
            first: update.map_or(0, |it| it.first),
            scaling: update.map_or(0.0, |it| it.scaling),
            h,
            width: h.map_or(0, Tensor::cols),
            bias,
            bias_kind: kind(bias),
            onto,
            y: &mut y,
            m,
            n,
        };
        // SAFETY: what is added has a row for each of the matrix or of the input.
        unsafe { kernel.launch_from(&SOURCE, gpu, number(dtype), Launch::elements(m * n)) }?;
        gpu.count_operations((2 * m * n * b.map_or(0, Tensor::cols)) as u64);
        Ok(())
    })?;
    Ok(y)
}
