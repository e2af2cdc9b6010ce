use crate::ids::Ids;
use halfbyte_tensor::{Float, vectorised};
use rayon::prelude::*;

/// Rows of the table or of the output that a thread takes at once.
const ROWS: usize = 64;

/// `out[i] = table[ids[i]]`, rows of `channels`.
pub(super) fn gather<S: Float, D: Float>(table: &[S], ids: &[u32], out: &mut [D], channels: usize) {
    if channels == 0 {
        return;
    }
    out.par_chunks_mut(ROWS * channels).zip(ids.par_chunks(ROWS)).for_each(|(out, ids)| {
        vectorised!({
            for (out, id) in out.chunks_mut(channels).zip(ids) {
                for (o, v) in out.iter_mut().zip(&table[*id as usize * channels..]) {
                    *o = D::from_f32(v.to_f32());
                }
            }
        })
    });
}

/// `table[ids[i]] += dy[i]`. Each row of the table sums its tokens in the order of their positions, whoever does it.
pub(super) fn scatter_add<T: Float>(dy: &[T], ids: &Ids, table: &mut [f32], channels: usize) {
    if channels == 0 {
        return;
    }
    let (ids, order) = (ids.values(), &ids.groups().order);
    let id = |i: &u32| ids[*i as usize] as usize;
    table.par_chunks_mut(ROWS * channels).enumerate().for_each(|(chunk, table)| {
        vectorised!({
            let first = chunk * ROWS;
            let from = order.partition_point(|i| id(i) < first);
            for i in order[from..].iter().take_while(|i| id(i) < first + ROWS) {
                let row = &mut table[(id(i) - first) * channels..][..channels];
                for (sum, v) in row.iter_mut().zip(&dy[*i as usize * channels..]) {
                    *sum += v.to_f32();
                }
            }
        })
    });
}
