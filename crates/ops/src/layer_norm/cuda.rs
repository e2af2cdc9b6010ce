use super::Saved;
use crate::rms_norm::cuda::THREADS;
use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda::Call};
use std::sync::Arc;

const SOURCE: Source = Source { name: "layer_norm", text: include_str!("kernel.cu") };

pub(super) fn forward(gpu: &Arc<Gpu>, [x, w, b]: [&Tensor; 3], eps: f32, [y, stats]: &mut [Tensor; 2]) -> Result<()> {
    let (rows, c) = (x.rows(), x.cols());
    if rows == 0 {
        return Ok(());
    }
    let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).read(w).read(b).write(y).write(stats);
    // SAFETY: a block a row of `c` channels, a weight and a bias a channel, two numbers a row.
    unsafe { call.int(c).float(eps).run("forward", Launch::rows(rows, THREADS)) }
}

/// The gradients of `x` and, if wanted, of weight and bias.
pub(super) fn backward(
    gpu: &Arc<Gpu>,
    saved: &Saved<'_>,
    dy: &Tensor,
    (dx, affine): (&mut Tensor, Option<&mut [Tensor; 2]>),
) -> Result<()> {
    let Saved { x, w, stats } = *saved;
    let (rows, c) = (x.rows(), x.cols());
    if rows > 0 {
        let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).read(w).read(stats).read(dy).write(dx).int(c);
        // SAFETY: as in the forward pass; `dy` has the shape of `x`.
        unsafe { call.run("backward", Launch::rows(rows, THREADS)) }?;
    }
    if let Some([dw, db]) = affine {
        let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).read(stats).read(dy).write(dw).write(db);
        // SAFETY: a thread a channel, each over all rows.
        unsafe { call.int(rows).int(c).run("affine_gradients", Launch::elements(c)) }?;
    }
    Ok(())
}
