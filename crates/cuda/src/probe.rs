//! What a machine has: driver, devices, libraries; and whether that is enough.

use std::fmt;

use crate::driver::Driver;
use crate::library::{DRIVER_FILE, Library};
use crate::{Error, OLDEST_DRIVER};

/// A version of CUDA, or a compute capability: major and minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The number before the point.
    pub major: u32,
    /// The number behind it.
    pub minor: u32,
}

/// A driver that works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverInfo {
    /// The newest CUDA version that it supports.
    pub version: Version,
    /// The library's path.
    pub path: String,
}

/// One device that the driver sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number in the driver's order, after `CUDA_VISIBLE_DEVICES`.
    pub ordinal: u32,
    /// Its name, such as `NVIDIA A100-SXM4-40GB`.
    pub name: String,
    /// What its instructions can do; bf16 tensor cores begin at 8.0.
    pub compute_capability: Version,
    /// Its memory in bytes.
    pub memory_bytes: u64,
}

/// Everything that [`probe`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The driver, or why there is none to use. A driver without devices is [`Error::NoDevice`].
    pub driver: Result<DriverInfo, Error>,
    /// The devices; empty whenever `driver` is an error.
    pub devices: Vec<DeviceInfo>,
    /// The driver's library, NVRTC and cuBLASLt, found or not.
    pub libraries: Vec<Library>,
}

/// Finds out what of CUDA this machine has. Never panics, whatever is missing; the libraries it finds stay open.
///
/// The first call takes milliseconds without a driver, and up to a second where a driver wakes a device.
#[must_use]
pub fn probe() -> Probe {
    let library = Library::driver();
    let (driver, devices) = match ask(&library) {
        Ok((info, devices)) => (Ok(info), devices),
        Err(e) => (Err(e), Vec::new()),
    };
    let mut libraries = vec![library];
    libraries.extend(Library::runtime());
    Probe { driver, devices, libraries }
}

fn ask(library: &Library) -> Result<(DriverInfo, Vec<DeviceInfo>), Error> {
    let driver = Driver::new(library).ok_or(Error::NoDriver { library: DRIVER_FILE })?;
    // The version first: an old driver lacks functions, so that no other call may be made before this is known.
    let version = driver.version()?;
    if version < OLDEST_DRIVER {
        return Err(Error::OldDriver { found: version, oldest: OLDEST_DRIVER });
    }
    driver.init()?;
    let devices = driver.devices()?;
    if devices.is_empty() {
        return Err(Error::NoDevice);
    }
    Ok((DriverInfo { version, path: library.found.clone().unwrap_or_default() }, devices))
}

impl Probe {
    /// The devices, if a program can compile kernels and multiply matrices on them.
    ///
    /// # Errors
    /// The first thing that is missing: the driver, a device, or one of the libraries.
    pub fn require(&self) -> Result<&[DeviceInfo], Error> {
        let driver = self.driver.as_ref().map_err(Clone::clone)?;
        match self.libraries.iter().find(|l| l.found.is_none()) {
            // A driver runs what is built for its own major version and for older ones.
            Some(absent) => {
                Err(Error::NoLibrary { library: absent.file, major: driver.version.major.min(NEWEST_MAJOR) })
            }
            None => Ok(&self.devices),
        }
    }
}

/// The major version of CUDA whose libraries the bindings are made for.
const NEWEST_MAJOR: u32 = 13;

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        write!(f, "cuda:{} {}, compute capability {}, {gib:.1} GiB", self.ordinal, self.name, self.compute_capability)
    }
}

/// One fact a line, without a line end behind the last.
impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.driver {
            Ok(driver) => write!(f, "CUDA driver: supports CUDA {}", driver.version)?,
            Err(e) => write!(f, "CUDA: {e}")?,
        }
        for device in &self.devices {
            write!(f, "\n{device}")?;
        }
        for library in &self.libraries {
            write!(f, "\n  {:<8}  {}", library.name, library.found.as_deref().unwrap_or("not found"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library(name: &'static str, file: &'static str, found: bool) -> Library {
        Library { name, file, found: found.then(|| format!("/lib/{file}")) }
    }

    fn complete() -> Probe {
        let version = Version { major: 12, minor: 8 };
        let device = DeviceInfo {
            ordinal: 0,
            name: "Some GPU".into(),
            compute_capability: Version { major: 9, minor: 0 },
            memory_bytes: 80 << 30,
        };
        Probe {
            driver: Ok(DriverInfo { version, path: "/lib/libcuda.so.1".into() }),
            devices: vec![device],
            libraries: vec![library("driver", "libcuda.so.1", true), library("NVRTC", "libnvrtc.so", true)],
        }
    }

    #[test]
    fn what_is_missing_is_named_with_a_remedy() {
        assert_eq!(complete().require().unwrap().len(), 1);
        let mut probe = complete();
        probe.libraries[1].found = None;
        let message = probe.require().unwrap_err().to_string();
        assert!(message.contains("libnvrtc.so") && message.contains("CUDA 12"), "{message}");
        probe.driver = Err(Error::NoDriver { library: DRIVER_FILE });
        assert_eq!(
            probe.require().unwrap_err().to_string(),
            "no CUDA driver: libcuda.so.1 was not found; install the NVIDIA driver, or use --device cpu"
        );
    }

    #[test]
    fn the_report_names_device_memory_and_libraries() {
        let mut probe = complete();
        probe.libraries[1].found = None;
        let text = probe.to_string();
        assert_eq!(
            text,
            "CUDA driver: supports CUDA 12.8\ncuda:0 Some GPU, compute capability 9.0, 80.0 GiB\n  driver    /lib/libcuda.so.1\n  NVRTC     not found"
        );
    }
}
