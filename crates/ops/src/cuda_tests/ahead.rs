//! Matrices that are decoded before they are asked for: a guess that is wrong changes nothing, and one that is right saves the wait.

use super::*;
use crate::frozen::{FEW_ROWS, decoded_beside};
use halfbyte_testkit::cuda::fresh_gpu;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What decodes a matrix and says how often it did.
#[derive(Debug)]
struct Counting {
    weight: Tensor,
    times: AtomicUsize,
}

impl Decoder for Counting {
    fn decode(&self, into: Window<'_>) -> halfbyte_tensor::Result<()> {
        self.times.fetch_add(1, Ordering::Relaxed);
        crate::gpu_product::put(1.0, &self.weight, 0, into)
    }
}

/// Three matrices of as many rows and columns, with who decodes them.
fn matrices(device: &Device) -> [(Stored, Arc<Counting>); 3] {
    [1, 2, 3].map(|seed| {
        let weight = noise(&[16, 24], DType::Bf16, seed).to_device(device).unwrap();
        let counting = Arc::new(Counting { weight: weight.clone(), times: AtomicUsize::new(0) });
        (Stored { weight, decoder: Some(counting.clone()) }, counting)
    })
}

/// Asks for them in an order, each for an input of so many rows, and says of each whether it was decoded no more by then. What comes is
/// that which was asked for.
fn foreseen(device: &Device, order: &[usize], rows: usize) -> Vec<bool> {
    let all = matrices(device);
    let x = Tensor::zeros_on(device, &[rows, 24], DType::Bf16);
    let ask = |at: &usize| {
        let (w, it) = &all[*at];
        let before = it.times.load(Ordering::Relaxed);
        let got = decoded_beside(w, &x, (0, 0)).unwrap();
        assert_eq!(got.to_f32_vec(), it.weight.to_f32_vec(), "{at} of {order:?}");
        it.times.load(Ordering::Relaxed) == before
    };
    order.iter().map(ask).collect()
}

#[test]
fn a_matrix_that_nobody_foresaw_is_itself() {
    let Some(device) = fresh_gpu().map(Device::Cuda) else { return };
    let order = [0, 1, 0, 1, 0, 2, 0, 1, 2, 2, 1, 0, 0, 2, 1];
    let all = foreseen(&device, &order, FEW_ROWS + 1);
    assert!(!all[5], "the second came the last time");
}

#[test]
fn steps_that_repeat_find_their_matrices_decoded() {
    let Some(gpu) = fresh_gpu().filter(|it| it.works_ahead()) else { return };
    let (device, order) = (Device::Cuda(gpu), [0, 1, 2].repeat(4));
    let many = foreseen(&device, &order, FEW_ROWS + 1);
    assert!(!many[..3].contains(&true) && !many[6..].contains(&false), "{many:?}");
    // A token's few rows are through before the next matrix is decoded.
    assert!(!foreseen(&device, &order, FEW_ROWS).contains(&true));
}

#[test]
fn a_matrix_that_is_gone_is_not_decoded() {
    let Some(device) = fresh_gpu().map(Device::Cuda) else { return };
    let [first, second, _] = matrices(&device);
    let x = Tensor::zeros_on(&device, &[FEW_ROWS + 1, 24], DType::Bf16);
    let ask = |it: &(Stored, Arc<Counting>)| decoded_beside(&it.0, &x, (0, 0)).unwrap().to_f32_vec();
    for _ in 0..2 {
        ask(&first);
        ask(&second);
    }
    // It would be the next.
    drop(second);
    assert_eq!(ask(&first), first.1.weight.to_f32_vec());
}
