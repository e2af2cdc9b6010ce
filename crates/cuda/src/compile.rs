//! Kernels: compiled by NVRTC for the device at hand when they are first needed, and kept in a cache on disk.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use cudarc::driver::{result, sys};
use cudarc::nvrtc;

use crate::error::Error;
use crate::gpu::{Gpu, call};
use crate::matmul::Number;

/// What every kernel begins with: the 16-bit floating-point types, and reductions.
pub const COMMON: &str = include_str!("common.cuh");

/// A file of kernels over elements of type `T`, compiled once for each element type that is met.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Its name, for messages and the cache: that of its folder, or of its crate.
    pub name: &'static str,
    /// CUDA C++.
    pub text: &'static str,
}

/// The name of what a file is compiled to for an element type: `rms_norm.bf16`.
pub fn module_name(source: &str, element: Number) -> String {
    format!("{source}.{}", element.name())
}

/// What makes an element type `T`, before a file that is compiled for it.
pub fn element_text(element: Number) -> String {
    let name = if element == Number::F32 { "float" } else { element.name() };
    // The kind as `load_any` counts it.
    let kind = Number::ALL.iter().position(|it| *it == element).unwrap_or_default();
    format!("#undef T_KIND\n#define T_KIND {kind}\ntypedef {name} T;\n")
}

/// The whole text that a compiler gets: [`COMMON`], the element type, the file.
pub fn full_text(text: &str, element: Number) -> String {
    format!("{COMMON}\n{}{text}", element_text(element))
}

/// How many threads a kernel gets.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// Blocks.
    pub grid: (u32, u32, u32),
    /// Threads a block.
    pub block: (u32, u32, u32),
    /// Bytes of dynamic shared memory a block.
    pub shared: u32,
}

impl Launch {
    /// Enough blocks of 256 threads for a thread an element, but no more than keep the device busy: such kernels stride.
    pub fn elements(n: usize) -> Launch {
        Launch { grid: (n.div_ceil(256).clamp(1, 1 << 16) as u32, 1, 1), block: (256, 1, 1), shared: 0 }
    }

