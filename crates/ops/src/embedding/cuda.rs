use crate::ids::Ids;
use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda};
use std::sync::Arc;

const SOURCE: Source = Source { name: "embedding", text: include_str!("kernel.cu") };

pub(super) fn gather(gpu: &Arc<Gpu>, table: &Tensor, ids: &Ids, out: &mut Tensor) -> Result<()> {
    let n = out.len();
    if n == 0 {
        return Ok(());
    }
    let call = cuda::Call::new(gpu, &SOURCE, out.dtype()).read(table).kind(table.dtype()).read(ids.on(gpu)?).write(out);
    // SAFETY: all ids lie in the table, which the caller checked; `out` has a row an id.
    unsafe { call.int(table.cols()).long(n as u64).run("gather", Launch::elements(n)) }
}

/// The gradient of the table, which is zero before: every row the sum over its tokens, in their order.
pub(super) fn scatter_add(gpu: &Arc<Gpu>, dy: &Tensor, ids: &Ids, table: &mut Tensor) -> Result<()> {
    if dy.is_empty() {
        return Ok(());
    }
    let (channels, groups) = (dy.cols(), ids.groups_on(gpu)?);
    let call = cuda::Call::new(gpu, &SOURCE, dy.dtype()).read(dy).read(&groups.order).read(&groups.starts);
    let call = call.read(&groups.ids).write(table).int(channels);
    // SAFETY: a block a row that occurs; tokens and rows lie in their tensors.
    unsafe { call.run("scatter_add", Launch::rows(groups.ids.len(), 256)) }
}
