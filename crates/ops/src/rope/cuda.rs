use super::RopeTable;
use crate::layout::Layout;
use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda};
use std::sync::Arc;

const SOURCE: Source = Source { name: "rope", text: include_str!("kernel.cu") };

pub(super) fn rotate(
    gpu: &Arc<Gpu>,
    (x, y): (&Tensor, &mut Tensor),
    table: &RopeTable,
    layout: &Layout,
    direction: f32,
) -> Result<()> {
    if x.is_empty() {
        return Ok(());
    }
    let (on_gpu, positions) = (table.on(gpu)?, layout.positions_on(gpu)?);
    let (heads, pairs) = (x.cols() / (2 * table.half), x.len() / 2);
    let call = cuda::Call::new(gpu, &SOURCE, x.dtype()).read(x).read(&on_gpu).read(positions).write(y);
    let call = call.int(heads).int(table.half).int(table.length).float(direction).long(pairs as u64);
    // SAFETY: rows of `heads` heads of `2 half` channels, a position a row, and all positions lie in the table.
    unsafe { call.run("rotate", Launch::elements(pairs)) }
}
