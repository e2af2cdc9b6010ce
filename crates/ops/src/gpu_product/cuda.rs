use super::window::{Operand, Window};
use crate::place::on_device;
use halfbyte_cuda::{Any, Beside, Gemm, Gpu, Kind, Launch, Number, T, kernels};
use halfbyte_tensor::{
    DType, Device, Result, Tensor,
    cuda::{self, number},
};

kernels! {
    const SOURCE = "gpu_product", "kernel.cu", over Tensor;
    put as Put {
        src: *const Any, kind: Kind, scale: f32, cols: i32, before: i32, out: *mut T, start: usize, stride: i32, rows: i32, width: i32,
        rows_of: Option<Beside<*mut T>>, right: Option<*const T>, left: i32, apart: i32, lines: i32, columns: i32,
    }
    stack as Stack {
        a: Option<*const Any>, a_kind: Kind, a_end: i32, b: Option<*const Any>, b_kind: Kind, b_end: i32, c: Option<*const Any>,
        c_kind: Kind, c_end: i32, out: *mut T, start: usize, stride: i32, rows: i32, width: i32,
        rows_of: Option<Beside<*mut T>>, right: Option<*const T>, left: i32, apart: i32, lines: i32, columns: i32,
    }
    side_by_side as SideBySide { left: *const T, right: *const T, out: *mut T, rows: i32, k: i32, width: i32 }
    add_bias as AddBias { y: *mut T, bias: *const Any, kind: Kind, cols: i32, n: usize }
    column_sums as ColumnSums { x: *const T, sums: *mut f32, rows: i32, cols: i32 }
}

/// `out (m, n) = alpha * a (m, k) b (k, n) + beta * out`; `a` and `b` have one dtype, `out` that dtype or f32.
///
/// Fails if the GPU does.
pub fn multiply(alpha: f32, a: Operand<'_>, b: Operand<'_>, beta: f32, out: &mut Tensor) -> Result<()> {
    multiply_into(alpha, a, b, beta, Window::whole(out))
}

/// [`multiply`] with a part of a tensor as the result.
///
/// Fails if the GPU does.
pub fn multiply_into(alpha: f32, a: Operand<'_>, b: Operand<'_>, beta: f32, out: Window<'_>) -> Result<()> {
    run((alpha, a, b), (beta, None), out)
}

/// `onto + a b`, rounded once, in the dtype of `onto`.
///
/// Fails if the GPU does.
pub(crate) fn product_onto(a: Operand<'_>, b: Operand<'_>, onto: &Tensor) -> Result<Tensor> {
    let mut out = onto.scratch_like(&[a.dims().0, b.dims().1], onto.dtype());
    assert_eq!((onto.rows(), onto.cols()), (out.rows(), out.cols()), "a product is added to as many elements");
    run((1.0, a, b), (1.0, Some(onto)), Window::whole(&mut out))?;
    Ok(out)
}

/// `alpha a b + beta held`, where what is held lies in the result's place unless it is told.
fn run(
    (alpha, a, b): (f32, Operand<'_>, Operand<'_>),
    (beta, onto): (f32, Option<&Tensor>),
    mut out: Window<'_>,
) -> Result<()> {
    let ((m, k), (inner, n)) = (a.dims(), b.dims());
    assert_eq!((k, (m, n)), (inner, out.dims()), "the operands of a product fit");
    assert_eq!(a.tensor.dtype(), b.tensor.dtype(), "both operands of a product have one dtype");
    if m * n == 0 {
        return Ok(());
    }
    let output = out.tensor().dtype();
    on_device(a.tensor, |gpu| {
        let gemm = Gemm {
            m,
            n,
            k,
            a: a.matrix(),
            b: b.matrix(),
            input: number(a.tensor.dtype()),
            c: out.address(),
            c_stride: out.stride(),
            output: number(output),
            alpha,
            beta,
            onto: onto.map(cuda::ptr),
        };
        // SAFETY: operands and result are parts of live tensors.
        Ok(unsafe { gpu.gemm(&gemm) }?)
    })
}

/// `alpha * a b` in `dtype`, which is that of the operands or f32.
///
/// Fails if the GPU does.
pub fn product(alpha: f32, a: Operand<'_>, b: Operand<'_>, dtype: DType) -> Result<Tensor> {
    let mut out = a.tensor.scratch_like(&[a.dims().0, b.dims().1], dtype);
    multiply(alpha, a, b, 0.0, &mut out)?;
    Ok(out)
}

