//! Passes that come again, which a GPU starts as a whole.

use crate::frozen::ahead;
use halfbyte_tensor::{Device, Error};

/// Runs a pass over a device, which may come again: [`Gpu::repeated`](halfbyte_cuda::Gpu::repeated), which says what `key` and `digest` are,
/// and what is asked of a pass. On a CPU it is run as it is.
///
/// # Errors
/// What the pass and `digest` report.
pub fn repeated<R, E: From<Error>>(
    device: &Device,
    key: u64,
    digest: &dyn Fn(&R) -> Result<u64, E>,
    pass: &mut dyn FnMut() -> Result<R, E>,
) -> Result<R, E> {
    let Device::Cuda(gpu) = device else { return pass() };
    // What is decoded ahead is the pass's own: each begins and ends without.
    ahead::settle(gpu)?;
    gpu.repeated(key, digest, &mut || {
        let done = pass().and_then(|it| Ok(ahead::settle(gpu).map(|()| it)?));
        done.inspect_err(|_| ahead::forget(gpu))
    })
}
