//! The largest singular values of a matrix and their vectors, exactly or by a randomised search.
//!
//! The exact way diagonalises the smaller Gram matrix in f64: of the triplets that an adapter takes, which are the largest,
//! that loses nothing that f32 could hold. The fast way (Halko, Martinsson and Tropp 2011, <https://arxiv.org/abs/0909.4061>)
//! multiplies the matrix with a few random vectors, again and again, until they span what it stretches most.

use halfbyte_matmul::{Compute, Dense, Operand, Out, Product, Trans, matmul};
use halfbyte_tensor::{philox, vectorised};
use rayon::prelude::*;

/// Vectors that the randomised search carries beyond those asked for: the last of a block converges slowest.
const SPARE: usize = 8;
/// Rows of a Gram matrix that are computed together.
const TOGETHER: usize = 4;
/// Partial sums of a dot product.
const LANES: usize = 8;

/// A row-major matrix.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// Singular triplets, the largest value first.
pub(crate) struct Triplets {
    pub(crate) values: Vec<f64>,
    /// A vector of `rows` numbers for each value, one after the other.
    pub(crate) left: Vec<f64>,
    /// A vector of `cols` numbers for each value. One of a value that is zero is zero, too.
    pub(crate) right: Vec<f64>,
}

/// The `count` largest, which is at most the smaller extent.
pub(crate) fn exact(w: Matrix<'_>, count: usize) -> Triplets {
    let flat = w.rows <= w.cols;
    // The smaller extent in rows.
    let wide: Vec<f64> = if flat {
        w.values.iter().map(|it| f64::from(*it)).collect()
    } else {
        (0..w.cols).flat_map(|j| (0..w.rows).map(move |i| f64::from(w.values[i * w.cols + j]))).collect()
    };
    let (n, m) = (w.rows.min(w.cols), w.rows.max(w.cols));
    let (near, _) = largest_eigenvectors(gram(&wide, n, m), n, count);
    let (values, near, far) = complete(&wide, (n, m), near);
    let (left, right) = if flat { (near, far) } else { (far, near) };
    Triplets { values, left, right }
}

/// The `count` largest, found in `iterations` rounds from vectors that `seed` makes.
pub(crate) fn fast(w: Matrix<'_>, count: usize, iterations: usize, seed: (u64, u64)) -> Triplets {
    let width = (count + SPARE).min(w.rows).min(w.cols);
    let mut start = vec![0.0; width * w.cols];
    philox::fill_normal(seed.0, seed.1, 1.0, &mut start);
    // Vectors lie in rows: `z Wᵀ` and `y W`.
    let mut y = orthonormal(&product(&start, width, w, Trans::Yes), w.rows);
    for _ in 0..iterations {
        let z = orthonormal(&product(&y, width, w, Trans::No), w.cols);
        y = orthonormal(&product(&z, width, w, Trans::Yes), w.rows);
    }
    // W within the span of y is `yᵀ (y W)`, and `y W` is small.
    let small: Vec<f64> = product(&y, width, w, Trans::No).iter().map(|it| f64::from(*it)).collect();
    let (within, _) = largest_eigenvectors(gram(&small, width, w.cols), width, count);
    let (values, within, right) = complete(&small, (width, w.cols), within);
    let mut left = vec![0.0; count * w.rows];
    for (out, weights) in left.chunks_mut(w.rows).zip(within.chunks(width)) {
        for (y, weight) in y.chunks(w.rows).zip(weights) {
            out.iter_mut().zip(y).for_each(|(out, y)| *out += weight * f64::from(*y));
        }
    }
    Triplets { values, left, right }
}

