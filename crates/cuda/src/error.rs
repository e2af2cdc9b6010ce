//! Why there is no CUDA, each time with what to do.

use crate::Version;

/// What keeps CUDA from being used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver's library is not on this machine, or not where the loader looks.
    #[error("no CUDA driver: {library} was not found; install the NVIDIA driver, or use --device cpu")]
    NoDriver {
        /// The file that the loader looked for.
        library: &'static str,
    },

    /// The library is there, but it lacks a function that every driver has.
    #[error(
        "the CUDA driver {path} has no function {symbol}: it is damaged or a stub; reinstall the NVIDIA driver, or use --device cpu"
    )]
    MissingSymbol {
        /// The library, by path where the system tells it.
        path: String,
        /// The function looked for.
        symbol: &'static str,
    },

    /// The driver works, but is older than the bindings reach back.
    #[error(
        "the CUDA driver supports CUDA {found}, at least {oldest} is needed; update the NVIDIA driver, or use --device cpu"
    )]
    OldDriver {
        /// What the driver supports.
        found: Version,
        /// What is needed.
        oldest: Version,
    },

    /// The driver works and sees no device.
    #[error(
        "the CUDA driver found no device; check that `nvidia-smi` lists one and that CUDA_VISIBLE_DEVICES does not hide it, or use --device cpu"
    )]
    NoDevice,

    /// A call into the driver failed.
    #[error(
        "the CUDA driver call {call} failed with {name} ({code}); check that `nvidia-smi` works, or use --device cpu"
    )]
    Call {
        /// The function called.
        call: &'static str,
        /// The driver's name for the error.
        name: String,
        /// Its number.
        code: i32,
    },

    /// The driver works, a library that training on the device needs does not exist.
    #[error(
        "{library} was not found: install the CUDA {major} runtime libraries and put their folder on the loader's path (LD_LIBRARY_PATH), or use --device cpu"
    )]
    NoLibrary {
        /// Its file name.
        library: &'static str,
        /// The major version of CUDA to install.
        major: u32,
    },

    /// There are devices, but not this one.
    #[error("there is no device cuda:{ordinal}; there is {}", devices.join(", "))]
    NoSuchDevice {
        /// The number asked for.
        ordinal: u32,
        /// Those that there are: `cuda:0 (NVIDIA A100-SXM4-40GB)`.
        devices: Vec<String>,
    },

    /// The device's memory is full.
    #[error("the GPU is out of memory: {asked} bytes more were asked for, {live} are in use")]
    OutOfMemory {
        /// What did not fit.
        asked: usize,
        /// What is there.
        live: usize,
    },

    /// The system gives no page-locked host memory.
    #[error(
        "there is no more page-locked host memory: {asked} bytes more were asked for, {held} are held ({source}); free host memory, or raise its limit (ulimit -l)"
    )]
    HostMemory {
        /// What did not fit.
        asked: usize,
        /// What is there.
        held: usize,
        /// What the driver said.
        source: Box<Error>,
    },

    /// A kernel did not compile.
    #[error("the kernels {file} do not compile: {log}")]
    Compile {
        /// The file of kernels.
        file: String,
        /// What the compiler said.
        log: String,
    },

    /// A file of kernels lacks one.
    #[error("{file}.cu has no kernel {kernel}")]
    NoKernel {
        /// The file of kernels.
        file: &'static str,
        /// The kernel looked for.
        kernel: &'static str,
    },

    /// A kernel asks for more shared memory than the device gives a block.
    #[error("the kernel {kernel} asks for {asked} bytes of shared memory a block; this GPU gives {limit}")]
    SharedMemory {
        /// The kernel.
        kernel: &'static str,
        /// What its launch asked for.
        asked: u32,
        /// What the device has.
        limit: u32,
    },

    /// A pass that was started as a whole asked for something else than before. It is run again by itself, so nobody sees this.
    #[error("a pass that was started as one CUDA graph asked for {what}; HALFBYTE_CUDA_GRAPH=off starts none so")]
    Strayed {
        /// What.
        what: &'static str,
    },

    /// A kernel was not started.
    #[error("the kernel {kernel} was not launched: {name} ({code})")]
    Launch {
        /// The kernel.
        kernel: &'static str,
        /// The driver's name for the error.
        name: String,
        /// Its number.
        code: i32,
    },

    /// A matrix product was refused or failed.
    #[error("cuBLASLt failed at a product of {m} x {k} by {k} x {n}: {status}")]
    Blas {
        /// Rows of the result.
        m: usize,
        /// Columns of the result.
        n: usize,
        /// What is summed over.
        k: usize,
        /// What the library said.
        status: String,
    },
}
