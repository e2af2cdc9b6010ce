use halfbyte_cuda::{Launch, Source};
use halfbyte_tensor::{DType, Result, Tensor, cuda::Call};

const SOURCE: Source = Source { name: "rms_norm", text: include_str!("kernel.cu") };
/// Threads of a row.
pub(crate) const THREADS: u32 = 256;

pub(super) fn forward(x: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let (rows, c) = (x.rows(), x.cols());
    let (mut y, mut rstd) = (x.scratch_like(x.shape(), x.dtype()), x.scratch_like(&[rows], DType::F32));
    if let Some(gpu) = x.gpu().filter(|_| rows > 0) {
        let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).read(w).write(&mut y).write(&mut rstd).int(c).float(eps);
        // SAFETY: a block a row of `c` channels, a weight a channel, a number a row.
        unsafe { call.run("forward", Launch::rows(rows, THREADS)) }?;
    }
    Ok((y, rstd))
}

/// The gradients of `x` and, if wanted, of `w`.
pub(super) fn backward(
    x: &Tensor,
    w: &Tensor,
    rstd: &Tensor,
    dy: &Tensor,
    train: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (rows, c) = (x.rows(), x.cols());
    let mut dx = x.scratch_like(x.shape(), x.dtype());
    let mut dw = train.then(|| x.scratch_like(w.shape(), DType::F32));
    let Some(gpu) = x.gpu().filter(|_| rows > 0) else { return Ok((dx, dw)) };
    let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).read(w).read(rstd).read(dy).write(&mut dx).int(c);
    // SAFETY: as in the forward pass; `dy` has the shape of `x`.
    unsafe { call.run("backward", Launch::rows(rows, THREADS)) }?;
    if let Some(dw) = &mut dw {
        let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).read(rstd).read(dy).write(dw).int(rows).int(c);
        // SAFETY: a thread a channel, each over all rows.
        unsafe { call.run("weight_gradient", Launch::elements(c)) }?;
    }
    Ok((dx, dw))
}
