//! PiSSA: an adapter begins with the principal components of its matrix, and the rest is frozen (Meng, Wang and Zhang 2024,
//! <https://arxiv.org/abs/2404.02948>).
//!
//! With `W = U S Vᵀ`, `A = sqrt(S / scaling) Vᵀ` and `B = U sqrt(S / scaling)` of the largest values: what the base loses,
//! `scaling * B A`, is what the adapter holds.

use super::{Initialisation, Part};
use crate::svd::{self, Matrix};

pub(super) const PISSA: Initialisation = Initialisation { names: "pissa or pissa_niter_N", knows, part, repeats };

/// `pissa` is exact; `pissa_niter_16` searches in 16 rounds, which is much faster and nearly the same.
fn rounds(name: &str) -> Option<Option<usize>> {
    match name {
        "pissa" => Some(None),
        _ => name.strip_prefix("pissa_niter_")?.parse().ok().map(Some),
    }
}

fn knows(name: &str) -> bool {
    rounds(name).is_some()
}

fn repeats(name: &str) -> bool {
    rounds(name) == Some(None)
}

fn part(name: &str, w: Matrix<'_>, (rank, scaling): (usize, f32), seed: (u64, u64)) -> Part {
    let count = rank.min(w.rows).min(w.cols);
    let found = match rounds(name).flatten() {
        None => svd::exact(w, count),
        Some(rounds) => svd::fast(w, count, rounds, seed),
    };
    let (mut a, mut b) = (vec![0.0; rank * w.cols], vec![0.0; w.rows * rank]);
    for (k, value) in found.values.iter().enumerate() {
        let root = (value / f64::from(scaling)).sqrt();
        let (left, right) = (&found.left[k * w.rows..][..w.rows], &found.right[k * w.cols..][..w.cols]);
        a[k * w.cols..][..w.cols].iter_mut().zip(right).for_each(|(a, v)| *a = (root * v) as f32);
        b.iter_mut().skip(k).step_by(rank).zip(left).for_each(|(b, u)| *b = (root * u) as f32);
    }
    Part { a, b }
}
