use halfbyte_cuda::{Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda::Call};

const SOURCE: Source = Source { name: "add", text: include_str!("kernel.cu") };

pub(super) fn add_scaled(a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    let mut y = a.scratch_like(a.shape(), a.dtype());
    if let Some(gpu) = a.gpu() {
        let call = Call::new(gpu, &SOURCE, a.dtype()).read(a).read(b).float(scale).write(&mut y).long(a.len() as u64);
        // SAFETY: all three have as many elements as the kernel is told.
        unsafe { call.run("add_scaled", Launch::elements(a.len())) }?;
    }
    Ok(y)
}

pub(crate) fn scaled(x: &Tensor, factor: f32) -> Result<Tensor> {
    let mut y = x.scratch_like(x.shape(), x.dtype());
    if let Some(gpu) = x.gpu() {
        let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).float(factor).write(&mut y).long(x.len() as u64);
        // SAFETY: both have as many elements as the kernel is told.
        unsafe { call.run("scale", Launch::elements(x.len())) }?;
    }
    Ok(y)
}
