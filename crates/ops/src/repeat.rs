//! Passes that come again, which a GPU starts as a whole.

use crate::frozen::ahead;
use halfbyte_tensor::{Device, Error, Tensor};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Ends what goes on beside a device's work, and frees its memory: before that of a pass's inputs is taken, so that it is the same each
/// time.
///
/// # Errors
/// If a GPU reports one.
pub fn settle(device: &Device) -> Result<(), Error> {
    if let Device::Cuda(gpu) = device { ahead::settle(gpu) } else { Ok(()) }
}

/// Runs a pass over a device, which may come again: [`Gpu::repeated`](halfbyte_cuda::Gpu::repeated), which says what is asked of a pass. On a
/// CPU it is run as it is. Passes of one `kind` should ask for the same. What goes on beside is to have been [settled](settle).
///
/// # Errors
/// What the pass reports, or a GPU.
pub fn repeated<E: From<Error>>(
    device: &Device,
    kind: impl Hash,
    pass: &mut dyn FnMut() -> Result<Vec<Tensor>, E>,
) -> Result<Vec<Tensor>, E> {
    let Device::Cuda(gpu) = device else { return pass() };
    let mut hasher = DefaultHasher::new();
    kind.hash(&mut hasher);
    let kind = hasher.finish();
    gpu.repeated(kind, &|it: &Vec<Tensor>| Ok(digest(it)?), &mut || ahead::within(gpu, kind, pass))
}

/// A number for what a pass gave: for as much of it as is soon looked through, from the last tensor on.
fn digest(all: &[Tensor]) -> Result<u64, Error> {
    const BYTES: usize = 64 << 20;
    let mut hasher = DefaultHasher::new();
    let mut room = BYTES;
    for it in all.iter().rev().take_while(|it| room.checked_sub(it.bytes()).map(|rest| room = rest).is_some()) {
        hasher.write(&it.to_device(&Device::Cpu)?.le_bytes());
    }
    Ok(hasher.finish())
}
