//! Every format on a GPU (or the CPU in the guise of one): the products are those of the CPU, and what comes back is what went there.
#![cfg(target_os = "linux")]

use halfbyte_autograd::{Param, Tape};
use halfbyte_frozen::{Format, FrozenMatrix, Quant};
use halfbyte_ops::frozen_linear::frozen_linear;
use halfbyte_tensor::{DType, Device, Tensor};
use halfbyte_testkit::{cuda::gpu, noise, noise_in};
use std::sync::Arc;

fn formats() -> Vec<Format> {
    let four = [Quant::Nf4, Quant::Fp4, Quant::Int4]
        .into_iter()
        .flat_map(|quant| [false, true].map(|double_quant| Format { quant, block_size: 64, double_quant }));
    four.chain([Format::DENSE, Format { quant: Quant::Int8, ..Format::DENSE }]).collect()
}

/// The output and the input's gradient.
fn run(matrix: &Arc<dyn FrozenMatrix>, x: &Tensor, dy: &Tensor, device: &Device) -> [Vec<f32>; 2] {
    let kept: &'static Arc<dyn FrozenMatrix> = Box::leak(Box::new(matrix.clone()));
    let matrix = kept.as_ref();
    let param = Param::new("x", x.to_device(device).unwrap());
    let tape = Tape::recording();
    let y = frozen_linear(&tape, &tape.param(&param), matrix, None).unwrap();
    let value = y.value().to_f32_vec();
    let dy = dy.to_device(device).unwrap();
    let end = tape.record("seed", [&y], Tensor::scalar(0.0), move |_, _| Ok([Some(dy)]));
    drop(y);
    [value, tape.backward(end).unwrap().get(&param).unwrap().to_f32_vec()]
}

#[test]
fn products_on_a_gpu_are_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let device = Device::Cuda(gpu);
    for format in formats() {
        for (out, inner, low) in [(5, 48, -1.0), (33, 130, -1.0), (40, 64, -9.0)] {
            // The last has outliers, for LLM.int8().
            let x = noise_in(&[6, inner], DType::F32, 1, low, 1.0);
            let dy = noise(&[6, out], DType::F32, 2);
            let here = format.freeze(noise(&[out, inner], DType::F32, 3)).unwrap();
            let there = here.to_device(&device).unwrap().expect("every format knows the way");
            assert_eq!((there.dims(), there.bytes(), there.format()), (here.dims(), here.bytes(), here.format()));
            let (got, wanted) = (run(&there, &x, &dy, &device), run(&here, &x, &dy, &Device::Cpu));
            for (got, wanted) in got.iter().zip(&wanted) {
                let largest = wanted.iter().fold(0.0f32, |m, it| m.max(it.abs()));
                for (g, w) in got.iter().zip(wanted) {
                    assert!((g - w).abs() <= 2e-6 * largest, "{format:?} {out}x{inner}: {g} {w}");
                }
            }
        }
    }
}

#[test]
fn what_comes_back_decodes_to_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    for format in formats() {
        let here = format.freeze(noise(&[33, 130], DType::Bf16, 3)).unwrap();
        let there = here.to_device(&Device::Cuda(gpu.clone())).unwrap().unwrap();
        let back = there.to_device(&Device::Cpu).unwrap().unwrap();
        for matrix in [&there, &back] {
            let (mut got, mut wanted) = (vec![0.0; 130], vec![0.0; 130]);
            for row in [0, 17, 32] {
                matrix.source().read_f32(row, 0, &mut got);
                here.source().read_f32(row, 0, &mut wanted);
                assert_eq!(got, wanted, "{format:?}");
            }
        }
    }
}
