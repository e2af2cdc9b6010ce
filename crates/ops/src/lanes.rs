//! Sums and maxima of rows in a fixed number of lanes: they vectorise, and their bits depend on the length alone.

const LANES: usize = 16;

/// `sum_i f(a_i, b_i)` over slices of one length.
#[inline(always)]
pub(crate) fn sum_by(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| f(*a, *b)).sum();
    for (a, b) in a.zip(b) {
        for ((s, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *s += f(*a, *b);
        }
    }
    fold(lanes, |a, b| a + b) + rest
}

/// `sum_i a_i`.
#[inline(always)]
pub(crate) fn sum(a: &[f32]) -> f32 {
    sum_by(a, a, |a, _| a)
}

/// `sum_i a_i * b_i`.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_by(a, b, |a, b| a * b)
}

/// The largest element. A NaN is passed over.
#[inline(always)]
pub(crate) fn max(a: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = a.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |m, v| larger(*v, m));
    for chunk in chunks {
        for (m, v) in lanes.iter_mut().zip(chunk) {
            *m = larger(*v, *m);
        }
    }
    larger(fold(lanes, larger), rest)
}

/// `y += scale * x`.
#[inline(always)]
pub(crate) fn axpy(y: &mut [f32], scale: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += scale * x;
    }
}

/// The sums of the partial rows, each `len` long, in their order: the gradient of what is shared by all rows of an
/// activation, whose partial sums are split by shape so that threads do not matter.
pub(crate) fn add_up(partials: &[Vec<f32>], len: usize) -> Vec<f32> {
    let mut total = vec![0.0; len];
    for partial in partials {
        axpy(&mut total, 1.0, partial);
    }
    total
}

/// Halves again and again, so that the compiler folds vectors rather than elements.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_summed_and_searched_in_full() {
        for len in 0..70 {
            let a: Vec<f32> = (0..len).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
            let exact: f32 = a.iter().sum();
            assert_eq!(sum(&a), exact);
            assert_eq!(dot(&a, &a), a.iter().map(|v| v * v).sum::<f32>());
            assert_eq!(max(&a), a.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v)));
            let mut y = a.clone();
            axpy(&mut y, 2.0, &a);
            assert!(y.iter().zip(&a).all(|(y, a)| *y == 3.0 * a));
        }
    }
}