/// Values and vectors of the other side, from unit vectors of the side of `n` rows: `v = Wᵀ u / σ`. Ordered anew, since
/// the values are better known now.
fn complete(w: &[f64], (n, m): (usize, usize), near: Vec<f64>) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let one = |u: &[f64]| {
        let mut v = vec![0.0; m];
        for (row, u) in w.chunks(m).zip(u) {
            v.iter_mut().zip(row).for_each(|(v, w)| *v += u * w);
        }
        let value = dot(&v, &v).sqrt();
        let scale = if value > 0.0 { 1.0 / value } else { 0.0 };
        v.iter_mut().for_each(|it| *it *= scale);
        (value, u.to_vec(), v)
    };
    let mut all: Vec<(f64, Vec<f64>, Vec<f64>)> = near.par_chunks(n).map(one).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let values = all.iter().map(|it| it.0).collect();
    let (near, far): (Vec<Vec<f64>>, Vec<Vec<f64>>) = all.into_iter().map(|it| (it.1, it.2)).unzip();
    (values, near.concat(), far.concat())
}

/// `x Wᵀ` or `x W` for `count` vectors in rows.
fn product(x: &[f32], count: usize, w: Matrix<'_>, trans: Trans) -> Vec<f32> {
    let (from, to) = if trans == Trans::Yes { (w.cols, w.rows) } else { (w.rows, w.cols) };
    let (left, right) = (Dense::new(count, from, x), Dense::new(w.rows, w.cols, w.values));
    let mut out = vec![0.0; count * to];
    let right = if trans == Trans::Yes { Operand::new(&right).t() } else { Operand::new(&right) };
    matmul(&Product::new(Operand::new(&left), right, Compute::F32), Out::F32(&mut out));
    out
}

/// The vectors of length `len` in rows, made orthonormal one after the other (Gram and Schmidt, twice). One that depends on
/// those before it becomes zero.
fn orthonormal(x: &[f32], len: usize) -> Vec<f32> {
    let mut all: Vec<Vec<f64>> = Vec::new();
    for row in x.chunks(len) {
        let mut row: Vec<f64> = row.iter().map(|it| f64::from(*it)).collect();
        let before = dot(&row, &row).sqrt();
        remove(&mut row, &all);
        normalise(&mut row, 1e-6 * before);
        all.push(row);
    }
    all.iter().flatten().map(|it| *it as f32).collect()
}

/// Takes the parts along orthonormal vectors out, twice, since once leaves rounding behind.
fn remove(x: &mut [f64], others: &[Vec<f64>]) {
    for other in others.iter().chain(others) {
        let along = dot(x, other);
        x.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
    }
}

/// To length 1; to zero if it is no longer than `least`.
fn normalise(x: &mut [f64], least: f64) {
    let norm = dot(x, x).sqrt();
    let scale = if norm > least { 1.0 / norm } else { 0.0 };
    x.iter_mut().for_each(|it| *it *= scale);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    vectorised!({
        let mut sums = [0.0f64; LANES];
        let (mut a_parts, mut b_parts) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        for (a, b) in a_parts.by_ref().zip(b_parts.by_ref()) {
            for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                *sum += a * b;
            }
        }
        let rest: f64 = a_parts.remainder().iter().zip(b_parts.remainder()).map(|(a, b)| a * b).sum();
        sums.iter().sum::<f64>() + rest
    })
}

/// `x xᵀ` for `x (n, m)`, all of it.
fn gram(x: &[f64], n: usize, m: usize) -> Vec<f64> {
    let mut g = vec![0.0; n * n];
    g.par_chunks_mut(TOGETHER * n).enumerate().for_each(|(block, out)| {
        let first = block * TOGETHER;
        for j in 0..(first + TOGETHER).min(n) {
            for (i, row) in out.chunks_mut(n).enumerate() {
                row[j] = dot(&x[(first + i) * m..][..m], &x[j * m..][..m]);
            }
        }
    });
    for i in 0..n {
        for j in i + 1..n {
            g[i * n + j] = g[j * n + i];
        }
    }
    g
}

