//! CUDA at run time, never at build time: what of it this machine has, found out without a panic.
//!
//! No toolkit is needed to build this crate and no driver to start a program that holds it. The bindings (`cudarc`) open the
//! libraries when they are first called, but they panic when a library is absent, or a symbol of it is, as happens with an old
//! driver. So nothing here calls a binding before the library and the symbol were looked up.
//!
//! ```
//! let probe = halfbyte_cuda::probe();
//! match probe.require() {
//!     Ok(devices) => println!("{} is ready", devices[0].name),
//!     Err(e) => println!("{e}"), // what is missing, and what to do about it
//! }
//! println!("{probe}"); // the whole report, one fact a line
//! ```

mod compile;
mod driver;
mod error;
mod gpu;
mod library;
mod matmul;
mod probe;
mod search;
mod symbols;

pub use compile::{Arg, COMMON, Launch, Source, compile, compile_verbose, element_text, full_text, module_name};
pub use error::Error;
pub use gpu::{Buffer, CopyStream, Gpu, MemoryStats, Pinned};
pub use library::Library;
pub use matmul::{Gemm, Matrix, Number};
pub use probe::{DeviceInfo, DriverInfo, Probe, Version, probe};

/// The oldest CUDA version that a driver may support: 11.4 is the first whose interface the bindings know.
pub const OLDEST_DRIVER: Version = Version { major: 11, minor: 4 };
