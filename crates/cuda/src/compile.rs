//! Kernels from text to what a device runs: by NVRTC, or from a cache on disk.

use std::ffi::CString;
use std::fmt::Write;

use cudarc::nvrtc;

use crate::Version;
use crate::cache::CacheEntry;
use crate::error::Error;
use crate::matmul::Number;

/// What every kernel begins with: the 16-bit floating-point types, and reductions.
pub const COMMON: &str = include_str!("common.cuh");

/// What follows the element type.
const TENSOR_CORES: &str = include_str!("tensor_cores.cuh");

/// A module of kernels over elements of type `T`, compiled once for each element type that is met.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Its name, for messages and the cache, which no other has.
    pub name: &'static str,
    /// CUDA C++.
    pub text: &'static str,
}

/// The name of what a file is compiled to for an element type: `rms_norm.bf16`.
pub fn module_name(source: &str, element: Number) -> String {
    format!("{source}.{}", element.name())
}

/// What makes an element type `T`, and what tensor cores do with it, before a file that is compiled for it.
pub fn element_text(element: Number) -> String {
    let name = if element == Number::F32 { "float" } else { element.name() };
    format!("#undef T_KIND\n#define T_KIND {}\ntypedef {name} T;\n{TENSOR_CORES}\n", element.kind())
}

/// What a kernel begins with that waits for the one before by itself.
const WAITS_LATER: &str = "WAITS_LATER;";

/// The whole text that a compiler gets: [`COMMON`], the element type, the file, each of whose kernels begins by waiting for the one
/// before, as every launch expects, unless it says that it does so later.
pub fn full_text(text: &str, element: Number) -> String {
    let mut whole = format!("{COMMON}\n{}", element_text(element));
    let mut in_parameters = false;
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        in_parameters |= line.starts_with("KERNEL ");
        match line.split_once(") {").filter(|_| in_parameters) {
            Some((parameters, body)) => {
                let later = lines.peek().is_some_and(|it| it.trim_start().starts_with(WAITS_LATER));
                let wait = if later { "" } else { " after_the_one_before();" };
                let _ = write!(whole, "{parameters}) {{{wait}{body}");
                in_parameters = false;
            }
            None => whole.push_str(line),
        }
    }
    whole
}

/// A file of kernels as an architecture runs it: from the cache, or compiled. What the cache holds is not trusted further than its
/// checksum.
pub(crate) fn image(source: &Source, element: Number, architecture: &str) -> Result<Vec<u8>, Error> {
    let text = full_text(source.text, element);
    let name = module_name(source.name, element);
    let version = nvrtc_version()?;
    let key = (&text, architecture, version.major, version.minor);
    let entry = CacheEntry::new("kernels", &format!("{name}-{architecture}"), "cubin", &key);
    if let Some(image) = entry.read() {
        return Ok(image);
    }
    let image = compile(&name, &text, architecture)?;
    entry.write(&image);
    Ok(image)
}

/// The compiler's version. Its library must have been found.
pub(crate) fn nvrtc_version() -> Result<Version, Error> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both numbers outlive the call.
    unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) }
        .result()
        .map_err(|e| Error::Compile { file: "nvrtc".into(), log: format!("{e:?}") })?;
    Ok(Version { major: major.unsigned_abs(), minor: minor.unsigned_abs() })
}

/// Compiles a whole text for an architecture to a cubin.
///
/// # Errors
/// [`Error::Compile`] with the compiler's log.
pub fn compile(name: &str, text: &str, architecture: &str) -> Result<Vec<u8>, Error> {
    compile_with(name, text, architecture, &[]).map(|it| it.0)
}

/// Compiles a whole text for an architecture to a cubin, and gives what the assembler says of registers and spilled memory.
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
        // A C character is signed on some machines and not on others.
        let log: Vec<u8> = log.into_iter().map(|c| c.to_ne_bytes()[0]).take_while(|c| *c != 0).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_waits_for_the_one_before_and_nothing_else_does() {
        let file = "void f(int x) {\n}\nKERNEL one(int a,\n           int b) {\n    if (a) {\n    }\n}\nKERNEL two(int c) {}\nKERNEL three(int d) {\n    WAITS_LATER;\n}\n";
        let text = full_text(file, Number::Bf16);
        assert!(text.contains("void f(int x) {\n"));
        assert!(text.contains("int b) { after_the_one_before();\n    if (a) {\n"));
        assert!(text.contains("KERNEL two(int c) { after_the_one_before();}\n"));
        assert!(text.contains("KERNEL three(int d) {\n    WAITS_LATER;\n"));
        assert_eq!(text.matches("after_the_one_before();").count(), 2);
    }
}
