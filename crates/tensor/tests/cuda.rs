//! Tensors on a GPU, or on the CPU in the guise of one.
#![cfg(target_os = "linux")]

use halfbyte_tensor::{DType, Device, Error, Tensor};
use halfbyte_testkit::{cuda::gpu, noise};

const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

#[test]
fn what_is_moved_there_and_back_is_the_same() {
    let Some(gpu) = gpu() else { return };
    let device = Device::Cuda(gpu);
    for dtype in FLOATS {
        let x = noise(&[7, 33], dtype, 1);
        let there = x.to_device(&device).unwrap();
        assert_eq!((there.shape(), there.dtype(), there.device()), (x.shape(), dtype, device.clone()));
        let back = there.to_device(&Device::Cpu).unwrap();
        assert_eq!(back.to_f32_vec(), x.to_f32_vec());
    }
}

#[test]
fn conversions_and_sums_have_the_bits_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let device = Device::Cuda(gpu);
    let mut values = noise(&[5000], DType::F32, 2).to_f32_vec();
    values.extend([
        0.0,
        -0.0,
        1.0e-40,
        65504.0,
        65520.0,
        3.0e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1.001_953_1,
    ]);
    let x = Tensor::from_vec(&[values.len()], values);
    for from in FLOATS {
        for to in FLOATS {
            let (here, there) = (x.to_dtype(from), x.to_dtype(from).to_device(&device).unwrap());
            let (mut sum_here, mut sum_there) = (here.to_dtype(to), there.to_dtype(to));
            assert!(alike(&sum_there, &sum_here), "{from} to {to}");
            let turned = Tensor::from_vec(&[5010], here.to_f32_vec().into_iter().rev().collect()).to_dtype(from);
            sum_here.add_assign(&turned);
            sum_there.add_assign(&turned.to_device(&device).unwrap());
            assert!(alike(&sum_there, &sum_here), "{to} += {from}");
        }
    }
}

/// Of the same bits, but for those of a NaN: its payload is the device's own.
fn alike(a: &Tensor, b: &Tensor) -> bool {
    let (a, b) = (a.to_f32_vec(), b.to_f32_vec());
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
}

#[test]
fn a_write_to_a_shared_tensor_copies_it() {
    let Some(gpu) = gpu() else { return };
    let x = Tensor::from_vec(&[3], vec![1.0f32, 2.0, 3.0]).to_device(&Device::Cuda(gpu)).unwrap();
    let mut y = x.clone();
    y.add_assign(&x);
    assert_eq!((x.to_f32_vec(), y.to_f32_vec()), (vec![1.0, 2.0, 3.0], vec![2.0, 4.0, 6.0]));
}

#[test]
fn zeros_are_zero_and_what_is_not_finite_is_found() {
    let Some(gpu) = gpu() else { return };
    let device = Device::Cuda(gpu);
    let zeros = Tensor::zeros_on(&device, &[1000], DType::Bf16);
    assert!(zeros.is_finite().unwrap() && zeros.to_f32_vec().iter().all(|it| *it == 0.0));
    let mut values = vec![0.5f32; 1000];
    values[777] = f32::NAN;
    assert!(!Tensor::from_vec(&[1000], values).to_device(&device).unwrap().is_finite().unwrap());
}

#[test]
fn memory_that_is_not_there_is_an_error_and_no_panic() {
    let Some(gpu) = gpu() else { return };
    let x = Tensor::zeros(&[1 << 20], DType::F32);
    gpu.limit_memory(Some(gpu.stats().live + (1 << 20)));
    let refused = x.to_device(&Device::Cuda(gpu.clone()));
    gpu.limit_memory(None);
    let Err(Error::Cuda(error)) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("out of memory") && error.to_string().contains("4194304"), "{error}");
    assert!(x.to_device(&Device::Cuda(gpu)).is_ok(), "and it goes on");
}

