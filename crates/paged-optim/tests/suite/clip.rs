//! Clipping by global norm.

use halfbyte_paged_optim::{clip_by_global_norm, global_norm};
use proptest::prelude::*;

use crate::training::noise;

fn clip(grads: &mut [Vec<f32>], max_norm: f32) -> f32 {
    let mut slices: Vec<&mut [f32]> = grads.iter_mut().map(Vec::as_mut_slice).collect();
    clip_by_global_norm(&mut slices, max_norm)
}

/// The plain definition.
fn norm(grads: &[Vec<f32>]) -> f64 {
    grads.iter().flatten().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn a_three_four_five_triangle() {
    let mut grads = vec![vec![3.0], vec![0.0, 4.0]];
    assert_eq!(clip(&mut grads, 2.5), 5.0);
    let factor = (2.5f64 / (5.0 + 1e-6)) as f32;
    assert_eq!(grads, [vec![3.0 * factor], vec![0.0, 4.0 * factor]]);
}

#[test]
fn threads_do_not_show() {
    let grads: Vec<Vec<f32>> = [100_000, 7, 50_001].iter().map(|&n| (0..n).map(|i| noise(n, i, 1)).collect()).collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
        let mut grads = grads.clone();
        let norm = pool.install(|| clip(&mut grads, 1.0));
        let slices: Vec<&[f32]> = grads.iter().map(Vec::as_slice).collect();
        (norm.to_bits(), pool.install(|| global_norm(&slices)).to_bits(), grads)
    };
    let one = run(1);
    assert!([2, 3, 8].into_iter().all(|t| run(t) == one));
}

#[test]
fn what_is_not_finite_is_reported_and_left_alone() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut grads = vec![vec![1.0, bad], vec![2.0]];
        assert!(!clip(&mut grads, 0.1).is_finite());
        assert_eq!((grads[0][0], grads[0][1].to_bits(), grads[1][0]), (1.0, bad.to_bits(), 2.0));
    }
}

#[test]
fn squares_beyond_f32_are_no_overflow() {
    let mut grads = vec![vec![3e30], vec![4e30]];
    assert_eq!(clip(&mut grads, 1.0), 5e30);
    assert!((norm(&grads) - 1.0).abs() < 1e-6);
}

#[test]
fn no_gradients_have_norm_zero() {
    assert_eq!(clip(&mut [], 1.0), 0.0);
    assert_eq!(clip(&mut [vec![]], 1.0), 0.0);
}

proptest! {
    #[test]
    fn clipped_to_the_bound_or_not_touched(
        grads in prop::collection::vec(prop::collection::vec(-10f32..10.0, 0..50), 0..5),
        max_norm in 0f32..60.0,
    ) {
        let mut clipped = grads.clone();
        let (before, got) = (norm(&grads), clip(&mut clipped, max_norm));
        prop_assert!((f64::from(got) - before).abs() <= 1e-6 * before);
        prop_assert!(norm(&clipped) <= f64::from(max_norm) * (1.0 + 1e-6) + 1e-6);
        if before < f64::from(max_norm) * (1.0 - 1e-6) - 1e-5 {
            prop_assert_eq!(&clipped, &grads);
        } else if before > 1e-3 {
            // All elements shrink by one factor.
            let factor = f64::from(max_norm).min(before) / before;
            for (c, g) in clipped.iter().flatten().zip(grads.iter().flatten()) {
                prop_assert!((f64::from(*c) - f64::from(*g) * factor).abs() < 1e-2 * factor.max(1e-3));
            }
        }
    }
}
