//! Every format on a GPU (or the CPU in the guise of one): the products are those of the CPU, and what comes back is what went there.
#![cfg(target_os = "linux")]

use halfbyte_autograd::{Param, Tape};
use halfbyte_frozen::{Format, FrozenMatrix, Quant};
use halfbyte_ops::{
    frozen::{Coded, OnDevice, dense},
    frozen_linear::frozen_linear,
    gpu_product::Window,
};
use halfbyte_tensor::{DType, Device, Tensor};
use halfbyte_testkit::{
    cuda::{fresh_gpu, gpu},
    noise, noise_in,
};
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
            let mut wanted = vec![0.0; 130];
            let matrix = dense(matrix).unwrap();
            for (row, got) in matrix.data::<f32>().chunks(130).enumerate() {
                here.source().read_f32(row, 0, &mut wanted);
                assert_eq!(got, wanted, "{format:?}");
            }
        }
    }
}

/// What lies on a device in codes.
fn coded(matrix: &Arc<dyn FrozenMatrix>) -> &dyn Coded {
    match matrix.on_device() {
        Some(OnDevice::Coded(it)) => it,
        _ => panic!("the matrix lies on a device, in codes"),
    }
}

/// Anywhere in a larger workspace, aligned or not: the values are those of the codec, and what lies around them stays.
#[test]
fn a_matrix_is_decoded_into_any_window() {
    let Some(gpu) = gpu() else { return };
    let device = Device::Cuda(gpu);
    for format in formats().into_iter().filter(|it| it.quant != Quant::None) {
        for (out, inner, column, stride) in [(5, 48, 8, 64), (3, 40, 16, 56), (4, 33, 3, 41), (9, 130, 0, 130)] {
            let here = format.freeze(noise(&[out, inner], DType::F32, 3)).unwrap();
            let there = here.to_device(&device).unwrap().unwrap();
            let mut workspace = Tensor::zeros_on(&device, &[out + 2, stride], DType::F32);
            let window = Window::whole(&mut workspace).rows(1, out).columns(column, inner);
            coded(&there).decoder().decode(window).unwrap();
            let (got, mut wanted) = (workspace.to_device(&Device::Cpu).unwrap(), vec![0.0; inner]);
            for (row, got) in got.data::<f32>().chunks(stride).enumerate() {
                let mut expected = vec![0.0; stride];
                if (1..=out).contains(&row) {
                    here.source().read_f32(row - 1, 0, &mut wanted);
                    expected[column..][..inner].copy_from_slice(&wanted);
                }
                assert_eq!(got, expected, "{format:?} {out}x{inner} row {row}");
            }
        }
    }
}

/// More than a kernel takes from the codes, whatever the dtype.
const MANY_ROWS: usize = 33;

/// Few rows are multiplied from the codes themselves, many after these are decoded: the same products, but for roundings.
#[test]
fn few_rows_give_what_many_give() {
    let Some(gpu) = gpu() else { return };
    let device = Device::Cuda(gpu);
    let four_bit = formats().into_iter().filter(|it| !matches!(it.quant, Quant::None | Quant::Int8));
    for (at, format) in four_bit.enumerate() {
        for (out, inner) in [(1, 1), (9, 64), (17, 192), (33, 130), (11, 1088), (8, 2112)] {
            for dtype in [DType::F32, DType::Bf16, DType::F16] {
                let here = format.freeze(noise(&[out, inner], DType::F32, 3)).unwrap();
                let there = here.to_device(&device).unwrap().unwrap();
                assert!(coded(&there).four_bit().is_some_and(|it| it.dims == (out, inner)));
                let x = noise(&[MANY_ROWS, inner], dtype, 1);
                let many = run(&there, &x, &noise(&[MANY_ROWS, out], dtype, 2), &device)[0].clone();
                let largest = many.iter().fold(1e-3f32, |m, it| m.max(it.abs()));
                // Rounded are the decoded values, or what codes stand for and results. f32 sums differ in their order.
                let relative = [2e-6, 2.0f32.powi(-7), 2.0f32.powi(-9)][dtype as usize];
                let rows =
                    if at % 2 == 0 || dtype == DType::F32 { [1, 2, 3, 5, 8][at % 5] } else { [9, 16, 32][at % 3] };
                let few = Tensor::from_vec(&[rows, inner], x.to_f32_vec()[..rows * inner].to_vec()).to_dtype(dtype);
                let dy = noise(&[rows, out], dtype, 2);
                let [y, again] = [0, 1].map(|_| run(&there, &few, &dy, &device)[0].clone());
                assert_eq!(y, again, "the order of the sums is fixed");
                for (g, w) in y.iter().zip(&many) {
                    assert!((g - w).abs() <= relative * largest, "{format:?} {rows} of {out}x{inner} {dtype}: {g} {w}");
                }
            }
        }
    }
}