/// Unit eigenvectors of the `count` largest eigenvalues of a symmetric matrix `(n, n)`, in rows, and these values.
fn largest_eigenvectors(mut g: Vec<f64>, n: usize, count: usize) -> (Vec<f64>, Vec<f64>) {
    let (tri, reflectors) = tridiagonalise(&mut g, n);
    let values: Vec<f64> = (0..count).map(|k| tri.eigenvalue(k)).collect();
    let mut found: Vec<Vec<f64>> = Vec::with_capacity(count);
    for (k, value) in values.iter().enumerate() {
        let vector = tri.eigenvector(*value, k as u64, &found);
        found.push(vector);
    }
    found.par_iter_mut().for_each(|v| {
        // The reflections that led there lead back, the last first.
        for (k, u) in reflectors.iter().enumerate().rev() {
            let tail = &mut v[k + 1..];
            let along = 2.0 * dot(tail, u);
            tail.iter_mut().zip(u).for_each(|(v, u)| *v -= along * u);
        }
    });
    (found.concat(), values)
}

/// A symmetric matrix with nothing beside the diagonal and its neighbours.
struct Tridiagonal {
    diagonal: Vec<f64>,
    /// `beside[i]` stands between `i` and `i + 1`.
    beside: Vec<f64>,
    /// A bound on all eigenvalues' magnitudes.
    size: f64,
}

/// Householder's reduction: `g` is used up. Gives unit vectors `u`, of which the k-th reflects all that follows index k:
/// `(1 - 2 u uᵀ)`; an empty one reflects nothing.
fn tridiagonalise(g: &mut [f64], n: usize) -> (Tridiagonal, Vec<Vec<f64>>) {
    let mut reflectors = Vec::with_capacity(n.saturating_sub(2));
    let mut beside = vec![0.0; n.saturating_sub(1)];
    for k in 0..n.saturating_sub(1) {
        let mut u: Vec<f64> = g[k * n + k + 1..(k + 1) * n].to_vec();
        let norm = dot(&u, &u).sqrt();
        let target = if u[0] > 0.0 { -norm } else { norm };
        beside[k] = target;
        u[0] -= target;
        normalise(&mut u, 0.0);
        reflect(&mut g[(k + 1) * n..], (n, k + 1), &u);
        reflectors.push(u);
    }
    let diagonal: Vec<f64> = (0..n).map(|i| g[i * n + i]).collect();
    let around = |i: usize| if i == 0 { 0.0 } else { beside[i - 1].abs() };
    let reach = |i: usize| diagonal[i].abs() + around(i) + beside.get(i).map_or(0.0, |it| it.abs());
    let size = (0..n).map(reach).fold(0.0, f64::max);
    (Tridiagonal { diagonal, beside, size }, reflectors)
}

/// `H g H` for `H = 1 - 2 u uᵀ` on the lower right corner from `from` on: `g - u wᵀ - w uᵀ` with
/// `p = g u`, `w = 2 (p - (uᵀ p) u)`.
fn reflect(rows: &mut [f64], (n, from): (usize, usize), u: &[f64]) {
    let mut w: Vec<f64> = rows.par_chunks(n).with_min_len(16).map(|row| dot(&row[from..], u)).collect();
    let along = dot(&w, u);
    w.iter_mut().zip(u).for_each(|(w, u)| *w = 2.0 * (*w - along * u));
    rows.par_chunks_mut(n).with_min_len(16).enumerate().for_each(|(i, row)| {
        let (ui, wi) = (u[i], w[i]);
        vectorised!({
            for (g, (u, w)) in row[from..].iter_mut().zip(u.iter().zip(&w)) {
                *g -= ui * w + wi * u;
            }
        });
    });
}

impl Tridiagonal {
    /// The `k`-th largest eigenvalue, by bisection: how many lie below a number is told by the signs of pivots (Sturm).
    fn eigenvalue(&self, k: usize) -> f64 {
        let (mut low, mut high) = (-self.size, self.size);
        let wanted = self.diagonal.len() - k;
        while high - low > 2.0 * f64::EPSILON * self.size {
            let middle = 0.5 * (low + high);
            if middle <= low || middle >= high {
                break;
            }
            if self.below(middle) >= wanted { high = middle } else { low = middle }
        }
        0.5 * (low + high)
    }

