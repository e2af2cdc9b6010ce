//! A GPU for tests: a real one where there is one, else the CPU in the guise of one (`cuda_on_cpu`).

// A skipped test says so.
#![allow(clippy::print_stderr)]

use crate::cuda_on_cpu::{Purpose, build};
use halfbyte_cuda::{DeviceInfo, Gpu, Version, probe};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// The GPU of this process; `None` where there is none and no C++ compiler to make one.
pub fn gpu() -> Option<Arc<Gpu>> {
    static GPU: OnceLock<Option<Arc<Gpu>>> = OnceLock::new();
    GPU.get_or_init(|| {
        if probe().require().is_err() {
            preload(&libraries()?);
        }
        Some(Gpu::open(0).expect("a GPU that was found opens"))
    })
    .clone()
}

/// A GPU that is not there, as a plan has it; works on every machine.
pub fn dry() -> Arc<Gpu> {
    let info = DeviceInfo {
        ordinal: 0,
        name: "a card to plan for".into(),
        compute_capability: Version { major: 9, minor: 0 },
        memory_bytes: 80 << 30,
    };
    Gpu::dry(info, 227 << 10)
}

/// The device of [`gpu`] opened anew, with nothing loaded yet and memory of its own.
pub fn fresh_gpu() -> Option<Arc<Gpu>> {
    gpu().map(|it| Gpu::open(it.info().ordinal).expect("a GPU that was found opens again"))
}

/// Absent where there is no C++ compiler; one that refuses our sources is a failed test.
fn without_compiler(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// The folder with `libcuda.so.1`, `libnvrtc.so.13` and `libcublasLt.so.13` for the CPU, built if its sources changed. For tests of
/// whole programs: put it on the loader's path.
///
/// `None` without a C++ compiler, with the reason printed.
pub fn libraries() -> Option<PathBuf> {
    libraries_for(Purpose::Running)
}

fn libraries_for(purpose: Purpose) -> Option<PathBuf> {
    match build(purpose) {
        Ok(dir) => Some(dir),
        Err(e) if without_compiler(&e) => {
            eprintln!("skipped: no CUDA driver, and no C++ compiler to build one for the CPU");
            None
        }
        Err(e) => panic!("the CUDA libraries for the CPU do not build: {e}"),
    }
}

/// As [`gpu`] where there is no GPU, with libraries that count what launches do: the one that does.
pub(crate) fn preload_counting() -> Option<PathBuf> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            if probe().require().is_ok() {
                eprintln!("skipped: a GPU is there, and the CPU cannot count in its place");
                return None;
            }
            let dir = libraries_for(Purpose::Counting)?;
            preload(&dir);
            Some(dir.join("libcuda.so.1"))
        })
        .clone()
}

/// Opens the libraries so that the bindings, which ask for them by name, get these.
fn preload(dir: &Path) {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    for name in ["libcuda.so.1", "libnvrtc.so.13", "libcublasLt.so.13"] {
        // SAFETY: libraries of our own, whose initialisers only fill a table.
        let library = unsafe { Library::open(Some(dir.join(name)), RTLD_NOW | RTLD_GLOBAL) };
        std::mem::forget(library.expect("a library that was just built opens"));
    }
}
