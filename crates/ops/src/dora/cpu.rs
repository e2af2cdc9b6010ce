use halfbyte_matmul::Source;
use halfbyte_tensor::{Float, load_f32, store_f32, vectorised};
use rayon::prelude::*;

/// Elements worth a task of their own.
const TASK: usize = 1 << 14;
/// Columns that one task sums.
const STRIP: usize = 256;

pub(super) fn scale_columns<T: Float>(x: &[T], factor: &[f32], shift: Option<&[f32]>, y: &mut [T]) {
    let n = factor.len().max(1);
    let rows = y.par_chunks_mut(n).zip(x.par_chunks(n)).with_min_len(TASK.div_ceil(n));
    rows.for_each_init(
        || vec![0.0f32; n],
        |wide, (y, x)| {
            load_f32(x, wide);
            vectorised!({
                match shift {
                    Some(shift) => {
                        for ((v, f), s) in wide.iter_mut().zip(factor).zip(shift) {
                            *v = *v * f + s;
                        }
                    }
                    None => {
                        for (v, f) in wide.iter_mut().zip(factor) {
                            *v *= f;
                        }
                    }
                }
            });
            store_f32(wide, y);
        },
    );
}

/// `sums[j] = Σ a[i][j] * b[i][j]`, the rows in order.
pub(super) fn sum_of_products<T: Float>(a: &[T], b: &[T], sums: &mut [f32]) {
    let n = sums.len();
    sums.par_chunks_mut(STRIP).enumerate().for_each(|(i, sums)| {
        let (mut left, mut right) = ([0.0; STRIP], [0.0; STRIP]);
        let len = sums.len();
        sums.fill(0.0);
        for (a, b) in a.chunks(n).zip(b.chunks(n)) {
            load_f32(&a[i * STRIP..][..len], &mut left[..len]);
            load_f32(&b[i * STRIP..][..len], &mut right[..len]);
            vectorised!({
                for ((sum, a), b) in sums.iter_mut().zip(&left).zip(&right) {
                    *sum += a * b;
                }
            });
        }
    });
}

pub(super) struct Update<'a> {
    /// `(rank, inner)`.
    pub(super) a: &'a [f32],
    /// `(out, rank)`.
    pub(super) b: &'a [f32],
    pub(super) scaling: f32,
}

pub(super) fn row_norms(w: &dyn Source, inner: usize, update: Option<Update<'_>>, norms: &mut [f32]) {
    norms.par_iter_mut().enumerate().with_min_len(TASK.div_ceil(inner.max(1))).for_each_init(
        || (vec![0.0f32; inner], vec![0.0f32; inner]),
        |(row, sum), (i, norm)| {
            w.read_f32(i, 0, row);
            if let Some(Update { a, b, scaling }) = &update {
                let rank = a.len() / inner;
                sum.fill(0.0);
                for (b, a) in b[i * rank..][..rank].iter().zip(a.chunks(inner)) {
                    vectorised!({
                        for (s, a) in sum.iter_mut().zip(a) {
                            *s += b * a;
                        }
                    });
                }
                row.iter_mut().zip(&*sum).for_each(|(w, s)| *w += scaling * s);
            }
            // In f64, so that the order of the sum does not matter to an f32 result.
            *norm = row.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>().sqrt() as f32;
        },
    );
}
