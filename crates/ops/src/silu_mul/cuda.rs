use halfbyte_cuda::{Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda::Call};

const SOURCE: Source = Source { name: "silu_mul", text: include_str!("kernel.cu") };

pub(super) fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let mut y = gate.scratch_like(gate.shape(), gate.dtype());
    if let Some(gpu) = gate.gpu() {
        let call = Call::new(gpu, &SOURCE, gate.dtype()).read(gate).read(up).write(&mut y).long(gate.len() as u64);
        // SAFETY: all three have as many elements as the kernel is told.
        unsafe { call.run("forward", Launch::elements(gate.len())) }?;
    }
    Ok(y)
}

/// The gradients of gate and up.
pub(super) fn backward(dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)> {
    let mut dg = gate.scratch_like(gate.shape(), gate.dtype());
    let mut du = gate.scratch_like(gate.shape(), gate.dtype());
    if let Some(gpu) = gate.gpu() {
        let call = Call::new(gpu, &SOURCE, gate.dtype()).read(dy).read(gate).read(up).write(&mut dg).write(&mut du);
        // SAFETY: all five have as many elements as the kernel is told.
        unsafe { call.long(gate.len() as u64).run("backward", Launch::elements(gate.len())) }?;
    }
    Ok((dg, du))
}