/// Writes `scale * from` (any floating-point dtype) into a window of as many rows, from the window's column `before` on, and zeros
/// into its other columns.
///
/// Fails if the GPU does.
pub fn put(scale: f32, from: &Tensor, before: usize, into: Window<'_>) -> Result<()> {
    put_with(scale, from, before, into, None)
}

/// What goes into the room beside the rows of a tensor, of the same dtype and as many rows; what that holds stays as it is. It takes no
/// launch of its own.
#[derive(Clone, Copy)]
pub(crate) struct Aside<'a> {
    rows_of: &'a Tensor,
    right: &'a Tensor,
}

impl<'a> Aside<'a> {
    /// # Panics
    /// If there is less room.
    pub(crate) fn new(rows_of: &'a Tensor, right: &'a Tensor) -> Aside<'a> {
        let fits = rows_of.rows() == right.rows() && right.cols() <= rows_of.room();
        assert!(fits, "what is put beside rows fits there");
        Aside { rows_of, right }
    }
}

/// The arguments that say where something goes aside, and what that moves: rows, right, left, apart, lines, columns.
type AsideArgs<'a> = (Option<&'a Tensor>, Option<&'a Tensor>, [usize; 4], usize);

fn aside_args(aside: Option<Aside<'_>>) -> AsideArgs<'_> {
    let Some(Aside { rows_of, right }) = aside.filter(|it| !it.right.is_empty()) else {
        return (None, None, [0; 4], 0);
    };
    let places = [rows_of.cols(), rows_of.stride(), right.rows(), right.cols()];
    (Some(rows_of), Some(right), places, 2 * right.bytes())
}

/// [`put`], and something beside other rows.
pub(crate) fn put_with(
    scale: f32,
    from: &Tensor,
    before: usize,
    mut into: Window<'_>,
    aside: Option<Aside<'_>>,
) -> Result<()> {
    let ((rows, width), cols) = (into.dims(), from.cols());
    assert!(from.rows() == rows && before + cols <= width, "what is put into a window fits it");
    let (rows_of, right, [left, apart, lines, columns], moved) = aside_args(aside);
    if rows * width + lines * columns == 0 {
        return Ok(());
    }
    let dtype = into.tensor().dtype();
    on_device(from, |gpu| {
        let (kind, start, stride, out) = (number(from.dtype()), into.start(), into.stride(), into.tensor());
        gpu.next_moves(from.bytes() + rows * width * dtype.size() + moved);
        let kernel = Put {
            src: from,
            kind,
            scale,
            cols,
            before,
            out,
            start,
            stride,
            rows,
            width,
            rows_of,
            right,
            left,
            apart,
            lines,
            columns,
        };
        // SAFETY: the window lies in its tensor, and `from` has as many rows of `cols` elements; the room has so many columns.
        unsafe { kernel.launch(gpu, number(dtype), blocks(rows.max(lines), width.max(columns))) }
    })
}

/// `[left | right]`, of one dtype and as many rows.
pub(crate) fn side_by_side(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let (rows, k, width) = (left.rows(), left.cols(), right.cols());
    assert_eq!(rows, right.rows(), "what lies side by side has as many rows");
    let mut out = left.scratch_like(&[rows, k + width], left.dtype());
    if !out.is_empty() {
        on_device(left, |gpu| {
            let kernel = SideBySide { left, right, out: &mut out, rows, k, width };
            // SAFETY: a row of each lies in a row of the result.
            unsafe { kernel.launch(gpu, number(left.dtype()), packed_rows(rows, k + width, number(left.dtype()))) }
        })?;
    }
    Ok(out)
}

/// So many rows of a matrix as wide as the window that they are put into; zeros where there is none.
pub(crate) type Rows<'a> = (Option<&'a Tensor>, usize);

