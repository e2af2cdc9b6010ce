use crate::ids::Ids;
use halfbyte_cuda::{Any, Gpu, Kind, Launch, T, kernels};
use halfbyte_tensor::{Result, Tensor, cuda::number};
use std::sync::Arc;

kernels! {
    const SOURCE = "embedding", "kernel.cu", over Tensor;
    gather as Gather { table: *const Any, kind: Kind, ids: *const u32, out: *mut T, channels: i32, n: usize }
    scatter_add as ScatterAdd {
        dy: *const T, order: *const u32, starts: *const u32, ids: *const u32, table: *mut f32, channels: i32,
    }
}

pub(super) fn gather(gpu: &Arc<Gpu>, table: &Tensor, ids: &Ids, out: &mut Tensor) -> Result<()> {
    let n = out.len();
    if n == 0 {
        return Ok(());
    }
    let (element, kind, channels) = (number(out.dtype()), number(table.dtype()), table.cols());
    let ids = ids.on(gpu)?;
    // A row of the table for each id.
    gpu.next_moves(n * (table.dtype().size() + out.dtype().size()) + ids.bytes());
    let kernel = Gather { table, kind, ids, out, channels, n };
    // SAFETY: all ids lie in the table, which the caller checked; `out` has a row an id.
    unsafe { kernel.launch(gpu, element, Launch::elements(n)) }
}

/// The gradient of the table, which is zero before: every row the sum over its tokens, in their order.
pub(super) fn scatter_add(gpu: &Arc<Gpu>, dy: &Tensor, ids: &Ids, table: &mut Tensor) -> Result<()> {
    if dy.is_empty() {
        return Ok(());
    }
    let (channels, groups) = (dy.cols(), ids.groups_on(gpu)?);
    let kernel = ScatterAdd { dy, order: &groups.order, starts: &groups.starts, ids: &groups.ids, table, channels };
    // SAFETY: a block a row that occurs; tokens and rows lie in their tensors.
    unsafe { kernel.launch(gpu, number(dy.dtype()), Launch::rows(groups.ids.len(), 256)) }
}
