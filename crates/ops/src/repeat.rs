//! Passes that come again, which a GPU starts as a whole.

use crate::frozen::ahead;
use halfbyte_tensor::{Device, Error};

/// Ends what goes on beside a device's work, and frees its memory: before that of a pass's inputs is taken, so that it is the same each
/// time.
///
/// # Errors
/// If a GPU reports one.
pub fn settle(device: &Device) -> Result<(), Error> {
    if let Device::Cuda(gpu) = device { ahead::settle(gpu) } else { Ok(()) }
}

/// Runs a pass over a device, which may come again: [`Gpu::repeated`](halfbyte_cuda::Gpu::repeated), which says what `key` and `digest` are,
/// and what is asked of a pass. On a CPU it is run as it is. What goes on beside is to have been [settled](settle).
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
    gpu.repeated(key, digest, &mut || ahead::within(gpu, key, pass))
}
