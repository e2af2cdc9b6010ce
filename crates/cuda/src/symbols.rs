//! That every function used is there, before any is called: the bindings panic on a missing one.

use cudarc::{cublaslt, driver, nvrtc};

use crate::error::Error;

const DRIVER: [&str; 32] = [
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];
const NVRTC: [&str; 8] = [
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetCUBIN",
    "nvrtcGetCUBINSize",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
    "nvrtcVersion",
];
const CUBLASLT: [&str; 13] = [
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtGetVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

/// # Errors
/// [`Error::MissingSymbol`] for the first function that a library lacks. The libraries must have been found.
pub(crate) fn check() -> Result<(), Error> {
    // SAFETY: the caller found the libraries, so the bindings' handles do not panic; looking a name up calls nothing.
    unsafe {
        has("libcuda.so", &DRIVER, |name| driver::sys::culib().get::<unsafe extern "C" fn()>(name).is_ok())?;
        has("libnvrtc.so", &NVRTC, |name| nvrtc::sys::culib().get::<unsafe extern "C" fn()>(name).is_ok())?;
        has("libcublasLt.so", &CUBLASLT, |name| cublaslt::sys::culib().get::<unsafe extern "C" fn()>(name).is_ok())
    }
}

/// Whether the driver can start a kernel while the one before it runs out (since CUDA 11.8). The driver must have been found.
pub(crate) fn has_overlapping_launches() -> bool {
    // SAFETY: as above.
    unsafe { driver::sys::culib().get::<unsafe extern "C" fn()>(b"cuLaunchKernelEx").is_ok() }
}

/// Whether the driver can keep calls as a graph (since CUDA 11.4, the oldest that is supported). The driver must have been found.
pub(crate) fn has_graphs() -> bool {
    let names: [&[u8]; 6] = [
        b"cuStreamBeginCapture_v2",
        b"cuStreamEndCapture",
        b"cuGraphInstantiateWithFlags",
        b"cuGraphLaunch",
        b"cuGraphDestroy",
        b"cuGraphExecDestroy",
    ];
    // SAFETY: as above.
    names.iter().all(|it| unsafe { driver::sys::culib().get::<unsafe extern "C" fn()>(*it).is_ok() })
}

fn has(library: &str, names: &[&'static str], is_there: impl Fn(&[u8]) -> bool) -> Result<(), Error> {
    match names.iter().find(|it| !is_there(it.as_bytes())) {
        None => Ok(()),
        Some(symbol) => Err(Error::MissingSymbol { path: library.to_owned(), symbol }),
    }
}
