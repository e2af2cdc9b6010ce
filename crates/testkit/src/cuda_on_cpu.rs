//! Builds the CPU in the guise of a GPU from `cuda_on_cpu` and the kernels of all crates.
//!
//! Every file of kernels is an object of its own that is kept while its text is the same, so that a change of one costs seconds.

use halfbyte_cuda::{COMMON, Declared, Number, declared, element_text, full_text, module_name};
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

/// A module of kernels.
struct KernelFile {
    name: String,
    /// The files of its text, from the root.
    paths: Vec<PathBuf>,
    text: String,
}

impl KernelFile {
    fn new(module: &Declared) -> io::Result<KernelFile> {
        let paths = module.files.iter().map(|it| it.canonicalize()).collect::<io::Result<_>>()?;
        Ok(KernelFile { name: module.name.clone(), paths, text: module.text()? })
    }
}

/// What the libraries are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Whatever a GPU is for.
    Running,
    /// Counting what each launch does as well, slowly, in f32 and bf16.
    Counting,
}

impl Purpose {
    /// What all is compiled with.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Purpose::Running => &[],
            Purpose::Counting => &["-DCUDA_ON_CPU_COUNTS"],
        }
    }

    /// What kernels are compiled with.
    ///
    /// A call before every access, as sanitizers have it. Of optimisations those that a compiler for GPUs has, too, but none that splits a
    /// copy of 16 bytes into its elements.
    fn kernel_flags(self) -> &'static [&'static str] {
        match self {
            Purpose::Running => &[],
            Purpose::Counting => &["-O1", "-fno-tree-sra", "-fsanitize=thread", "-gdwarf-4"],
        }
    }

    fn elements(self) -> &'static [Number] {
        match self {
            Purpose::Running => &Number::ALL,
            Purpose::Counting => &[Number::F32, Number::Bf16],
        }
    }
}

/// The compiler with the flags that everything gets.
struct Compiler {
    sources: PathBuf,
    flags: String,
    purpose: Purpose,
}

impl Compiler {
    fn new(purpose: Purpose) -> Compiler {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda_on_cpu");
        // Sanitizers and counting exclude each other.
        let flags = match purpose {
            Purpose::Running => std::env::var("CUDA_ON_CPU_FLAGS").unwrap_or_default(),
            Purpose::Counting => String::new(),
        };
        Compiler { sources, flags, purpose }
    }

    fn run(&self, what: &str, args: &[&str]) -> io::Result<()> {
        let mut cxx = Command::new(std::env::var("CXX").unwrap_or_else(|_| "g++".into()));
        cxx.args(["-std=c++20", "-O2", "-g1", "-fPIC", "-pthread", "-w", "-ffp-contract=off"]);
        cxx.args(self.purpose.flags());
        // What is compiled already is found before its source.
        cxx.args(self.flags.split_whitespace()).args(args).arg("-I").arg(&self.sources);
        let out = cxx.output()?;
        if out.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("{what}: {}", String::from_utf8_lossy(&out.stderr))))
    }

    /// A library of some of the sources and `more`, in a folder.
    fn library(&self, folder: &Path, sources: &[&str], name: &str, more: &[&str]) -> io::Result<()> {
        let (out, soname) = (folder.join(name).display().to_string(), format!("-Wl,-soname,{name}"));
        let here = folder.display().to_string();
        let sources: Vec<String> = sources.iter().map(|it| self.sources.join(it).display().to_string()).collect();
        let mut args = vec!["-shared", &soname, "-I", &here, "-o", &out];
        args.extend(sources.iter().map(String::as_str));
        args.extend(more);
        self.run(name, &args)
    }

    /// A folder with what every file of kernels begins with, compiled: half of what a small one takes.
    fn precompiled(&self, all: &Path) -> io::Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        self.hash_runtime(&mut hasher)?;
        let done = all.join(format!("runtime-{:016x}", hasher.finish()));
        if !done.exists() {
            let draft = tempfile::tempdir_in(all)?;
            let out = draft.path().join("runtime.hpp.gch").display().to_string();
            let source = self.sources.join("runtime.hpp").display().to_string();
            let args = ["-x", "c++-header", "-o", &out, &source];
            self.run("runtime.hpp", &[&args[..], self.purpose.kernel_flags()].concat())?;
            if fs::rename(draft.path(), &done).is_ok() {
                let _ = draft.keep();
            }
        }
        Ok(done)
    }

    fn hash_runtime(&self, hasher: &mut DefaultHasher) -> io::Result<()> {
        let purpose = (self.purpose.flags(), self.purpose.kernel_flags());
        for name in ["runtime.hpp", "wgmma.hpp", "counts.hpp"] {
            self.source(name)?.hash(hasher);
        }
        (&self.flags, purpose).hash(hasher);
        Ok(())
    }

    fn source(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.sources.join(name))
    }
}

