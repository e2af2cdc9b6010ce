use crate::rms_norm::cuda::THREADS;
use halfbyte_cuda::{Launch, Source};
use halfbyte_tensor::{DType, Result, Tensor, cuda::Call};

const SOURCE: Source = Source { name: "layer_norm", text: include_str!("kernel.cu") };

pub(super) fn forward(x: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let (rows, c) = (x.rows(), x.cols());
    let (mut y, mut stats) = (x.scratch_like(x.shape(), x.dtype()), x.scratch_like(&[rows, 2], DType::F32));
    if let Some(gpu) = x.gpu().filter(|_| rows > 0) {
        let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).read(w).read(b).write(&mut y).write(&mut stats);
        // SAFETY: a block a row of `c` channels, a weight and a bias a channel, two numbers a row.
        unsafe { call.int(c).float(eps).run("forward", Launch::rows(rows, THREADS)) }?;
    }
    Ok((y, stats))
}

/// The gradients of `x` and, if wanted, of weight and bias.
pub(super) fn backward(
    x: &Tensor,
    w: &Tensor,
    stats: &Tensor,
    dy: &Tensor,
    train: bool,
) -> Result<(Tensor, Option<(Tensor, Tensor)>)> {
    let (rows, c) = (x.rows(), x.cols());
    let mut dx = x.scratch_like(x.shape(), x.dtype());
    let sums = || (x.scratch_like(w.shape(), DType::F32), x.scratch_like(w.shape(), DType::F32));
    let mut affine = train.then(sums);
    let Some(gpu) = x.gpu().filter(|_| rows > 0) else { return Ok((dx, affine)) };
    let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).read(w).read(stats).read(dy).write(&mut dx).int(c);
    // SAFETY: as in the forward pass; `dy` has the shape of `x`.
    unsafe { call.run("backward", Launch::rows(rows, THREADS)) }?;
    if let Some((dw, db)) = &mut affine {
        let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).read(stats).read(dy).write(dw).write(db);
        // SAFETY: a thread a channel, each over all rows.
        unsafe { call.int(rows).int(c).run("affine_gradients", Launch::elements(c)) }?;
    }
    Ok((dx, affine))
}
