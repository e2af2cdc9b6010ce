use halfbyte_cuda::{Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda::Call};

const SOURCE: Source = Source { name: "gelu_new", text: include_str!("kernel.cu") };

pub(super) fn forward(x: &Tensor) -> Result<Tensor> {
    let mut y = x.scratch_like(x.shape(), x.dtype());
    if let Some(gpu) = x.gpu() {
        let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).write(&mut y).long(x.len() as u64);
        // SAFETY: both have as many elements as the kernel is told.
        unsafe { call.run("forward", Launch::elements(x.len())) }?;
    }
    Ok(y)
}

pub(super) fn backward(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut dx = x.scratch_like(x.shape(), x.dtype());
    if let Some(gpu) = x.gpu() {
        let call = Call::new(gpu, &SOURCE, x.dtype()).read(dy).read(x).write(&mut dx).long(x.len() as u64);
        // SAFETY: all three have as many elements as the kernel is told.
        unsafe { call.run("backward", Launch::elements(x.len())) }?;
    }
    Ok(dx)
}
