use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda::Call};
use std::sync::Arc;

const SOURCE: Source = Source { name: "gelu_new", text: include_str!("kernel.cu") };

pub(super) fn forward(gpu: &Arc<Gpu>, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).write(y).long(x.len() as u64);
    // SAFETY: both have as many elements as the kernel is told.
    unsafe { call.run("forward", Launch::elements(x.len())) }
}

pub(super) fn backward(gpu: &Arc<Gpu>, [dy, x]: [&Tensor; 2], dx: &mut Tensor) -> Result<()> {
    let call = Call::new(gpu, &SOURCE, x.dtype()).read(dy).read(x).write(dx).long(x.len() as u64);
    // SAFETY: all three have as many elements as the kernel is told.
    unsafe { call.run("backward", Launch::elements(x.len())) }
}