    /// How many eigenvalues lie below `x`.
    fn below(&self, x: f64) -> usize {
        let tiny = f64::EPSILON * self.size + f64::MIN_POSITIVE;
        let (mut count, mut pivot) = (0, 1.0);
        for (i, d) in self.diagonal.iter().enumerate() {
            let beside = if i == 0 { 0.0 } else { self.beside[i - 1] };
            pivot = d - x - beside * beside / pivot;
            if pivot.abs() < tiny {
                pivot = -tiny;
            }
            count += usize::from(pivot < 0.0);
        }
        count
    }

    /// A unit eigenvector of a value, orthogonal to those found before: by inverse iteration from random numbers, which are
    /// different for every `k`, since values may be equal.
    fn eigenvector(&self, value: f64, k: u64, before: &[Vec<f64>]) -> Vec<f64> {
        let n = self.diagonal.len();
        let mut start = vec![0.0f32; n];
        philox::fill_normal(0x7e57, k, 1.0, &mut start);
        let mut x: Vec<f64> = start.into_iter().map(f64::from).collect();
        let factors = self.factorised(value);
        for _ in 0..4 {
            remove(&mut x, before);
            normalise(&mut x, 0.0);
            factors.solve(&mut x);
            normalise(&mut x, 0.0);
        }
        remove(&mut x, before);
        normalise(&mut x, 0.0);
        x
    }

    /// Gaussian elimination of `T - value`, with row exchanges.
    fn factorised(&self, value: f64) -> Factors {
        let n = self.diagonal.len();
        let tiny = f64::EPSILON * self.size + f64::MIN_POSITIVE;
        let at = |i: usize| [self.diagonal[i] - value, self.beside.get(i).copied().unwrap_or(0.0), 0.0];
        let mut factors = Factors { upper: Vec::with_capacity(n), steps: Vec::with_capacity(n) };
        let mut row = at(0);
        for i in 0..n {
            if i + 1 == n {
                if row[0].abs() < tiny {
                    row[0] = tiny;
                }
                factors.upper.push(row);
                break;
            }
            let below = self.beside[i];
            let next = at(i + 1);
            let swapped = below.abs() > row[0].abs();
            let (mut pivot, other) =
                if swapped { ([below, next[0], next[1]], row) } else { (row, [below, next[0], next[1]]) };
            if pivot[0].abs() < tiny {
                pivot[0] = tiny;
            }
            let factor = other[0] / pivot[0];
            row = [other[1] - factor * pivot[1], other[2] - factor * pivot[2], 0.0];
            factors.upper.push(pivot);
            factors.steps.push((swapped, factor));
        }
        factors
    }
}

/// What elimination left: three diagonals, and what was done to the rows.
struct Factors {
    upper: Vec<[f64; 3]>,
    steps: Vec<(bool, f64)>,
}

