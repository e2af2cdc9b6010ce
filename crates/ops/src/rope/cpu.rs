use super::{Pairs, RopeTable};
use halfbyte_tensor::{Float, vectorised};
use rayon::prelude::*;

/// Rows a thread takes at once.
const ROWS: usize = 32;

/// `(a, b) -> (a cos - b sin, b cos + a sin)` for the pairs `a` and `b` of what is rotated of every head; the sine times `direction`.
/// The rest of the head stays as it is.
pub(super) fn rotate<T: Float>(
    (x, head_dim): (&[T], usize),
    (table, direction): (&RopeTable, f32),
    positions: &[u32],
    y: &mut [T],
) {
    let half = table.half;
    let cols = x.len() / positions.len().max(1);
    if x.is_empty() {
        return;
    }
    let round = |v: f32| T::from_f32(v).to_f32();
    let chunks = y.par_chunks_mut(ROWS * cols).zip(x.par_chunks(ROWS * cols)).zip(positions.par_chunks(ROWS));
    chunks.for_each(|((y, x), positions)| {
        vectorised!({
            let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
            for ((y, x), position) in y.chunks_mut(cols).zip(x.chunks(cols)).zip(positions) {
                let row = table.row(*position);
                cos.iter_mut().zip(row.0).for_each(|(o, v)| *o = round(*v));
                sin.iter_mut().zip(row.1).for_each(|(o, v)| *o = direction * round(*v));
                for (y, x) in y.chunks_mut(head_dim).zip(x.chunks(head_dim)) {
                    let (y, rest) = y.split_at_mut(2 * half);
                    rest.copy_from_slice(&x[2 * half..]);
                    if table.pairs == Pairs::Neighbours {
                        for ((y, x), (cos, sin)) in
                            y.chunks_exact_mut(2).zip(x.chunks_exact(2)).zip(cos.iter().zip(&sin))
                        {
                            let (a, b) = (x[0].to_f32(), x[1].to_f32());
                            y[0] = T::from_f32(round(a * cos) - round(b * sin));
                            y[1] = T::from_f32(round(b * cos) + round(a * sin));
                        }
                        continue;
                    }
                    let ((y_a, y_b), (a, b)) = (y.split_at_mut(half), x[..2 * half].split_at(half));
                    let (y, x, angle) = (y_a.iter_mut().zip(y_b), a.iter().zip(b), cos.iter().zip(&sin));
                    for (((y_a, y_b), (a, b)), (cos, sin)) in y.zip(x).zip(angle) {
                        let (a, b) = (a.to_f32(), b.to_f32());
                        *y_a = T::from_f32(round(a * cos) - round(b * sin));
                        *y_b = T::from_f32(round(b * cos) + round(a * sin));
                    }
                }
            }
        })
    });
}
