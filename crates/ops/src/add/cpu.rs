use halfbyte_tensor::{Float, vectorised};
use rayon::prelude::*;

/// Elements a thread takes at once.
pub(crate) const CHUNK: usize = 1 << 14;

pub(super) fn forward<T: Float>(a: &[T], b: &[T], scale: f32, y: &mut [T]) {
    y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK)).for_each(|((y, a), b)| {
        vectorised!({
            for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                *y = T::from_f32(a.to_f32() + scale * b.to_f32());
            }
        })
    });
}

pub(super) fn scale<T: Float>(x: &[T], scale: f32, y: &mut [T]) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        vectorised!({
            for (y, x) in y.iter_mut().zip(x) {
                *y = T::from_f32(scale * x.to_f32());
            }
        })
    });
}
