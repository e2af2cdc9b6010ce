use super::Dropout;
use halfbyte_cuda::{Gpu, Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda::Call};
use std::sync::Arc;

const SOURCE: Source = Source { name: "dropout", text: include_str!("kernel.cu") };

pub(super) fn apply(gpu: &Arc<Gpu>, x: &Tensor, d: Dropout, y: &mut Tensor) -> Result<()> {
    let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).write(y).float(d.p).long(d.seed).long(d.site);
    // SAFETY: both have as many elements as the kernel is told.
    unsafe { call.long(x.len() as u64).run("dropout", Launch::elements(x.len())) }
}
