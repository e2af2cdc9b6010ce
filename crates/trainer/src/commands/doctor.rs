use anyhow::bail;
use halfbyte_cuda::{DeviceInfo, Gpu, probe};
use halfbyte_ops::gpu_product::{Operand, product};
use halfbyte_tensor::{DType, Device, Tensor};
use std::io::Write;

/// `halfbyte doctor`: what there is to compute on, and whether it computes.
pub(crate) fn doctor() -> anyhow::Result<()> {
    super::devices()?;
    let mut out = std::io::stdout().lock();
    let found = probe();
    match found.require() {
        Ok(devices) => devices.iter().try_for_each(|it| attempt(it, &mut out))?,
        Err(missing) => {
            writeln!(out, "CUDA cannot be used: {missing}")?;
            return Ok(());
        }
    }
    writeln!(out, "CUDA is ready: --device cuda, or nothing at all")?;
    Ok(())
}

/// A kernel, a product and free memory of one device.
fn attempt(device: &DeviceInfo, out: &mut impl Write) -> anyhow::Result<()> {
    let gpu = Gpu::open(device.ordinal)?;
    writeln!(out, "cuda:{}", device.ordinal)?;
    let (free, total) = gpu.memory()?;
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    writeln!(out, "  memory    {:.1} of {:.1} GiB free", gib(free), gib(total))?;
    let device = Device::Cuda(gpu);
    // A kernel that NVRTC compiles, and a product by cuBLASLt; whole numbers come out exactly.
    let rows = |n: usize| (0..n).map(|it| (it % 5) as f32 - 2.0).collect::<Vec<f32>>();
    let x = Tensor::from_vec(&[8, 16], rows(128)).to_device(&device)?.to_dtype(DType::Bf16);
    writeln!(out, "  kernels   NVRTC compiles them and they run")?;
    let y = product(1.0, Operand::new(&x), Operand::new(&x).t(), DType::F32)?.to_device(&Device::Cpu)?;
    let values = rows(128);
    let exact = y.data::<f32>().iter().enumerate().all(|(i, y)| {
        let (a, b) = (&values[i / 8 * 16..][..16], &values[i % 8 * 16..][..16]);
        *y == a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>()
    });
    if !exact {
        bail!("the GPU multiplies wrongly: driver and cuBLASLt may not belong together");
    }
    writeln!(out, "  products  cuBLASLt multiplies, and rightly")?;
    Ok(())
}
