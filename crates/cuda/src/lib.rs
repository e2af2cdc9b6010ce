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

mod algorithms;
mod buffer;
mod cache;
mod compile;
mod counters;
mod declared;
mod driver;
mod dry;
mod error;
mod gpu;
mod graph;
mod kernels;
mod launch;
mod library;
mod matmul;
mod pinned;
mod pool;
mod probe;
mod repeat;
mod ring;
mod script;
mod search;
#[doc(hidden)]
pub mod signature;
mod stowed;
mod stream;
mod symbols;

pub use buffer::{Buffer, Share};
pub use cache::cache_dir;
pub use compile::{COMMON, Source, compile, compile_verbose, element_text, full_text, module_name};
pub use counters::Counters;
pub use declared::{Declared, declared};
pub use dry::{Booked, Rates};
pub use error::Error;
pub use gpu::Gpu;
pub use kernels::{Any, Beside, F16, Holds, InRows, Kind, Memory, Parameter, Pointee, Slice, T, Target, Three};
pub use launch::{Arg, Launch};
pub use library::Library;
pub use matmul::{Gemm, Matrix, Number};
pub use pinned::Pinned;
pub use pool::{Block, MemoryStats, Pool, Purpose};
pub use probe::{DeviceInfo, DriverInfo, Probe, Version, probe};
pub use stowed::{Coming, Stowed};
pub use stream::{Event, Stream};

/// The oldest CUDA version that a driver may support: 11.4 is the first whose interface the bindings know.
pub const OLDEST_DRIVER: Version = Version { major: 11, minor: 4 };

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
