//! Where the libraries of a CUDA toolkit lie when the loader does not look there: the toolkit's own folder, and the `nvidia-*`
//! packages of a Python environment, which people have anyway.

use std::path::{Path, PathBuf};

/// The versions that the bindings know, newest first.
const VERSIONS: [&str; 2] = [".13", ".12"];

/// Opens `file` (such as `libnvrtc.so`) for good from the first folder that has it, so that a later request by name finds it.
/// What the loader itself would find comes first.
#[cfg(target_os = "linux")]
pub(crate) fn preload(file: &str) {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    let open = |path: &Path| {
        // SAFETY: opening one of NVIDIA's libraries runs its initialisers, which it is made for.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
        library.map(std::mem::forget).is_ok()
    };
    let names: Vec<String> = VERSIONS.iter().map(|it| format!("{file}{it}")).collect();
    if names.iter().any(|it| open(Path::new(it))) {
        return;
    }
    for folder in folders(&|name| std::env::var_os(name).map(PathBuf::from)) {
        if names.iter().map(|it| folder.join(it)).any(|it| it.exists() && open(&it)) {
            return;
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn preload(_file: &str) {}

/// Folders to look into, in order.
#[cfg(any(target_os = "linux", test))]
fn folders(env: &dyn Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for toolkit in ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|it| env(it)).chain([PathBuf::from("/usr/local/cuda")])
    {
        found.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|it| toolkit.join(it)));
    }
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|it| env(it));
    for lib in environments.map(|it| it.join("lib")).chain([PathBuf::from("/usr/local/lib"), PathBuf::from("/usr/lib")])
    {
        for python in children(&lib).filter(|it| file_name(it).starts_with("python3")) {
            for packages in ["site-packages", "dist-packages"] {
                found.extend(children(&python.join(packages).join("nvidia")).map(|it| it.join("lib")));
            }
        }
    }
    found
}

#[cfg(any(target_os = "linux", test))]
fn children(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|it| it.path()).collect();
    paths.sort();
    paths.into_iter()
}

#[cfg(any(target_os = "linux", test))]
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toolkit_comes_first_and_pip_packages_are_found() {
        let env = tempfile::tempdir().unwrap();
        let lib = env.path().join("lib/python3.12/site-packages/nvidia/cu13/lib");
        std::fs::create_dir_all(&lib).unwrap();
        let found = folders(&|name| match name {
            "CUDA_HOME" => Some("/opt/cuda".into()),
            "VIRTUAL_ENV" => Some(env.path().into()),
            _ => None,
        });
        assert_eq!(found[0], Path::new("/opt/cuda/lib64"));
        assert!(found.contains(&lib), "{found:?}");
        assert!(found.contains(&PathBuf::from("/usr/local/cuda/lib64")));
    }
}
