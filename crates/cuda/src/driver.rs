//! The few functions of the driver that a probe needs, each looked up by name so that its absence is an error and no panic.
//!
//! They are declared here and not taken from the bindings: those give results as an enum, and a number that a newer driver
//! invents would not be a value of it.

use std::ffi::{CStr, c_char, c_int};

use cudarc::driver::sys::culib;

use crate::error::Error;
use crate::library::Library;
use crate::{DeviceInfo, Version};

type Init = unsafe extern "C" fn(u32) -> c_int;
type OutInt = unsafe extern "C" fn(*mut c_int) -> c_int;
type DeviceGet = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type DeviceName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
type DeviceMemory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
type DeviceAttribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
type ErrorName = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;

const SUCCESS: c_int = 0;
const NO_DEVICE: c_int = 100;
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;

/// An opened driver.
pub(crate) struct Driver {
    path: String,
}

impl Driver {
    /// Takes the driver's library, which must have been found.
    pub(crate) fn new(library: &Library) -> Option<Self> {
        library.found.clone().map(|path| Self { path })
    }

    /// The newest CUDA version that the driver supports; can be asked before `init`.
    pub(crate) fn version(&self) -> Result<Version, Error> {
        let number = self.int("cuDriverGetVersion")?;
        Ok(Version { major: number.unsigned_abs() / 1000, minor: number.unsigned_abs() % 1000 / 10 })
    }

    /// Must succeed before devices can be asked for.
    pub(crate) fn init(&self) -> Result<(), Error> {
        // SAFETY: this is the function's C signature.
        let init: Init = unsafe { self.symbol("cuInit")? };
        // SAFETY: 0 is the only value that the flags may have; calling it again does nothing.
        self.result("cuInit", unsafe { init(0) })
    }

    /// All visible devices, in the driver's order.
    pub(crate) fn devices(&self) -> Result<Vec<DeviceInfo>, Error> {
        let count = self.int("cuDeviceGetCount")?;
        (0..count).map(|ordinal| self.device(ordinal)).collect()
    }

    fn device(&self, ordinal: c_int) -> Result<DeviceInfo, Error> {
        // SAFETY: these are the functions' C signatures.
        let (get, name, memory): (DeviceGet, DeviceName, DeviceMemory) = unsafe {
            (self.symbol("cuDeviceGet")?, self.symbol("cuDeviceGetName")?, self.symbol("cuDeviceTotalMem_v2")?)
        };
        let mut handle = 0;
        // SAFETY: `handle` outlives the call, and the ordinal is below the count.
        self.result("cuDeviceGet", unsafe { get(&raw mut handle, ordinal) })?;
        let mut text = [0 as c_char; 256];
        // SAFETY: the driver writes at most the given number of characters, the final zero among them.
        self.result("cuDeviceGetName", unsafe { name(text.as_mut_ptr(), text.len() as c_int, handle) })?;
        // A C character is signed on some machines and not on others.
        let bytes: Vec<u8> = text.iter().map(|c| c.to_ne_bytes()[0]).take_while(|c| *c != 0).collect();
        let mut total = 0;
        // SAFETY: `total` outlives the call.
        self.result("cuDeviceTotalMem_v2", unsafe { memory(&raw mut total, handle) })?;
        Ok(DeviceInfo {
            ordinal: ordinal.unsigned_abs(),
            name: String::from_utf8_lossy(&bytes).into_owned(),
            compute_capability: Version {
                major: self.attribute(COMPUTE_CAPABILITY_MAJOR, handle)?,
                minor: self.attribute(COMPUTE_CAPABILITY_MINOR, handle)?,
            },
            memory_bytes: total as u64,
        })
    }

    fn attribute(&self, which: c_int, handle: c_int) -> Result<u32, Error> {
        const CALL: &str = "cuDeviceGetAttribute";
        // SAFETY: this is the function's C signature.
        let attribute: DeviceAttribute = unsafe { self.symbol(CALL)? };
        let mut value = 0;
        // SAFETY: `value` outlives the call, and the handle is the driver's own.
        self.result(CALL, unsafe { attribute(&raw mut value, which, handle) })?;
        Ok(value.unsigned_abs())
    }

    /// Calls a function that gives one number.
    fn int(&self, call: &'static str) -> Result<c_int, Error> {
        // SAFETY: both callers name functions of this C signature.
        let function: OutInt = unsafe { self.symbol(call)? };
        let mut value = 0;
        // SAFETY: `value` outlives the call.
        self.result(call, unsafe { function(&raw mut value) })?;
        Ok(value)
    }

    /// Looks a function up.
    ///
    /// # Safety
    /// `F` must be a function pointer of the C signature that the driver gives `name`.
    unsafe fn symbol<F: Copy>(&self, name: &'static str) -> Result<F, Error> {
        // SAFETY: a `Driver` exists only when the library was opened, so `culib` does not panic; the caller vouches for `F`.
        let found = unsafe { culib().get::<F>(name.as_bytes()).map(|symbol| *symbol) };
        found.map_err(|_| Error::MissingSymbol { path: self.path.clone(), symbol: name })
    }

    fn result(&self, call: &'static str, code: c_int) -> Result<(), Error> {
        match code {
            SUCCESS => Ok(()),
            NO_DEVICE => Err(Error::NoDevice),
            _ => Err(Error::Call { call, name: self.error_name(code), code }),
        }
    }

    /// The driver's own name for an error; a driver that cannot say leaves the number to speak.
    fn error_name(&self, code: c_int) -> String {
        let unknown = || "an unnamed error".to_owned();
        // SAFETY: this is the function's C signature.
        let Ok(name) = (unsafe { self.symbol::<ErrorName>("cuGetErrorName") }) else {
            return unknown();
        };
        let mut text = std::ptr::null();
        // SAFETY: `text` outlives the call.
        if unsafe { name(code, &raw mut text) } != SUCCESS || text.is_null() {
            return unknown();
        }
        // SAFETY: on success the driver points to a string of its own that lives as long as the library, which is never closed.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}
