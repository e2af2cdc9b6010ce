//! A GPU for tests: a real one where there is one, else the CPU in the guise of one (`cuda_on_cpu`).

// A skipped test says so.
#![allow(clippy::print_stderr)]

use halfbyte_cuda::{Gpu, Number, element_text, full_text, module_name, probe};
use std::{
    collections::hash_map::DefaultHasher,
    fmt::Write,
    fs,
    hash::{Hash, Hasher},
    io,
    path::{Path, PathBuf},
    process::Command,
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

/// Absent where there is no C++ compiler; one that refuses our sources is a failed test.
fn without_compiler(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// The folder with `libcuda.so.1`, `libnvrtc.so.13` and `libcublasLt.so.13` for the CPU, built if its sources changed. For tests of
/// whole programs: put it on the loader's path.
///
/// `None` without a C++ compiler, with the reason printed.
pub fn libraries() -> Option<PathBuf> {
    match build() {
        Ok(dir) => Some(dir),
        Err(e) if without_compiler(&e) => {
            eprintln!("skipped: no CUDA driver, and no C++ compiler to build one for the CPU");
            None
        }
        Err(e) => panic!("the CUDA libraries for the CPU do not build: {e}"),
    }
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

struct KernelFile {
    name: String,
    path: PathBuf,
    text: String,
}

fn build() -> io::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = here.join("cuda_on_cpu");
    let mut files = Vec::new();
    for entry in fs::read_dir(here.join(".."))? {
        find_kernels(&entry?.path().join("src"), &mut files)?;
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hasher = DefaultHasher::new();
    // The texts' hashes stand for the files, what precedes them included.
    let (kernels, texts) = (kernels(&files), texts(&files));
    (&kernels, &texts).hash(&mut hasher);
    for name in ["runtime.hpp", "driver.cpp", "nvrtc.cpp", "cublaslt.cpp"] {
        fs::read(sources.join(name))?.hash(&mut hasher);
    }
    let flags = std::env::var("CUDA_ON_CPU_FLAGS").unwrap_or_default();
    flags.hash(&mut hasher);
    let all = target_dir().join("cuda_on_cpu");
    let done = all.join(format!("{:016x}", hasher.finish()));
    if done.exists() {
        return Ok(done);
    }
    fs::create_dir_all(&all)?;
    // Another process may be building, too: each in a folder of its own, and the first to be done wins.
    let draft = tempfile::tempdir_in(&all)?;
    fs::write(draft.path().join("common.cuh"), halfbyte_cuda::COMMON)?;
    fs::write(draft.path().join("kernels.hpp"), kernels)?;
    fs::write(draft.path().join("texts.hpp"), texts)?;
    let compile = |source: &str, library: &str, extra: &[&str]| -> io::Result<()> {
        let mut cxx = Command::new(std::env::var("CXX").unwrap_or_else(|_| "g++".into()));
        cxx.args(["-std=c++20", "-O2", "-g1", "-fPIC", "-shared", "-pthread", "-w", "-ffp-contract=off"]);
        cxx.args(flags.split_whitespace()).arg("-I").arg(draft.path()).arg("-I").arg(&sources);
        cxx.arg(format!("-Wl,-soname,{library}")).arg("-o").arg(draft.path().join(library)).arg(sources.join(source));
        cxx.args(extra);
        let out = cxx.output()?;
        if out.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("{source}: {}", String::from_utf8_lossy(&out.stderr))))
    };
    compile("driver.cpp", "libcuda.so.1", &[])?;
    compile("nvrtc.cpp", "libnvrtc.so.13", &[])?;
    let driver = draft.path().join("libcuda.so.1");
    compile("cublaslt.cpp", "libcublasLt.so.13", &[&driver.display().to_string(), "-Wl,-rpath,$ORIGIN"])?;
    if fs::rename(draft.path(), &done).is_ok() {
        let _ = draft.keep();
    }
    Ok(done)
}

fn target_dir() -> PathBuf {
    // target/PROFILE/deps/TEST
    let exe = std::env::current_exe().unwrap_or_default();
    exe.ancestors().nth(3).map_or_else(std::env::temp_dir, Path::to_owned)
}

/// `kernel.cu` is named for its folder, or for its crate if it lies in `src`.
fn find_kernels(dir: &Path, found: &mut Vec<KernelFile>) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            find_kernels(&path, found)?;
        } else if path.file_name().is_some_and(|it| it == "kernel.cu") {
            let folder = if dir.ends_with("src") { dir.parent().unwrap_or(dir) } else { dir };
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path)?;
            found.push(KernelFile { name, path: path.canonicalize()?, text });
        }
    }
    Ok(())
}

/// Every file once for each element type, in a namespace of its own, and a table of the kernels in them.
fn kernels(files: &[KernelFile]) -> String {
    let mut text = String::from("#pragma once\n#include <memory>\n#include \"runtime.hpp\"\n#include \"common.cuh\"\n");
    let mut table = String::new();
    for file in files {
        for element in Number::ALL {
            let name = module_name(&file.name, element);
            let space = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
            let path = file.path.display();
            let _ = writeln!(text, "namespace {space} {{\n{}#include \"{path}\"\n}}", element_text(element));
            for kernel in file.text.lines().filter_map(kernel_name) {
                let _ = writeln!(table, "    cpu::kernels()[\"{name}/{kernel}\"] = cpu::bind({space}::{kernel});");
            }
        }
    }
    let _ = writeln!(text, "static const bool registered = [] {{\n{table}    return true;\n}}();");
    text
}

/// `KERNEL name(` begins a kernel.
fn kernel_name(line: &str) -> Option<&str> {
    line.strip_prefix("KERNEL ")?.split('(').next()
}

/// Names and hashes (FNV-1a) of the texts that a compiler may be given.
fn texts(files: &[KernelFile]) -> String {
    let mut text = String::from("struct Text { const char* name; uint64_t hash; };\nconst Text TEXTS[] = {\n");
    for file in files {
        for element in Number::ALL {
            let hash = full_text(&file.text, element)
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
            let _ = writeln!(text, "    {{\"{}\", {hash:#x}u}},", module_name(&file.name, element));
        }
    }
    text + "    {\"\", 0}};\n"
}
