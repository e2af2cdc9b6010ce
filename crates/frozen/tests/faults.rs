//! A device that failed: what is read from it afterwards is an error, and no number.
#![cfg(target_os = "linux")]

use halfbyte_frozen::Format;
use halfbyte_ops::frozen::{dense, on_host};
use halfbyte_tensor::{DType, Device};
use halfbyte_testkit::{cuda::gpu, noise};

#[test]
fn a_matrix_that_cannot_be_read_is_an_error() {
    let Some(gpu) = gpu() else { return };
    for format in [Format::QLORA, Format::DENSE] {
        let here = format.freeze(noise(&[4, 64], DType::F32, 1)).unwrap();
        let there = here.to_device(&Device::Cuda(gpu.clone())).unwrap().unwrap();
        gpu.fault(halfbyte_cuda::Error::OutOfMemory { asked: 1 << 40, live: 0 });
        assert!(there.to_device(&Device::Cpu).is_err());
        assert!(on_host(&there).is_err());
        let message = dense(&there).unwrap_err().to_string();
        assert!(message.contains("memory"), "{message}");
        gpu.clear_fault();
        assert!(dense(&there).is_ok());
    }
}
