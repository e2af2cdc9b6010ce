use super::{Pairs, RopeTable};
use halfbyte_tensor::{Float, load_f32, store_f32, vectorised};
use rayon::prelude::*;

/// Rows a thread takes at once.
const ROWS: usize = 32;
/// Pairs that are widened at once.
const PIECE: usize = 32;

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
    let chunks = y.par_chunks_mut(ROWS * cols).zip(x.par_chunks(ROWS * cols)).zip(positions.par_chunks(ROWS));
    chunks.for_each(|((y, x), positions)| {
        vectorised!({
            let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
            for ((y, x), position) in y.chunks_mut(cols).zip(x.chunks(cols)).zip(positions) {
                let row = table.row(*position);
                cos.iter_mut().zip(row.0).for_each(|(o, v)| *o = round::<T>(*v));
                sin.iter_mut().zip(row.1).for_each(|(o, v)| *o = direction * round::<T>(*v));
                for (y, x) in y.chunks_mut(head_dim).zip(x.chunks(head_dim)) {
                    let (y, rest) = y.split_at_mut(2 * half);
                    rest.copy_from_slice(&x[2 * half..]);
                    turn(&x[..2 * half], (&cos, &sin), table.pairs, y);
                }
            }
        })
    });
}

/// One head's pairs, by way of arrays of f32: loops over so many slices of 16-bit numbers do not vectorise.
#[inline(always)]
fn turn<T: Float>(x: &[T], (cos, sin): (&[f32], &[f32]), pairs: Pairs, y: &mut [T]) {
    let half = cos.len();
    for from in (0..half).step_by(PIECE) {
        let to = half.min(from + PIECE);
        let mut wide = [[0.0; PIECE]; 4];
        let [a, b, c, s] = &mut wide;
        load_f32(&cos[from..to], c);
        load_f32(&sin[from..to], s);
        match pairs {
            Pairs::Halves => {
                load_f32(&x[from..to], a);
                load_f32(&x[half + from..half + to], b);
            }
            Pairs::Neighbours => {
                for ((x, a), b) in x[2 * from..2 * to].chunks_exact(2).zip(&mut *a).zip(&mut *b) {
                    (*a, *b) = (x[0].to_f32(), x[1].to_f32());
                }
            }
        }
        let mut products = [[0.0; PIECE]; 4];
        for i in 0..PIECE {
            products[0][i] = round::<T>(a[i] * c[i]);
            products[1][i] = round::<T>(b[i] * s[i]);
            products[2][i] = round::<T>(b[i] * c[i]);
            products[3][i] = round::<T>(a[i] * s[i]);
        }
        for i in 0..PIECE {
            a[i] = products[0][i] - products[1][i];
            b[i] = products[2][i] + products[3][i];
        }
        match pairs {
            Pairs::Halves => {
                store_f32(a, &mut y[from..to]);
                store_f32(b, &mut y[half + from..half + to]);
            }
            Pairs::Neighbours => {
                for ((y, a), b) in y[2 * from..2 * to].chunks_exact_mut(2).zip(&*a).zip(&*b) {
                    (y[0], y[1]) = (T::from_f32(*a), T::from_f32(*b));
                }
            }
        }
    }
}

#[inline(always)]
fn round<T: Float>(v: f32) -> f32 {
    T::from_f32(v).to_f32()
}