impl Factors {
    fn solve(&self, x: &mut [f64]) {
        for (i, (swapped, factor)) in self.steps.iter().enumerate() {
            if *swapped {
                x.swap(i, i + 1);
            }
            x[i + 1] -= factor * x[i];
        }
        for i in (0..x.len()).rev() {
            let known = |j: usize| x.get(i + j).copied().unwrap_or(0.0) * self.upper[i][j];
            x[i] = (x[i] - known(1) - known(2)) / self.upper[i][0];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_tensor::DType;
    use halfbyte_testkit::noise;

    /// `Σ decay^k u_k v_kᵀ` with orthonormal vectors.
    fn with_spectrum(rows: usize, cols: usize, values: &[f64]) -> Vec<f32> {
        let left = orthonormal(&noise(&[values.len(), rows], DType::F32, 1).to_f32_vec(), rows);
        let right = orthonormal(&noise(&[values.len(), cols], DType::F32, 2).to_f32_vec(), cols);
        let mut w = vec![0.0f64; rows * cols];
        for ((u, v), s) in left.chunks(rows).zip(right.chunks(cols)).zip(values) {
            for (row, u) in w.chunks_mut(cols).zip(u) {
                row.iter_mut().zip(v).for_each(|(w, v)| *w += s * f64::from(*u) * f64::from(*v));
            }
        }
        w.into_iter().map(|it| it as f32).collect()
    }

    fn check(found: &Triplets, w: &[f32], (rows, cols): (usize, usize), expected: &[f64], tolerance: f64) {
        let scale = expected[0];
        for (k, (value, expected)) in found.values.iter().zip(expected).enumerate() {
            assert!(
                (value - expected).abs() <= tolerance * scale,
                "{rows}x{cols}: value {k} is {value}, not {expected}"
            );
        }
        // W v = σ u, and the vectors are orthonormal.
        for (k, (u, v)) in found.left.chunks(rows).zip(found.right.chunks(cols)).enumerate() {
            for (row, u) in w.chunks(cols).zip(u) {
                let wv: f64 = row.iter().zip(v).map(|(w, v)| f64::from(*w) * v).sum();
                assert!((wv - found.values[k] * u).abs() <= tolerance * scale, "{rows}x{cols}: triplet {k}");
            }
            for (j, other) in found.left.chunks(rows).enumerate().take(k + 1) {
                let expected = f64::from(u8::from(j == k));
                assert!((dot(u, other) - expected).abs() < 1e-6, "{rows}x{cols}: left {j} and {k}");
            }
        }
    }

    #[test]
    fn the_exact_way_finds_values_and_vectors_of_any_shape() {
        for (rows, cols) in [(40, 24), (24, 40), (33, 33), (1, 9), (9, 1), (2, 2)] {
            let count = rows.min(cols);
            let values: Vec<f64> = (0..count).map(|k| 3.0 * 0.9f64.powi(k as i32)).collect();
            let w = with_spectrum(rows, cols, &values);
            let found = exact(Matrix { values: &w, rows, cols }, count.min(12));
            check(&found, &w, (rows, cols), &values, 1e-6);
        }
    }

    #[test]
    fn equal_and_missing_values_do_not_confuse_it() {
        let values = [2.0, 2.0, 2.0, 1.0, 1.0];
        let w = with_spectrum(20, 30, &values);
        check(&exact(Matrix { values: &w, rows: 20, cols: 30 }, 5), &w, (20, 30), &values, 1e-6);
        // Of a diagonal matrix nothing stands beside the diagonal from the start.
        let diagonal: Vec<f32> = (0..36).map(|i| if i % 7 == 0 { (i / 7) as f32 } else { 0.0 }).collect();
        check(&exact(Matrix { values: &diagonal, rows: 6, cols: 6 }, 3), &diagonal, (6, 6), &[5.0, 4.0, 3.0], 1e-9);
        let none = exact(Matrix { values: &[0.0; 12], rows: 3, cols: 4 }, 2);
        assert!(none.values.iter().chain(&none.right).all(|it| *it == 0.0));
        assert!(none.left.iter().all(|it| it.is_finite()));
    }

    #[test]
    fn the_search_finds_what_the_exact_way_finds() {
        for (rows, cols) in [(60, 90), (90, 60)] {
            let values: Vec<f64> = (0..60).map(|k| 0.85f64.powi(k)).collect();
            let w = with_spectrum(rows, cols, &values);
            let found = fast(Matrix { values: &w, rows, cols }, 8, 16, (7, 1));
            check(&found, &w, (rows, cols), &values, 1e-5);
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let w = noise(&[70, 50], DType::F32, 3).to_f32_vec();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let it = Matrix { values: &w, rows: 70, cols: 50 };
                let (a, b) = (exact(it, 6), fast(it, 6, 4, (7, 1)));
                [a.values, a.left, a.right, b.values, b.left, b.right]
            })
        };
        assert_eq!(on(1), on(3));
    }
}