/// Which columns hold outliers stays on the device: nobody waits to hear of it, be it none of them or all.
#[test]
fn outliers_are_left_out_of_the_integers_without_a_wait() {
    let Some(gpu) = fresh_gpu() else { return };
    let (device, format) = (Device::Cuda(gpu.clone()), Format { quant: Quant::Int8, ..Format::DENSE });
    for (rows, inner, out) in [(6, 48, 5), (1, 33, 70), (70, 130, 67), (40, 700, 3)] {
        let here = format.freeze(noise(&[out, inner], DType::F32, 3)).unwrap();
        let there = here.to_device(&device).unwrap().unwrap();
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for outliers in [0, 1, inner / 3, inner] {
                let mut x = noise(&[rows, inner], dtype, 1).to_f32_vec();
                // Some in the same row, some in the same column, 7 being no divisor of an extent.
                (0..outliers).for_each(|i| x[(7 * i % rows) * inner + i * inner / outliers] = 6.0 + i as f32 / 8.0);
                let x = Tensor::from_vec(&[rows, inner], x).to_dtype(dtype);
                let on_gpu = x.to_device(&device).unwrap();
                let before = gpu.counters();
                let got = there.forward(&on_gpu).unwrap().unwrap();
                let asked = gpu.counters().since(&before);
                let what = format!("{outliers} of {rows}x{inner} {dtype}");
                assert_eq!((asked.synchronisations, asked.downloads), (0, 0), "{what}");
                let (got, wanted) = (got.to_f32_vec(), here.forward(&x).unwrap().unwrap().to_f32_vec());
                let largest = wanted.iter().fold(0.0f32, |m, it| m.max(it.abs()));
                for (g, w) in got.iter().zip(&wanted) {
                    assert!((g - w).abs() <= 2e-6 * largest, "{what}: {g} {w}");
                }
            }
        }
    }
}

/// A dry matrix is the matrix less its contents: its parts take the same bytes, and products with it the same way.
#[test]
fn a_dry_matrix_counts_what_a_stored_one_takes() {
    for format in formats() {
        let here = format.freeze(noise(&[33, 130], DType::Bf16, 3)).unwrap();
        let (moved, made) = (halfbyte_testkit::cuda::dry(), halfbyte_testkit::cuda::dry());
        let there = here.to_device(&Device::Cuda(moved.clone())).unwrap().unwrap();
        let on = Device::Cuda(made.clone());
        let dry = format.dry(&on, (33, 130), DType::Bf16);
        assert_eq!(moved.stats().live, made.stats().live, "{format:?}");
        let facts = |it: &dyn FrozenMatrix| (it.dims(), it.bytes(), it.format());
        assert_eq!(facts(dry.as_ref()), facts(there.as_ref()));
        assert_eq!(facts(dry.as_ref()), facts(here.as_ref()));
        let x = Tensor::scratch_on(&on, &[20, 130], DType::Bf16);
        let kept: &'static Arc<dyn FrozenMatrix> = Box::leak(Box::new(dry));
        let param = Param::new("x", x);
        let tape = Tape::recording();
        let y = frozen_linear(&tape, &tape.param(&param), kept.as_ref(), None).unwrap();
        assert_eq!((y.value().shape(), y.value().dtype()), (&[20, 33][..], DType::Bf16));
        let dy = Tensor::scratch_on(&on, &[20, 33], DType::Bf16);
        let end = tape.record("seed", [&y], Tensor::scalar(0.0), move |_, _| Ok([Some(dy)]));
        drop(y);
        assert_eq!(tape.backward(end).unwrap().get(&param).unwrap().shape(), [20, 130]);
        assert!(made.counters().operations >= 2 * 2 * 20 * 33 * 130);
    }
}
