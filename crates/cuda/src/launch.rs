//! Starting kernels, whose files are compiled and loaded when they are first needed.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::hash::{Hash, Hasher};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use cudarc::driver::{result, sys};

use crate::Version;
use crate::compile::{Source, image, module_name, nvrtc_version};
use crate::counters::count;
use crate::error::Error;
use crate::gpu::{Gpu, call};
use crate::matmul::Number;
use crate::stream::Which;

/// How many threads a kernel gets.
#[derive(Debug, Clone, Copy, Hash)]
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

    /// As above, with a thread to as many elements as 16 bytes hold: what the kernels' `pointwise` wants.
    pub fn packs(n: usize, element: Number) -> Launch {
        Launch::elements(n.div_ceil(16 / element.size()))
    }

    /// One block a row.
    pub fn rows(rows: usize, threads: u32) -> Launch {
        Launch { grid: (rows.max(1) as u32, 1, 1), block: (threads, 1, 1), shared: 0 }
    }
}

/// An argument of a kernel as the driver takes it.
#[doc(hidden)]
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
    /// `Three` of addresses.
    Ptrs([u64; 3]),
    /// `Three<int>`.
    I32s([i32; 3]),
    /// `Three<float>`.
    F32s([f32; 3]),
}

impl Hash for Arg {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        match self {
            Arg::Ptr(it) | Arg::U64(it) => it.hash(state),
            Arg::I32(it) => it.hash(state),
            Arg::U32(it) => it.hash(state),
            Arg::F32(it) => it.to_bits().hash(state),
            Arg::Ptrs(it) => it.hash(state),
            Arg::I32s(it) => it.hash(state),
            Arg::F32s(it) => it.map(f32::to_bits).hash(state),
        }
    }
}

