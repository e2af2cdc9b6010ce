//! Rotary position embedding: of a head's channels, or of those that are rotated, each turns against another, by an angle that grows with
//! the position; in the convention of LLaMA in transformers the first half against the second, in that of GPT-J each against the next.

mod cpu;
mod cuda;
mod spec;
#[cfg(test)]
mod tests;

pub use spec::{Pairs, RopeScaling, RopeSpec};

use crate::{
    kv_pages::{KvPages, append_rows, check_rows},
    layout::Layout,
    place::{Cost, fill},
};
use halfbyte_autograd::{GradientPlace, Result, Tape, Var};
use halfbyte_cuda::Gpu;
use halfbyte_tensor::{Device, Error, Place, Tensor, with_float};
use std::sync::{Arc, OnceLock};

/// Cosines and sines of every position of texts up to a length, computed once for a model, shared when cloned.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    pairs: Pairs,
    length: usize,
    /// `(length, channels / 2)` cosines, then as many sines.
    values: Arc<[f32]>,
    /// The table on a GPU, from the first use there.
    on_gpu: Arc<OnceLock<Tensor>>,
}

impl RopeTable {
    /// The table for positions `0..length`. [`RopeSpec::serves`] says which other texts it is for.
    ///
    /// Fails if the spec holds numbers that make no rotation.
    pub fn new(spec: &RopeSpec, length: usize) -> halfbyte_tensor::Result<RopeTable> {
        let (frequencies, factor) = spec.frequencies(length)?;
        let half = frequencies.len();
        let mut values = vec![0.0; 2 * length * half];
        let (cos, sin) = values.split_at_mut(length * half);
        for (position, (cos, sin)) in cos.chunks_mut(half).zip(sin.chunks_mut(half)).enumerate() {
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&frequencies) {
                // The angle is an f32 in the reference, whatever its size.
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                (*cos, *sin) = (c as f32 * factor, s as f32 * factor);
            }
        }
        Ok(RopeTable { half, pairs: spec.pairs, length, values: values.into(), on_gpu: Arc::default() })
    }

    /// Channels of a head that are rotated.
    pub fn channels(&self) -> usize {
        2 * self.half
    }

    /// The number of positions.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        4 * self.values.len()
    }

    /// The table on a GPU.
    fn on(&self, gpu: &Arc<Gpu>) -> halfbyte_tensor::Result<Tensor> {
        if let Some(known) = self.on_gpu.get().filter(|it| it.gpu().is_some_and(|there| Arc::ptr_eq(there, gpu))) {
            return Ok(known.clone());
        }
        let table = halfbyte_tensor::cuda::upload_f32(gpu, &[self.values.len()], &self.values)?;
        Ok(self.on_gpu.get_or_init(|| table).clone())
    }

    /// The `channels / 2` cosines and sines of a position.
    fn row(&self, position: u32) -> (&[f32], &[f32]) {
        let (cos, sin) = self.values.split_at(self.length * self.half);
        let at = position as usize * self.half;
        (&cos[at..][..self.half], &sin[at..][..self.half])
    }
}

/// `x (tokens, heads * head_dim)` with every row rotated to its position in the layout, in its dtype: of each head as many channels as the
/// table has, from the first on.
///
/// Cosines, sines, both products and their sum are rounded to the dtype of `x`, as transformers does. Saves nothing but
/// the layout. Fails if a position lies beyond the table.
pub fn rope(tape: &Tape<'_>, x: &Var, table: &RopeTable, layout: &Layout, head_dim: usize) -> Result<Var> {
    check(x.value(), table, layout, head_dim)?;
    let y = rotated((x.value(), head_dim), table, layout, (1.0, &GradientPlace::default()))?;
    if !x.requires_grad() {
        return Ok(Var::constant(y));
    }
    // Neighbours are turned by a kernel that knows of nothing beside rows.
    let place = match table.pairs {
        Pairs::Neighbours => GradientPlace::default(),
        Pairs::Halves => x.claim_gradient_place(),
    };
    let (before, table, layout) = (place.passed_on(), table.clone(), layout.clone());
    let mut ys = tape.record_many_in_rows("rope", &[x], vec![y], move |mut dys, _| {
        let Some(dy) = dys.pop().flatten() else { unreachable!("one output, which has a gradient") };
        Ok(vec![Some(turned_back((dy, head_dim), &table, &layout, &place)?)])
    });
    Ok(ys.pop().unwrap_or_else(|| unreachable!("one output, one variable")).wanting(before))
}