/// Writes rows below each other into a window, zeros into the rows that are left of it, and something beside other rows.
pub(crate) fn stack(pieces: &[Rows<'_>], mut into: Window<'_>, mut aside: Option<Aside<'_>>) -> Result<()> {
    let (rows, mut next) = (into.dims().0, 0);
    let mut chunks = pieces.chunks(3).peekable();
    while let Some(some) = chunks.next() {
        let own: usize = some.iter().map(|it| it.1).sum();
        let count = if chunks.peek().is_some() { own } else { rows - next };
        stack_three(some, into.reborrow().rows(next, count), aside.take())?;
        next += count;
    }
    Ok(())
}

/// As many as one launch takes.
fn stack_three(pieces: &[Rows<'_>], mut into: Window<'_>, aside: Option<Aside<'_>>) -> Result<()> {
    let (rows, width) = into.dims();
    let mut end = 0;
    let [(a, a_kind, a_end), (b, b_kind, b_end), (c, c_kind, c_end)] = std::array::from_fn(|i| {
        let (piece, rows) = pieces.get(i).copied().unwrap_or_default();
        assert!(piece.is_none_or(|it| (it.rows(), it.cols()) == (rows, width)), "what is stacked fits the window");
        end += rows;
        (piece, number(piece.map_or(DType::F32, Tensor::dtype)), end)
    });
    assert!(end <= rows, "{end} rows are stacked in a window of {rows}");
    let (start, stride, out) = (into.start(), into.stride(), into.tensor());
    let dtype = out.dtype();
    let Device::Cuda(gpu) = out.device() else { unreachable!("a step of the GPU's half") };
    let (rows_of, right, [left, apart, lines, columns], moved) = aside_args(aside);
    if rows * width + lines * columns == 0 {
        return Ok(());
    }
    let given: usize = pieces.iter().filter_map(|it| it.0).map(Tensor::bytes).sum();
    gpu.next_moves(given + rows * width * dtype.size() + moved);
    let kernel = Stack {
        a,
        a_kind,
        a_end,
        b,
        b_kind,
        b_end,
        c,
        c_kind,
        c_end,
        out,
        start,
        stride,
        rows,
        width,
        rows_of,
        right,
        left,
        apart,
        lines,
        columns,
    };
    // SAFETY: the window lies in its tensor, each matrix has the rows up to its end, and the room has so many columns.
    unsafe { kernel.launch(&gpu, number(dtype), blocks(rows.max(lines), width.max(columns))) }
}

/// A launch over rows of so many elements, some a thread; it may fall short in either direction, so kernels stride.
pub fn sheet(rows: usize, threads: usize) -> Launch {
    let block = threads.next_multiple_of(32).clamp(32, 256);
    let grid = (threads.div_ceil(block).clamp(1, 1 << 16) as u32, rows.clamp(1, u16::MAX.into()) as u32, 1);
    Launch { grid, block: (block as u32, 1, 1), shared: 0 }
}

/// A launch over rows of so many elements, a block over several rows where they are narrow.
fn blocks(rows: usize, width: usize) -> Launch {
    const THREADS: usize = 256;
    let across = width.next_power_of_two().clamp(8, THREADS);
    let down = THREADS / across;
    let grid =
        (width.div_ceil(across).clamp(1, 1 << 16) as u32, rows.div_ceil(down).clamp(1, u16::MAX.into()) as u32, 1);
    Launch { grid, block: (across as u32, down as u32, 1), shared: 0 }
}

/// A block a row of so many elements, with a thread for each pack of them, or for every second or third where there are more than a
/// block has threads.
fn packed_rows(rows: usize, width: usize, element: Number) -> Launch {
    const MOST: usize = 1024;
    let packs = width.div_ceil(16 / element.size());
    let threads = packs.div_ceil(packs.div_ceil(MOST).max(1)).next_multiple_of(32).clamp(32, MOST);
    Launch { grid: (1, rows.clamp(1, u16::MAX.into()) as u32, 1), block: (threads as u32, 1, 1), shared: 0 }
}

/// Adds a bias to every row of `y`.
pub(crate) fn add_bias(y: &mut Tensor, bias: Option<&Tensor>) -> Result<()> {
    let (n, cols, dtype) = (y.len(), y.cols(), y.dtype());
    let Some(bias) = bias.filter(|_| n > 0) else { return Ok(()) };
    on_device(bias, |gpu| {
        let kernel = AddBias { y, bias, kind: number(bias.dtype()), cols, n };
        // SAFETY: a bias a column.
        unsafe { kernel.launch(gpu, number(dtype), Launch::elements(n)) }
    })
}

/// The sums of the columns of `x` into `sums`, f32.
pub(crate) fn column_sums(gpu: &Gpu, x: &Tensor, sums: &mut Tensor) -> Result<()> {
    let (rows, cols) = (x.rows(), x.cols());
    // SAFETY: a thread a column, each over all rows.
    unsafe { ColumnSums { x, sums, rows, cols }.launch(gpu, number(x.dtype()), Launch::elements(cols)) }
}