/// What a device has loaded.
#[derive(Default)]
pub(crate) struct Modules {
    functions: HashMap<(&'static str, Number, &'static str), Function>,
    modules: HashMap<(&'static str, Number), Module>,
}

#[derive(Clone, Copy)]
struct Module(sys::CUmodule);

struct Function {
    handle: sys::CUfunction,
    /// Bytes of dynamic shared memory that a launch of it may have.
    permitted: u32,
}

/// Dynamic shared memory that needs no permission, on every device.
const SHARED_WITHOUT_PERMISSION: u32 = 48 << 10;

impl Gpu {
    /// Runs a kernel after everything that was asked of the device before, or [`Gpu::beside`] that. Compiles its file first, if that is new. What
    /// [`kernels!`](crate::kernels) makes calls this, and nothing else should: nobody compares the arguments here.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, in number, type and order, and every pointer must lead to live memory of the size
    /// that the kernel reads or writes.
    ///
    /// # Errors
    /// [`Error::Compile`], [`Error::NoKernel`], [`Error::SharedMemory`], or [`Error::Launch`] if the launch is refused.
    #[doc(hidden)]
    pub unsafe fn launch_untyped(
        &self,
        (source, element): (&Source, Number),
        kernel: &'static str,
        launch: Launch,
        args: &[Arg],
    ) -> Result<(), Error> {
        self.bind()?;
        let stream = self.current();
        if !self.says(((source.name, element, kernel), launch, args, stream.which))? {
            return Ok(());
        }
        count(&self.tally.launches);
        if let Some(dry) = &self.dry {
            let bytes = dry.traffic(args);
            self.tally.bytes.fetch_add(bytes, Ordering::Relaxed);
            dry.pass_bytes(stream.which, bytes);
            dry.book(format!("{}/{kernel}", module_name(source.name, element)), bytes);
            return Ok(());
        }
        let function = self.function((source, element), kernel, launch.shared)?;
        let mut params: Vec<*mut c_void> = args
            .iter()
            .map(|arg| match arg {
                Arg::Ptr(v) | Arg::U64(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::I32(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::U32(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::F32(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::Ptrs(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::I32s(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::F32s(v) => std::ptr::from_ref(v).cast_mut().cast(),
            })
            .collect();
        // SAFETY: the function belongs to a module that is never unloaded, and the caller vouches for the arguments, which
        // the driver copies before it returns.
        let done = unsafe {
            if self.overlaps && stream.which == Which::Compute {
                launch_overlapping(function, launch, stream.raw, &mut params)
            } else {
                result::launch_kernel(function, launch.grid, launch.block, launch.shared, stream.raw, &mut params)
            }
        };
        call("cuLaunchKernel", done).map_err(|e| match e {
            Error::Call { name, code, .. } => Error::Launch { kernel, name, code },
            other => other,
        })
    }

    /// A kernel that may be started with so many bytes of dynamic shared memory.
    fn function(
        &self,
        (source, element): (&Source, Number),
        kernel: &'static str,
        shared: u32,
    ) -> Result<sys::CUfunction, Error> {
        let mut loaded = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (source.name, element, kernel);
        if !loaded.functions.contains_key(&key) {
            let handle = self.fetch(&mut loaded.modules, (source, element), kernel)?;
            loaded.functions.insert(key, Function { handle, permitted: SHARED_WITHOUT_PERMISSION });
        }
        let Some(function) = loaded.functions.get_mut(&key) else { unreachable!("put there above") };
        // Asked for by every launch that needs more than those before, since any of them may be the first to need it.
        if shared > function.permitted {
            let limit = self.shared_memory_limit();
            if shared > limit {
                return Err(Error::SharedMemory { kernel, asked: shared, limit });
            }
            let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is alive.
            let set = unsafe { result::function::set_function_attribute(function.handle, which, shared.cast_signed()) };
            call("cuFuncSetAttribute", set)?;
            function.permitted = shared;
        }
        Ok(function.handle)
    }

    fn fetch(
        &self,
        modules: &mut HashMap<(&'static str, Number), Module>,
        (source, element): (&Source, Number),
        kernel: &'static str,
    ) -> Result<sys::CUfunction, Error> {
        let module = match modules.get(&(source.name, element)) {
            Some(module) => *module,
            None => {
                let image = image(source, element, &self.architecture())?;
                // SAFETY: the image is a whole cubin for this device.
                let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
                let module = Module(call("cuModuleLoadData", module)?);
                modules.insert((source.name, element), module);
                module
            }
        };
        let name = CString::new(kernel).map_err(|_| Error::NoKernel { file: source.name, kernel })?;
        // SAFETY: the module was loaded and stays.
        let function = unsafe { result::module::get_function(module.0, name) };
        function.map_err(|_| Error::NoKernel { file: source.name, kernel })
    }

    /// What NVRTC calls the device: `sm_80`; `sm_90a` on Hopper, which names the instructions that only Hopper has.
    pub fn architecture(&self) -> String {
        let oldest = Version { major: 0, minor: 0 };
        architecture(self.info().compute_capability, nvrtc_version().unwrap_or(oldest))
    }
}

/// Starts a kernel whose blocks may come to the device while the last blocks of the kernel before run out: all that lies between two
/// kernels is then the wait at the beginning of the second.
///
/// # Safety
/// As `cuLaunchKernel`; and the kernel waits before it reads or writes anything, as [`full_text`](crate::full_text) sees to.
unsafe fn launch_overlapping(
    function: sys::CUfunction,
    launch: Launch,
    stream: sys::CUstream,
    params: &mut [*mut c_void],
) -> Result<(), result::DriverError> {
    let mut overlap = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: launch.grid.0,
        gridDimY: launch.grid.1,
        gridDimZ: launch.grid.2,
        blockDimX: launch.block.0,
        blockDimY: launch.block.1,
        blockDimZ: launch.block.2,
        sharedMemBytes: launch.shared,
        hStream: stream,
        attrs: &raw mut overlap,
        numAttrs: 1,
    };
    // SAFETY: the configuration and the attribute live until the driver returns; the caller vouches for the rest.
    unsafe { sys::cuLaunchKernelEx(&raw const config, function, params.as_mut_ptr(), std::ptr::null_mut()) }.result()
}

/// Compute capability 9.0 has instructions that no other device has, and NVRTC a name for it since 12.0.
fn architecture(capability: Version, nvrtc: Version) -> String {
    let own = capability == Version { major: 9, minor: 0 } && nvrtc >= Version { major: 12, minor: 0 };
    format!("sm_{}{}{}", capability.major, capability.minor, if own { "a" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hopper_gets_its_own_instructions_where_the_compiler_knows_them() {
        let name = |major, minor, nvrtc| architecture(Version { major, minor }, Version { major: nvrtc, minor: 0 });
        assert_eq!(name(9, 0, 13), "sm_90a");
        assert_eq!(name(9, 0, 12), "sm_90a");
        assert_eq!(name(9, 0, 11), "sm_90");
        assert_eq!(name(8, 9, 13), "sm_89");
        assert_eq!(name(12, 0, 13), "sm_120");
    }
}