/// More than the ring of page-locked memory holds at a time.
#[test]
fn what_is_written_piece_by_piece_is_there_whole() {
    let Some(gpu) = gpu() else { return };
    let device = Device::Cuda(gpu);
    for len in [0usize, 1, 3 << 20, (45 << 20) + 7] {
        let byte = |at: usize| (at * 7 / 3) as u8;
        let mut next = 0;
        let there = Tensor::filled_on(&device, &[len], DType::U8, |at, bytes| {
            assert_eq!(at, next, "pieces come in order");
            next += bytes.len();
            bytes.iter_mut().enumerate().for_each(|(i, it)| *it = byte(at + i));
            Ok::<(), halfbyte_tensor::Error>(())
        })
        .unwrap();
        assert_eq!(next, len);
        let back = there.to_device(&Device::Cpu).unwrap();
        assert!(back.data::<u8>().iter().enumerate().all(|(at, it)| *it == byte(at)), "{len} bytes");
    }
    // Who writes may fail, and the next who does is none the worse for it.
    let mut asked = 0;
    let failed = Tensor::filled_on(&device, &[40 << 20], DType::U8, |at, _| {
        asked += 1;
        if at == 0 { Ok(()) } else { Err(halfbyte_tensor::Error::invalid("test", "a broken disk")) }
    });
    assert!(failed.unwrap_err().to_string().contains("a broken disk"));
    assert_eq!(asked, 2);
    let fine = Tensor::filled_on(&device, &[40 << 20], DType::U8, |_, bytes| {
        bytes.fill(9);
        Ok::<(), halfbyte_tensor::Error>(())
    });
    assert!(fine.unwrap().to_device(&Device::Cpu).unwrap().data::<u8>().iter().all(|it| *it == 9));
}

#[test]
fn tensors_beside_each_other_are_each_like_any_other() {
    let Some(gpu) = gpu() else { return };
    let like = noise(&[5, 16], DType::Bf16, 1).to_device(&Device::Cuda(gpu.clone())).unwrap();
    let made = like.scratch_side_by_side((5, &[16, 24, 8]), DType::Bf16, 8);
    let [mut a, b, c]: [Tensor; 3] = made.try_into().unwrap();
    assert!(a.is_beside(&b) && b.is_beside(&c) && !a.is_beside(&c) && !c.is_beside(&a));
    assert_eq!([&a, &b, &c].map(Tensor::stride), [56; 3]);
    assert_eq!([&a, &b, &c].map(Tensor::room), [0, 0, 8]);
    assert!(![&a, &b, &c].into_iter().any(|it| it.is_dense() || it.is_shared()));
    assert_eq!((a.dense().shape(), a.bytes()), (&[5, 16][..], 160));
    // Fresh memory holds NaN where there is no real GPU; what is computed from it lies by itself.
    a.add_assign(&like);
    assert!(a.is_dense() && !a.is_beside(&b));
    assert!(b.is_beside(&c), "the others stay where they are");
    let host = like.to_device(&Device::Cpu).unwrap();
    let apart = host.scratch_side_by_side((5, &[16, 24]), DType::Bf16, 8);
    assert!(apart.iter().all(Tensor::is_dense) && !apart[0].is_beside(&apart[1]));
}

#[test]
fn pieces_of_rows_are_tensors_of_their_own() {
    let Some(gpu) = gpu() else { return };
    // Rows of 256 bytes stay where they are, others are copied.
    for cols in [64, 24] {
        let here = noise(&[7, cols], DType::F32, 1);
        for device in [Device::Cpu, Device::Cuda(gpu.clone())] {
            let whole = here.to_device(&device).unwrap();
            let [a, mut b]: [Tensor; 2] = whole.into_pieces(&[(0, 2), (3, 4)]).unwrap().try_into().unwrap();
            let values = here.to_f32_vec();
            assert_eq!(a.to_f32_vec(), values[..2 * cols]);
            drop(a);
            b.add_assign(&b.clone());
            let twice: Vec<f32> = values[3 * cols..].iter().map(|it| it + it).collect();
            assert_eq!((b.shape(), b.to_f32_vec()), (&[4, cols][..], twice));
        }
    }
    let whole = noise(&[7, 64], DType::F32, 2).to_device(&Device::Cuda(gpu.clone())).unwrap();
    let held = whole.clone();
    let pieces = whole.into_pieces(&[(0, 7)]).unwrap();
    assert_eq!(pieces[0].to_f32_vec(), held.to_f32_vec(), "what is shared is copied");
}

#[test]
#[should_panic(expected = "rows 1 to 3")]
fn pieces_have_no_row_in_common() {
    let _ = noise(&[7, 4], DType::F32, 1).into_pieces(&[(0, 2), (1, 2)]);
}
