use super::Gate;
use crate::gpu_product::sheet;
use halfbyte_cuda::{Gpu, InRows, Launch, T, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "gated", "kernel.cu", over Tensor;
    forward as Forward { gate: *const T, up: *const T, gelu: i32, alpha: f32, limit: f32, y: *mut T, n: usize }
    forward_in_rows as ForwardInRows {
        gate: *const T, up: *const T, gelu: i32, alpha: f32, limit: f32, y: InRows<*mut T>, rows: i32, cols: i32, stride: i32,
    }
    backward as Backward { dy: *const T, gate: *const T, up: *const T, gelu: i32, alpha: f32, limit: f32, dg: *mut T, du: *mut T, n: usize }
    backward_in_rows as BackwardInRows {
        dy: *const T, gate: *const T, up: *const T, gelu: i32, alpha: f32, limit: f32, dg: InRows<*mut T>, dg_stride: i32,
        du: InRows<*mut T>, du_stride: i32, rows: i32, cols: i32,
    }
    backward_over as BackwardOver {
        gate: *const T, up: Option<*const T>, gelu: i32, alpha: f32, limit: f32, dg: InRows<*mut T>, dg_stride: i32,
        du: InRows<*mut T>, du_stride: i32, rows: i32, cols: i32,
    }
}

/// What the kernels know of a gate; a limit of 0 is none.
fn numbers(f: Gate) -> (usize, f32, f32) {
    match f {
        Gate::Silu => (0, 1.0, 0.0),
        Gate::GeluTanh => (1, 1.0, 0.0),
        Gate::Clamped { alpha, limit } => (0, alpha, limit),
    }
}

pub(super) fn forward(gpu: &Arc<Gpu>, [gate, up]: [&Tensor; 2], f: Gate, y: &mut Tensor) -> Result<()> {
    let (n, (gelu, alpha, limit)) = (gate.len(), numbers(f));
    if y.room() > 0 {
        let (element, rows, cols, stride) = (number(gate.dtype()), y.rows(), y.cols(), y.stride());
        let kernel = ForwardInRows { gate, up, gelu, alpha, limit, y, rows, cols, stride };
        // SAFETY: rows of so many elements, of whole packs, and those of `y` so far apart.
        return unsafe { kernel.launch(gpu, element, sheet(rows, cols.div_ceil(16 / element.size()))) };
    }
    // SAFETY: all three have as many elements as the kernel is told.
    unsafe {
        Forward { gate, up, gelu, alpha, limit, y, n }.launch(
            gpu,
            number(gate.dtype()),
            Launch::packs(n, number(gate.dtype())),
        )
    }
}

/// The gradients of gate and up.
pub(super) fn backward(
    gpu: &Arc<Gpu>,
    [dy, gate, up]: [&Tensor; 3],
    f: Gate,
    [dg, du]: &mut [Tensor; 2],
) -> Result<()> {
    let (n, (gelu, alpha, limit)) = (gate.len(), numbers(f));
    if !(dg.is_dense() && du.is_dense()) {
        let (element, rows, cols) = (number(gate.dtype()), dy.rows(), dy.cols());
        let (dg_stride, du_stride) = (dg.stride(), du.stride());
        let kernel = BackwardInRows { dy, gate, up, gelu, alpha, limit, dg, dg_stride, du, du_stride, rows, cols };
        // SAFETY: rows of so many elements, of whole packs, and those of the gradients so far apart.
        return unsafe { kernel.launch(gpu, element, sheet(rows, cols.div_ceil(16 / element.size()))) };
    }
    // SAFETY: all five have as many elements as the kernel is told.
    unsafe {
        Backward { dy, gate, up, gelu, alpha, limit, dg, du, n }.launch(
            gpu,
            number(gate.dtype()),
            Launch::packs(n, number(gate.dtype())),
        )
    }
}

/// The gradients of gate and up: the one over that of the product, the other over `up`, where that is not given by itself. Rows are whole packs.
pub(super) fn backward_over(
    gpu: &Arc<Gpu>,
    (gate, up): (&Tensor, Option<&Tensor>),
    f: Gate,
    [dg, du]: [&mut Tensor; 2],
) -> Result<()> {
    let ((gelu, alpha, limit), element) = (numbers(f), number(gate.dtype()));
    let (rows, cols, dg_stride, du_stride) = (gate.rows(), gate.cols(), dg.stride(), du.stride());
    gpu.next_moves(5 * gate.bytes());
    let kernel = BackwardOver { gate, up, gelu, alpha, limit, dg, dg_stride, du, du_stride, rows, cols };
    // SAFETY: rows of so many elements, of whole packs, and those of the gradients so far apart; a thread reads what it writes before it
    // does, and nothing that another one writes.
    unsafe { kernel.launch(gpu, element, sheet(rows, cols.div_ceil(16 / element.size()))) }
}
