use super::Saved;
use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda::Call};
use std::sync::Arc;

const SOURCE: Source = Source { name: "rms_norm", text: include_str!("kernel.cu") };
/// Threads of a row.
pub(crate) const THREADS: u32 = 256;

pub(super) fn forward(gpu: &Arc<Gpu>, (x, w, eps): (&Tensor, &Tensor, f32), [y, rstd]: &mut [Tensor; 2]) -> Result<()> {
    let (rows, c) = (x.len() / w.len(), w.len());
    if rows == 0 {
        return Ok(());
    }
    let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).read(w).write(y).write(rstd).int(c).float(eps);
    // SAFETY: a block a row of `c` channels, a weight a channel, a number a row.
    unsafe { call.run("forward", Launch::rows(rows, THREADS)) }
}

/// The gradients of `x` and, if wanted, of `w`.
pub(super) fn backward(
    gpu: &Arc<Gpu>,
    saved: &Saved<'_>,
    dy: &Tensor,
    (dx, dw): (&mut Tensor, Option<&mut Tensor>),
) -> Result<()> {
    let Saved { x, w, rstd } = *saved;
    let (rows, c) = (x.len() / w.len(), w.len());
    if rows > 0 {
        let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).read(w).read(rstd).read(dy).write(dx).int(c);
        // SAFETY: as in the forward pass; `dy` has the shape of `x`.
        unsafe { call.run("backward", Launch::rows(rows, THREADS)) }?;
    }
    if let Some(dw) = dw {
        let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).read(rstd).read(dy).write(dw).int(rows).int(c);
        // SAFETY: a thread a channel, each over all rows.
        unsafe { call.run("weight_gradient", Launch::elements(c)) }?;
    }
    Ok(())
}
