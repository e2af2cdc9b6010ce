//! Gradient clipping by global norm.
//!
//! The norm is summed in f64 over blocks of a fixed length, and the blocks in order of the gradients: the number of threads
//! changes who computes a block, never what is added to what.

use rayon::prelude::*;

/// Elements of a block: part of the result's definition, since it decides the order of additions.
const BLOCK: usize = 1 << 14;
/// Independent running sums within a block, so that additions need not wait for each other.
const LANES: usize = 8;

/// The Euclidean norm of all gradients together, in f64.
///
/// NaN if any element is NaN, infinite if one is infinite.
pub fn global_norm(grads: &[&[f32]]) -> f64 {
    let blocks: Vec<&[f32]> = grads.iter().flat_map(|g| g.chunks(BLOCK)).collect();
    let sums: Vec<f64> = blocks.into_par_iter().map(sum_of_squares).collect();
    sums.iter().sum::<f64>().sqrt()
}

/// Scales all gradients by `min(1, max_norm / (norm + 1e-6))`, torch's factor, and returns the norm before.
///
/// If the norm is NaN or infinite no factor can help: the gradients are left as they are, and the returned norm is how the
/// caller learns of it. (The norm of finite gradients is summed in f64; it can still round to an infinite f32.)
/// Panics if `max_norm` is negative or NaN.
pub fn clip_by_global_norm(grads: &mut [&mut [f32]], max_norm: f32) -> f32 {
    assert!(max_norm >= 0.0, "clip_by_global_norm: max_norm is {max_norm}, expected zero or more");
    let norm = global_norm(&grads.iter().map(|g| &**g).collect::<Vec<_>>());
    // factor = max_norm / (norm + 1e-6), used only where it shrinks
    let factor = (f64::from(max_norm) / (norm + 1e-6)) as f32;
    if norm.is_finite() && factor < 1.0 {
        let blocks: Vec<&mut [f32]> = grads.iter_mut().flat_map(|g| g.chunks_mut(BLOCK)).collect();
        blocks.into_par_iter().for_each(|block| block.iter_mut().for_each(|g| *g *= factor));
    }
    norm as f32
}

fn sum_of_squares(block: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    let (rows, rest) = block.as_chunks::<LANES>();
    for row in rows {
        for (lane, &g) in lanes.iter_mut().zip(row) {
            *lane += f64::from(g) * f64::from(g);
        }
    }
    for (lane, &g) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(g) * f64::from(g);
    }
    lanes.iter().sum()
}