    /// One block a row.
    pub fn rows(rows: usize, threads: u32) -> Launch {
        Launch { grid: (rows.max(1) as u32, 1, 1), block: (threads, 1, 1), shared: 0 }
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// An address on the device; 0 is the null pointer.
    Ptr(u64),
    /// `int`.
    I32(i32),
    /// `unsigned`.
    U32(u32),
    /// `unsigned long long`.
    U64(u64),
    /// `float`.
    F32(f32),
}

#[derive(Default)]
pub(crate) struct Modules {
    functions: HashMap<(&'static str, Number, &'static str), Function>,
    modules: HashMap<(&'static str, Number), Module>,
}

#[derive(Clone, Copy)]
struct Module(sys::CUmodule);
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

impl Gpu {
    /// Runs a kernel after everything that was asked of the device before. Compiles its file first, if that is new.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, in number, type and order, and every pointer must lead to live memory of the size
    /// that the kernel reads or writes.
    ///
    /// # Errors
    /// [`Error::Compile`], [`Error::NoKernel`], or [`Error::Call`] if the launch is refused.
    pub unsafe fn launch(
        &self,
        (source, element): (&Source, Number),
        kernel: &'static str,
        launch: Launch,
        args: &[Arg],
    ) -> Result<(), Error> {
        self.bind()?;
        let function = self.function((source, element), kernel, launch.shared)?;
        let mut params: Vec<*mut c_void> = args
            .iter()
            .map(|arg| match arg {
                Arg::Ptr(v) | Arg::U64(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::I32(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::U32(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::F32(v) => std::ptr::from_ref(v).cast_mut().cast(),
            })
            .collect();
        // SAFETY: the function belongs to a module that is never unloaded, and the caller vouches for the arguments, which
        // the driver copies before it returns.
        let done = unsafe {
            result::launch_kernel(function.0, launch.grid, launch.block, launch.shared, self.stream(), &mut params)
        };
        call("cuLaunchKernel", done).map_err(|e| match e {
            Error::Call { name, code, .. } => Error::Launch { kernel, name, code },
            other => other,
        })
    }

    fn function(
        &self,
        (source, element): (&Source, Number),
        kernel: &'static str,
        shared: u32,
    ) -> Result<Function, Error> {
        let mut loaded = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = loaded.functions.get(&(source.name, element, kernel)) {
            return Ok(*found);
        }
        let module = match loaded.modules.get(&(source.name, element)) {
            Some(module) => *module,
            None => {
                let module = self.load(source, element)?;
                loaded.modules.insert((source.name, element), module);
                module
            }
        };
        let name = CString::new(kernel).map_err(|_| Error::NoKernel { file: source.name, kernel })?;
        // SAFETY: the module was loaded and stays.
        let function = unsafe { result::module::get_function(module.0, name) };
        let function = function.map_err(|_| Error::NoKernel { file: source.name, kernel })?;
        if shared > DEFAULT_SHARED {
            let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is alive.
            let set = unsafe { result::function::set_function_attribute(function, which, MAX_SHARED) };
            call("cuFuncSetAttribute", set)?;
        }
        loaded.functions.insert((source.name, element, kernel), Function(function));
        Ok(Function(function))
    }

    /// From the cache, or compiled; what the cache holds is not trusted further than its checksum.
    fn load(&self, source: &Source, element: Number) -> Result<Module, Error> {
        let text = full_text(source.text, element);
        let (name, architecture) = (module_name(source.name, element), self.architecture());
        let entry = CacheEntry::new(&name, &text, &architecture)?;
        let image = match entry.read() {
            Some(image) => image,
            None => {
                let image = compile(&name, &text, &architecture)?;
                entry.write(&image);
                image
            }
        };
        // SAFETY: the image is a whole cubin for this device.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        call("cuModuleLoadData", module).map(Module)
    }

    /// What NVRTC calls the device: `sm_90`.
    pub fn architecture(&self) -> String {
        let capability = self.info().compute_capability;
        format!("sm_{}{}", capability.major, capability.minor)
    }
}

/// Dynamic shared memory that needs no permission.
const DEFAULT_SHARED: u32 = 48 << 10;
/// The most that devices since compute capability 8.0 give a block (99 KiB on the smallest of them).
const MAX_SHARED: i32 = 99 << 10;

/// Compiles a whole text for an architecture to a cubin.
///
/// # Errors
/// [`Error::Compile`] with the compiler's log.
pub fn compile(name: &str, text: &str, architecture: &str) -> Result<Vec<u8>, Error> {
    compile_with(name, text, architecture, &[]).map(|it| it.0)
}

/// The same, with what the assembler says of registers and spilled memory.
///
/// # Errors
/// [`Error::Compile`] with the compiler's log.
pub fn compile_verbose(name: &str, text: &str, architecture: &str) -> Result<(Vec<u8>, String), Error> {
    compile_with(name, text, architecture, &["--ptxas-options=-v"])
}

fn compile_with(name: &str, text: &str, architecture: &str, more: &[&str]) -> Result<(Vec<u8>, String), Error> {
    let failed = |log: String| Error::Compile { file: name.to_owned(), log };
    let source = CString::new(text).map_err(|_| failed("the text holds a zero byte".into()))?;
    let label = CString::new(name).map_err(|_| failed("the name holds a zero byte".into()))?;
    let program = nvrtc::result::create_program(&source, Some(&label)).map_err(|e| failed(format!("{e:?}")))?;
    let mut options =
        vec![format!("--gpu-architecture={architecture}"), "--std=c++17".into(), "-default-device".into()];
    options.extend(more.iter().map(|it| (*it).to_owned()));
    // SAFETY: the program was created above and is destroyed at the end.
    unsafe {
        let compiled = nvrtc::result::compile_program(program, &options);
        let log = nvrtc::result::get_program_log(program).unwrap_or_default();
        let log: Vec<u8> = log.into_iter().map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect();
        let log = String::from_utf8_lossy(&log).trim().to_owned();
        let image = compiled.map_err(|e| failed(format!("{e:?}: {log}"))).and_then(|()| {
            let mut size = 0;
            nvrtc::sys::nvrtcGetCUBINSize(program, &raw mut size).result().map_err(|e| failed(format!("{e:?}")))?;
            let mut image = vec![0u8; size];
            let done = nvrtc::sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result();
            done.map(|()| image).map_err(|e| failed(format!("{e:?}")))
        });
        let _ = nvrtc::result::destroy_program(program);
        image.map(|it| (it, log))
    }
}

/// A compiled file on disk: a line that says what it is compiled from, then a checksum, then the image.
struct CacheEntry {
    path: Option<PathBuf>,
    key: u64,
}

impl CacheEntry {
    /// By text, architecture and compiler version.
    fn new(name: &str, text: &str, architecture: &str) -> Result<CacheEntry, Error> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both numbers outlive the call.
        unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) }
            .result()
            .map_err(|e| Error::Compile { file: "nvrtc".into(), log: format!("{e:?}") })?;
        let key = hash(&(text, architecture, major, minor));
        let path = cache_dir().map(|dir| dir.join(format!("{name}-{architecture}-{key:016x}.cubin")));
        Ok(CacheEntry { path, key })
    }

    /// The image, if it is there and whole.
    fn read(&self) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.path.as_deref()?).ok()?;
        let (head, image) = bytes.split_at_checked(16)?;
        let number = |at: usize| head[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let whole = number(0)? == self.key && number(8)? == hash(&image);
        whole.then(|| image.to_vec())
    }

    /// A cache that cannot be written costs time, not a run.
    fn write(&self, image: &[u8]) {
        let Some(path) = self.path.as_deref() else { return };
        let mut bytes = self.key.to_le_bytes().to_vec();
        bytes.extend(hash(&image).to_le_bytes());
        bytes.extend(image);
        let _ = write_whole(path, &bytes);
    }
}

/// To a name of this process' own first, so that nobody reads half a file.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let draft = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&draft, bytes)?;
    std::fs::rename(&draft, path)
}

/// `HALFBYTE_CACHE`, or `halfbyte` in the user's cache folder.
fn cache_dir() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let user = || var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|it| it.join(".cache")));
    var("HALFBYTE_CACHE").or_else(|| user().map(|it| it.join("halfbyte"))).map(|it| it.join("kernels"))
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