/// The gradient that `dy` turned back is, at its place: over `dy` itself, on a GPU, if that lies as is wanted and nobody else holds it.
fn turned_back(
    (mut dy, head_dim): (Tensor, usize),
    table: &RopeTable,
    layout: &Layout,
    place: &GradientPlace,
) -> Result<Tensor> {
    let lies_there = !dy.is_dense() || place.room() == 0;
    match dy.device() {
        Device::Cuda(gpu) if table.pairs == Pairs::Halves && lies_there && !dy.is_shared() => {
            cuda::rotate_in_place(&gpu, (&mut dy, head_dim), table, layout, -1.0)?;
            gpu.count_operations(3 * dy.len() as u64);
            Ok(dy)
        }
        _ => rotated((&dy.dense(), head_dim), table, layout, (-1.0, place)),
    }
}

/// Queries, keys and values of new tokens on their way to attention over a cache: gives the queries `q (tokens, heads * head_dim)` as
/// [`rope`] turns them, and writes the keys turned, and the values, `(tokens, kv_heads * head_dim)`, into a layer's pages, as
/// [`append_rows`] does. The layouts are those of the tokens' positions and of the pages.
///
/// Fails where either of the two does.
pub fn rope_into_cache(
    (pages, layer): (&mut KvPages, usize),
    [q, k, v]: [&Tensor; 3],
    (table, head_dim): (&RopeTable, usize),
    (positions, cache): (&Layout, &Layout),
) -> Result<Tensor> {
    for it in [q, k] {
        check(it, table, positions, head_dim)?;
    }
    check_rows((pages, layer), [k, v], cache)?;
    let gpu = match q.place() {
        Place::Gpu(gpu) if table.pairs == Pairs::Halves && q.dtype() == k.dtype() => gpu,
        _ => {
            let [q, k] = [q, k].map(|it| rotated((it, head_dim), table, positions, (1.0, &GradientPlace::default())));
            append_rows((pages, layer), [&k?, v], cache)?;
            return q;
        }
    };
    let mut y = q.scratch_like(q.shape(), q.dtype());
    cuda::rotate_into(gpu, [q, k, v], (&mut y, pages, layer), (table, head_dim), (positions, cache))?;
    gpu.count_operations(3 * (q.len() + k.len()) as u64);
    Ok(y)
}

/// Rotated forwards, or, for `direction` -1, backwards: the transpose of a rotation is its inverse. To a place.
fn rotated(
    (x, head_dim): (&Tensor, usize),
    table: &RopeTable,
    layout: &Layout,
    (direction, place): (f32, &GradientPlace),
) -> Result<Tensor> {
    let y = place.scratch(x);
    let cost = Cost::of(3, &[x, &y]);
    let host = |y: &mut Tensor| {
        with_float!(x.dtype(), T, {
            cpu::rotate::<T>((x.data(), head_dim), (table, direction), layout.positions(), y.data_mut());
        });
        Ok(())
    };
    fill(x, cost, y, host, |gpu, y| cuda::rotate(gpu, (x, y, head_dim), table, layout, direction))
}

fn check(x: &Tensor, table: &RopeTable, layout: &Layout, head_dim: usize) -> Result<()> {
    crate::product::check_float("rope", x)?;
    if table.channels() > head_dim || head_dim == 0 {
        let message =
            format!("expected heads of {} channels or more, as the table rotates, got {head_dim}", table.channels());
        return Err(Error::invalid("rope", message).into());
    }
    if table.pairs == Pairs::Neighbours && !head_dim.is_multiple_of(2) {
        let message =
            format!("expected heads of an even number of channels where neighbours turn together, got {head_dim}");
        return Err(Error::invalid("rope", message).into());
    }
    if x.shape().is_empty() || x.cols() == 0 || !x.cols().is_multiple_of(head_dim) || x.rows() != layout.tokens() {
        let expected = format!("shape ({}, heads * {head_dim}), one row a position", layout.tokens());
        return Err(Error::shape("rope", expected, x.shape()).into());
    }
    if layout.furthest() > table.length() {
        let (position, length) = (layout.furthest() - 1, table.length());
        let message = format!("position {position} lies beyond a table of {length} positions");
        return Err(Error::invalid("rope", message).into());
    }
    Ok(())
}
