use super::Dropout;
use halfbyte_tensor::{Float, philox, vectorised};
use rayon::prelude::*;

/// Elements a thread takes at once; a multiple of 4, the elements that one draw serves.
const CHUNK: usize = 1 << 13;
/// Elements whose factors are drawn at once.
const PIECE: usize = 256;

pub(super) fn apply<T: Float>(x: &[T], y: &mut [T], d: Dropout) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(i, (y, x))| {
        vectorised!({
            let mut factors = [0.0; PIECE];
            for (j, (y, x)) in y.chunks_mut(PIECE).zip(x.chunks(PIECE)).enumerate() {
                draw(&d, i * CHUNK + j * PIECE, &mut factors);
                for ((y, x), f) in y.iter_mut().zip(x).zip(&factors) {
                    *y = T::from_f32(x.to_f32() * f);
                }
            }
        })
    });
}

pub(super) fn apply_in_place<T: Float>(x: &mut [T], d: Dropout) {
    x.par_chunks_mut(CHUNK).enumerate().for_each(|(i, x)| {
        vectorised!({
            let mut factors = [0.0; PIECE];
            for (j, x) in x.chunks_mut(PIECE).enumerate() {
                draw(&d, i * CHUNK + j * PIECE, &mut factors);
                for (x, f) in x.iter_mut().zip(&factors) {
                    *x = T::from_f32(x.to_f32() * f);
                }
            }
        })
    });
}

/// The factors (0 or `1 / (1 - p)`) of the elements from `first` on, a multiple of 4.
#[inline(always)]
fn draw(d: &Dropout, first: usize, factors: &mut [f32; PIECE]) {
    let scale = 1.0 / (1.0 - d.p);
    for (q, four) in factors.chunks_exact_mut(4).enumerate() {
        let words = philox::quad(d.seed, d.site, (first / 4 + q) as u64);
        for (f, bits) in four.iter_mut().zip(words) {
            *f = if philox::unit(bits) >= d.p { scale } else { 0.0 };
        }
    }
}
