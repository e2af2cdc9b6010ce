use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda::Call};
use std::sync::Arc;

const SOURCE: Source = Source { name: "add", text: include_str!("kernel.cu") };

pub(super) fn add_scaled(gpu: &Arc<Gpu>, [a, b]: [&Tensor; 2], scale: f32, y: &mut Tensor) -> Result<()> {
    let call = Call::new(gpu, &SOURCE, a.dtype()).read(a).read(b).float(scale).write(y).long(a.len() as u64);
    // SAFETY: all three have as many elements as the kernel is told.
    unsafe { call.run("add_scaled", Launch::elements(a.len())) }
}

pub(super) fn scaled(gpu: &Arc<Gpu>, x: &Tensor, factor: f32, y: &mut Tensor) -> Result<()> {
    let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).float(factor).write(y).long(x.len() as u64);
    // SAFETY: both have as many elements as the kernel is told.
    unsafe { call.run("scale", Launch::elements(x.len())) }
}