/// The folder of the libraries, built if anything in them changed.
pub(crate) fn build(purpose: Purpose) -> io::Result<PathBuf> {
    let compiler = Compiler::new(purpose);
    let modules = declared(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))?;
    let files = modules.iter().map(KernelFile::new).collect::<io::Result<Vec<KernelFile>>>()?;
    let all = target_dir().join("cuda_on_cpu");
    let objects = files.iter().map(|it| object_path(&compiler, it, &all)).collect::<io::Result<Vec<PathBuf>>>()?;
    let mut hasher = DefaultHasher::new();
    // The texts' hashes stand for the files, what precedes them included.
    let texts = texts(&files, purpose);
    (&objects, &texts, &compiler.flags, purpose.flags()).hash(&mut hasher);
    for name in
        ["device.hpp", "graph.hpp", "driver.cpp", "nvrtc.cpp", "cublaslt.cpp", "counts.cpp", "counts_interface.hpp"]
    {
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
    let driver: &[&str] = if purpose == Purpose::Counting { &["driver.cpp", "counts.cpp"] } else { &["driver.cpp"] };
    compiler.library(draft.path(), driver, "libcuda.so.1", &objects)?;
    compiler.library(draft.path(), &["nvrtc.cpp"], "libnvrtc.so.13", &[])?;
    let driver = draft.path().join("libcuda.so.1").display().to_string();
    compiler.library(draft.path(), &["cublaslt.cpp"], "libcublasLt.so.13", &[&driver, "-Wl,-rpath,$ORIGIN"])?;
    if fs::rename(draft.path(), &done).is_ok() {
        let _ = draft.keep();
    }
    Ok(done)
}

/// As many at a time as there are cores.
fn compile_objects(compiler: &Compiler, files: &[KernelFile], objects: &[PathBuf]) -> io::Result<()> {
    let missing: Vec<(&KernelFile, &PathBuf)> = files.iter().zip(objects).filter(|it| !it.1.exists()).collect();
    let Some(all) = missing.first().and_then(|it| it.1.parent()) else { return Ok(()) };
    let header = compiler.precompiled(all)?;
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<()> {
        while let Some((file, object)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            compile_object(compiler, file, (&header, object))?;
        }
        Ok(())
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|it| it.join().expect("a compilation does not panic"))
    })
}

fn compile_object(compiler: &Compiler, file: &KernelFile, (header, object): (&Path, &Path)) -> io::Result<()> {
    let draft = tempfile::tempdir_in(object.parent().unwrap_or(object))?;
    let (source, out) = (draft.path().join("kernels.cpp"), draft.path().join("kernels.o"));
    fs::write(draft.path().join("common.cuh"), COMMON)?;
    fs::write(&source, kernels(file, compiler.purpose))?;
    let [header, here, source, target] = [header, draft.path(), &source, &out].map(|it| it.display().to_string());
    let args = ["-I", &header, "-I", &here, "-c", "-o", &target, &source];
    compiler.run(&file.name, &[&args[..], compiler.purpose.kernel_flags()].concat())?;
    fs::rename(out, object)
}

/// Named for everything that goes into it.
fn object_path(compiler: &Compiler, file: &KernelFile, all: &Path) -> io::Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (kernels(file, compiler.purpose), &file.text, COMMON).hash(&mut hasher);
    compiler.hash_runtime(&mut hasher)?;
    Ok(all.join(format!("{}-{:016x}.o", file.name, hasher.finish())))
}

fn target_dir() -> PathBuf {
    // target/PROFILE/deps/TEST
    let exe = std::env::current_exe().unwrap_or_default();
    exe.ancestors().nth(3).map_or_else(std::env::temp_dir, Path::to_owned)
}

/// The file once for each element type, in a namespace of its own, and an entry in the table for each of its kernels.
fn kernels(file: &KernelFile, purpose: Purpose) -> String {
    let mut text = String::from("#include \"runtime.hpp\"\n#include \"common.cuh\"\n");
    let mut table = String::new();
    for &element in purpose.elements() {
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
fn texts(files: &[KernelFile], purpose: Purpose) -> String {
    let mut text = String::from("struct Text { const char* name; uint64_t hash; };\nconst Text TEXTS[] = {\n");
    for file in files {
        for &element in purpose.elements() {
            let hash = full_text(&file.text, element)
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
            let _ = writeln!(text, "    {{\"{}\", {hash:#x}u}},", module_name(&file.name, element));
        }
    }
    text + "    {\"\", 0}};\n"
}
