use super::Dropout;
use halfbyte_cuda::{Launch, Source};
use halfbyte_tensor::{Result, Tensor, cuda::Call};

const SOURCE: Source = Source { name: "dropout", text: include_str!("kernel.cu") };

pub(super) fn apply(x: &Tensor, d: Dropout) -> Result<Tensor> {
    let mut y = x.scratch_like(x.shape(), x.dtype());
    if let Some(gpu) = x.gpu() {
        let call = Call::new(gpu, &SOURCE, x.dtype()).read(x).write(&mut y).float(d.p).long(d.seed).long(d.site);
        // SAFETY: both have as many elements as the kernel is told.
        unsafe { call.long(x.len() as u64).run("dropout", Launch::elements(x.len())) }?;
    }
    Ok(y)
}
