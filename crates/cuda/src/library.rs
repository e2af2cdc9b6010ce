//! The shared libraries that make up CUDA at run time, opened as the bindings will open them.

use crate::search;
use cudarc::{cublaslt, driver, nvrtc};

/// One shared library and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// What it is for, as people call it: `driver`, `NVRTC`, `cuBLASLt`.
    pub name: &'static str,
    /// The file name that the loader is asked for; a version may follow it.
    pub file: &'static str,
    /// The path of the file that was opened (its file name alone where the system does not tell); none when it is absent.
    pub found: Option<String>,
}

impl Library {
    /// Looks for the driver's library.
    pub(crate) fn driver() -> Self {
        // SAFETY: opening the library runs its initialisers, which it is made for; nothing is called in it.
        Self::look("driver", DRIVER_FILE, || unsafe {
            driver::sys::is_culib_present() && stays_open(driver::sys::culib())
        })
    }

    /// Looks for what compiles kernels and multiplies matrices.
    pub(crate) fn runtime() -> Vec<Self> {
        vec![
            // SAFETY: as for the driver.
            Self::look("NVRTC", "libnvrtc.so", || unsafe {
                search::preload("libnvrtc.so");
                nvrtc::sys::is_culib_present() && stays_open(nvrtc::sys::culib())
            }),
            // SAFETY: as for the driver.
            Self::look("cuBLASLt", "libcublasLt.so", || unsafe {
                search::preload("libcublasLt.so");
                cublaslt::sys::is_culib_present() && stays_open(cublaslt::sys::culib())
            }),
        ]
    }

    /// `load` opens the library for good, since only what stays open shows where it lies, and says whether it could.
    fn look(name: &'static str, file: &'static str, load: impl FnOnce() -> bool) -> Self {
        let found = load().then(|| mapped_path(file).unwrap_or_else(|| file.to_owned()));
        Self { name, file, found }
    }
}

/// What the loader is asked for first.
pub(crate) const DRIVER_FILE: &str = "libcuda.so.1";

/// The test for presence closes the library again; the bindings' own handle is what holds it open.
fn stays_open<T>(_handle: &'static T) -> bool {
    true
}

/// The path of an opened library whose file name starts with `file`, up to its `.so`.
#[cfg(target_os = "linux")]
fn mapped_path(file: &str) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    find_mapped(&maps, file)
}

#[cfg(not(target_os = "linux"))]
fn mapped_path(_file: &str) -> Option<String> {
    None
}

#[cfg(any(target_os = "linux", test))]
fn find_mapped(maps: &str, file: &str) -> Option<String> {
    let stem = file.split(".so").next().unwrap_or(file);
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    let mut of_library = paths.filter(|path| {
        let name = path.rsplit('/').next().unwrap_or(path);
        name.strip_prefix(stem).is_some_and(|rest| rest.starts_with(".so"))
    });
    of_library.next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_found_among_the_mapped_files_by_its_whole_name() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 12 /usr/lib/libcublasLt.so.13.1\n\
                    7f01-7f02 rw-p 00000000 00:00 0 \n\
                    7f02-7f03 r-xp 00000000 08:01 13 /opt/my libs/libcublas.so.13\n";
        assert_eq!(find_mapped(maps, "libcublas.so").as_deref(), Some("/opt/my libs/libcublas.so.13"));
        assert_eq!(find_mapped(maps, "libcublasLt.so").as_deref(), Some("/usr/lib/libcublasLt.so.13.1"));
        assert_eq!(find_mapped(maps, "libcuda.so.1"), None);
    }
}
