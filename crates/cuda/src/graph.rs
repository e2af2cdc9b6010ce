//! A sequence of calls that the driver keeps, to be made again by one.

use cudarc::driver::sys;

use crate::error::Error;
use crate::gpu::{Gpu, call};

/// What was asked of a device's streams from one moment to another. The memory that it reads and writes is its maker's to vouch for.
pub(crate) struct Graph {
    raw: sys::CUgraphExec,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Graph {}

impl Graph {
    /// From here on what is asked of the compute stream, and of streams that wait for it, is kept and not done.
    pub(crate) fn begin(gpu: &Gpu) -> Result<(), Error> {
        // The other threads of the process may do what they like meanwhile; what this one does is looked at word by word.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive.
        call("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(gpu.compute, mode) }.result())
    }

    /// Ends that. Also after an error meanwhile, so that the streams are free again.
    pub(crate) fn end(gpu: &Gpu) -> Result<Graph, Error> {
        let mut kept = std::ptr::null_mut();
        // SAFETY: the stream is alive, and there is room for the handle.
        call("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(gpu.compute, &raw mut kept) }.result())?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the graph is the driver's own, and there is room for the handle.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut raw, kept, 0) }.result();
        // SAFETY: as above; what was made of it does not need it.
        let _ = unsafe { sys::cuGraphDestroy(kept) };
        call("cuGraphInstantiateWithFlags", made)?;
        Ok(Graph { raw })
    }

    /// Makes the calls again, behind everything that was asked of the compute stream.
    pub(crate) fn launch(&self, gpu: &Gpu) -> Result<(), Error> {
        // SAFETY: graph and stream are alive.
        call("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.raw, gpu.compute) }.result())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by the driver, and destroyed once; one that is under way ends first.
        let _ = unsafe { sys::cuGraphExecDestroy(self.raw) };
    }
}
