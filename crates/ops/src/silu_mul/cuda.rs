use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda::Call};
use std::sync::Arc;

const SOURCE: Source = Source { name: "silu_mul", text: include_str!("kernel.cu") };

pub(super) fn forward(gpu: &Arc<Gpu>, [gate, up]: [&Tensor; 2], y: &mut Tensor) -> Result<()> {
    let call = Call::new(gpu, &SOURCE, gate.dtype()).read(gate).read(up).write(y).long(gate.len() as u64);
    // SAFETY: all three have as many elements as the kernel is told.
    unsafe { call.run("forward", Launch::elements(gate.len())) }
}

/// The gradients of gate and up.
pub(super) fn backward(gpu: &Arc<Gpu>, [dy, gate, up]: [&Tensor; 3], [dg, du]: &mut [Tensor; 2]) -> Result<()> {
    let call = Call::new(gpu, &SOURCE, gate.dtype()).read(dy).read(gate).read(up).write(dg).write(du);
    // SAFETY: all five have as many elements as the kernel is told.
    unsafe { call.long(gate.len() as u64).run("backward", Launch::elements(gate.len())) }
}
