use super::RopeTable;
use halfbyte_cuda::{Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda};

const SOURCE: Source = Source { name: "rope", text: include_str!("kernel.cu") };

pub(super) fn rotate(x: &Tensor, table: &RopeTable, positions: &[u32], direction: f32) -> Result<Tensor> {
    let mut y = x.scratch_like(x.shape(), x.dtype());
    let Some(gpu) = x.gpu().filter(|_| !x.is_empty()) else { return Ok(y) };
    let (on_gpu, places) = (table.on(gpu)?, cuda::upload_u32(gpu, positions)?);
    let (heads, pairs) = (x.cols() / (2 * table.half), x.len() / 2);
    let call = cuda::Call::new(gpu, &SOURCE, x.dtype()).read(x).read(&on_gpu).read(&places).write(&mut y);
    let call = call.int(heads).int(table.half).int(table.length).float(direction).long(pairs as u64);
    // SAFETY: rows of `heads` heads of `2 half` channels, a position a row, and all positions lie in the table.
    unsafe { call.run("rotate", Launch::elements(pairs)) }?;
    Ok(y)
}
