//! Builds the CPU in the guise of a GPU from `cuda_on_cpu` and the kernels of all crates.
//!
//! Every file of kernels is an object of its own that is kept while its text is the same, so that a change of one costs seconds.

use halfbyte_cuda::{COMMON, Number, element_text, full_text, module_name, source_files};
use std::{
    collections::hash_map::DefaultHasher,
    fmt::Write,
    fs,
    hash::{Hash, Hasher},
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

struct KernelFile {
    name: String,
    /// `kernel.cu`, and before it what it shares.
    paths: Vec<PathBuf>,
    text: String,
}

/// The compiler with the flags that everything gets.
struct Compiler {
    sources: PathBuf,
    flags: String,
}

impl Compiler {
    fn new() -> Compiler {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda_on_cpu");
        Compiler { sources, flags: std::env::var("CUDA_ON_CPU_FLAGS").unwrap_or_default() }
    }

    fn run(&self, what: &str, args: &[&str]) -> io::Result<()> {
        let mut cxx = Command::new(std::env::var("CXX").unwrap_or_else(|_| "g++".into()));
        cxx.args(["-std=c++20", "-O2", "-g1", "-fPIC", "-pthread", "-w", "-ffp-contract=off"]);
        cxx.args(self.flags.split_whitespace()).arg("-I").arg(&self.sources).args(args);
        let out = cxx.output()?;
        if out.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("{what}: {}", String::from_utf8_lossy(&out.stderr))))
    }

    /// A library of one of the sources and `more`, in a folder.
    fn library(&self, folder: &Path, source: &str, name: &str, more: &[&str]) -> io::Result<()> {
        let (out, source) = (folder.join(name).display().to_string(), self.sources.join(source).display().to_string());
        let (soname, here) = (format!("-Wl,-soname,{name}"), folder.display().to_string());
        let mut args = vec!["-shared", &soname, "-I", &here, "-o", &out, &source];
        args.extend(more);
        self.run(name, &args)
    }

    fn source(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.sources.join(name))
    }
}

/// The folder of the libraries, built if anything in them changed.
pub(crate) fn build() -> io::Result<PathBuf> {
    let compiler = Compiler::new();
    let mut files = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))? {
        find_kernels(&entry?.path().join("src"), &mut files)?;
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let all = target_dir().join("cuda_on_cpu");
    let objects = files.iter().map(|it| object_path(&compiler, it, &all)).collect::<io::Result<Vec<PathBuf>>>()?;
    let mut hasher = DefaultHasher::new();
    // The texts' hashes stand for the files, what precedes them included.
    let texts = texts(&files);
    (&objects, &texts, &compiler.flags).hash(&mut hasher);
    for name in ["device.hpp", "driver.cpp", "nvrtc.cpp", "cublaslt.cpp"] {
        compiler.source(name)?.hash(&mut hasher);
    }
    let done = all.join(format!("{:016x}", hasher.finish()));
    if done.exists() {
        return Ok(done);
    }
    fs::create_dir_all(&all)?;
    compile_objects(&compiler, &files, &objects)?;
    // Another process may be building, too: each in a folder of its own, and the first to be done wins.
    let draft = tempfile::tempdir_in(&all)?;
    fs::write(draft.path().join("texts.hpp"), texts)?;
    let objects: Vec<String> = objects.iter().map(|it| it.display().to_string()).collect();
    let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
    compiler.library(draft.path(), "driver.cpp", "libcuda.so.1", &objects)?;
    compiler.library(draft.path(), "nvrtc.cpp", "libnvrtc.so.13", &[])?;
    let driver = draft.path().join("libcuda.so.1").display().to_string();
    compiler.library(draft.path(), "cublaslt.cpp", "libcublasLt.so.13", &[&driver, "-Wl,-rpath,$ORIGIN"])?;
    if fs::rename(draft.path(), &done).is_ok() {
        let _ = draft.keep();
    }
    Ok(done)
}

/// As many at a time as there are cores.
fn compile_objects(compiler: &Compiler, files: &[KernelFile], objects: &[PathBuf]) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<()> {
        while let Some((file, object)) = files.iter().zip(objects).nth(next.fetch_add(1, Ordering::Relaxed)) {
            if !object.exists() {
                compile_object(compiler, file, object)?;
            }
        }
        Ok(())
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|it| it.join().expect("a compilation does not panic"))
    })
}

fn compile_object(compiler: &Compiler, file: &KernelFile, object: &Path) -> io::Result<()> {
    let draft = tempfile::tempdir_in(object.parent().unwrap_or(object))?;
    let (source, out) = (draft.path().join("kernels.cpp"), draft.path().join("kernels.o"));
    fs::write(draft.path().join("common.cuh"), COMMON)?;
    fs::write(&source, kernels(file))?;
    let [here, source, target] = [draft.path(), &source, &out].map(|it| it.display().to_string());
    compiler.run(&file.name, &["-I", &here, "-c", "-o", &target, &source])?;
    fs::rename(out, object)
}

/// Named for everything that goes into it.
fn object_path(compiler: &Compiler, file: &KernelFile, all: &Path) -> io::Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (kernels(file), &file.text, COMMON, compiler.source("runtime.hpp")?, &compiler.flags).hash(&mut hasher);
    Ok(all.join(format!("{}-{:016x}.o", file.name, hasher.finish())))
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
            let paths = source_files(&path)?;
            let text = paths.iter().map(fs::read_to_string).collect::<io::Result<String>>()?;
            let paths = paths.iter().map(|it| it.canonicalize()).collect::<io::Result<Vec<PathBuf>>>()?;
            found.push(KernelFile { name, paths, text });
        }
    }
    Ok(())
}

/// The file once for each element type, in a namespace of its own, and an entry in the table for each of its kernels.
fn kernels(file: &KernelFile) -> String {
    let mut text = String::from("#include \"runtime.hpp\"\n#include \"common.cuh\"\n");
    let mut table = String::new();
    for element in Number::ALL {
        let name = module_name(&file.name, element);
        let space = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        let _ = writeln!(text, "namespace {space} {{\n{}", element_text(element));
        for path in &file.paths {
            let _ = writeln!(text, "#include \"{}\"", path.display());
        }
        text.push_str("}\n");
        for kernel in file.text.lines().filter_map(kernel_name) {
            let _ = writeln!(table, "    cpu::kernels()[\"{name}/{kernel}\"] = cpu::kernel({space}::{kernel});");
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
