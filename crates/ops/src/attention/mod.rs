//! Causal attention with grouped key/value heads, an optional local window and an optional cap on scores, in blocks over queries and keys.
//!
//! No `time x time` matrix ever exists: the forward pass keeps running maxima and sums (an online softmax) and saves the
//! logarithm of each sum, `lse`; the backward pass computes the probabilities again as `exp(score - lse)`. Inside, all
//! numbers are f32.

mod backward;
mod blocks;
mod cpu;
mod cuda;
mod decode;
mod few_queries {
    pub(super) mod cuda;
}
mod paged {
    pub(super) mod cuda;
}
mod tensor_cores {
    pub(super) mod cuda;
    mod one_pass {
        pub(super) mod cuda;
    }
    mod two_passes {
        pub(super) mod cuda;
    }
    pub(super) mod wide {
        pub(in crate::attention) mod cuda;
    }
}
#[cfg(test)]
mod tests;

use crate::{
    exp::tanh,
    kv_pages::KvPages,
    layout::Layout,
    place::{Cost, fill},
};
use blocks::Inputs;
use halfbyte_autograd::{GradientPlace, Result, Tape, Var};
use halfbyte_tensor::{DType, Error, Tensor, with_float};

/// What the columns of queries, keys and values mean, and which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` consecutive query heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// On the scores: `1 / sqrt(head_dim)`, or 1 for GPT-Neo.
    pub scale: f32,
    /// Key `j` is visible to query `i` only if `i - j < window`.
    pub window: Option<usize>,
    /// Scores stay below this in size: `cap tanh(score / cap)`, as in Gemma 2.
    pub cap: Option<f32>,
}

impl AttentionShape {
    /// Query heads that share a key/value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn check(&self, op: &'static str) -> Result<()> {
        let refuse = |message: String| Err(Error::invalid(op, message).into());
        if [self.heads, self.kv_heads, self.head_dim].contains(&0) {
            return refuse(format!("heads, kv_heads and head_dim must be positive, got {self:?}"));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return refuse(format!("heads ({}) must be a multiple of kv_heads ({})", self.heads, self.kv_heads));
        }
        if self.window == Some(0) {
            return refuse("a window must be at least 1, got 0".into());
        }
        if self.cap.is_some_and(|it| !(it.is_finite() && it > 0.0)) {
            return refuse(format!("a cap must be positive and finite, got {self:?}"));
        }
        Ok(())
    }

    /// Makes capped scores of some that met the scale already.
    #[inline(always)]
    pub(super) fn bend(&self, scores: &mut [f32]) {
        if let Some(cap) = self.cap {
            scores.iter_mut().for_each(|v| *v = cap * tanh(*v / cap));
        }
    }

    /// Floating-point operations of so many products over all visible pairs.
    fn flops(&self, layout: &Layout, products: usize) -> usize {
        2 * products * layout.visible_pairs(self.window) * self.heads * self.head_dim
    }
}

/// Softmax-weighted sums of values: `q (tokens, heads * head_dim)`, `k` and `v (tokens, kv_heads * head_dim)` of one dtype
/// give `y` in the shape and dtype of `q`.
///
/// Query `i` of a sequence sees keys `0..=i` of that sequence, or the last `window` of them. Saves `q`, `k`, `v`, `y` and one
/// number for each row and head. Fails if the operands do not fit the layout.
pub fn attention(tape: &Tape<'_>, inputs: [&Var; 3], shape: AttentionShape, layout: &Layout) -> Result<Var> {
    attention_with_sinks(tape, inputs, (shape, None), layout)
}

/// [`attention`] in which a score of each head joins every softmax without a value of its own, as gpt-oss has it: so the weights of a row
/// add up to less than 1. The sinks, f32 `(heads)`, get no gradient.
///
/// With `z` a sink, `lse` is the logarithm of `exp(z)` and the row's sum; every derivative is as without sinks, from that `lse` and from
/// that `y`, since what a sink weighs is 0.
pub fn attention_with_sinks(
    tape: &Tape<'_>,
    inputs: [&Var; 3],
    (shape, sinks): (AttentionShape, Option<&Tensor>),
    layout: &Layout,
) -> Result<Var> {
    attention_with_room(tape, inputs, (shape, sinks, 0), layout)
}

/// [`attention_with_sinks`] whose result has room for so many more columns beside its rows, on a GPU where tensor cores do it.
pub fn attention_with_room(
    tape: &Tape<'_>,
    inputs: [&Var; 3],
    (shape, sinks, room): (AttentionShape, Option<&Tensor>, usize),
    layout: &Layout,
) -> Result<Var> {
    check(&shape, inputs.map(Var::value), layout)?;
    check_sinks("attention", sinks, &shape)?;
    let [y, lse] = forward(inputs.map(Var::value), (&shape, sinks, room), layout)?;
    if !tape.is_recording() || !inputs.iter().any(|it| it.requires_grad()) {
        return Ok(Var::constant(y));
    }
    let (kept, yv, layout) = (inputs.map(|it| it.value().clone()), y.clone(), layout.clone());
    // Other kernels than those for tensor cores know of nothing beside rows.
    let places = match tensor_cores::cuda::fit(&shape, &layout, yv.dtype()) {
        true => inputs.map(Var::claim_gradient_place),
        false => Default::default(),
    };
    Ok(tape.record("attention", inputs, y, move |dy, needs| {
        let saved = Saved { inputs: kept.each_ref(), y: &yv, dy: &dy, lse: &lse };
        gradients(&saved, (&shape, &layout), (needs, &places))
    }))
}

/// What the backward pass reads.
struct Saved<'a> {
    inputs: [&'a Tensor; 3],
    y: &'a Tensor,
    dy: &'a Tensor,
    lse: &'a Tensor,
}

/// `y`, and the logarithm of each row's sum of exponentials, `(heads * tokens)`: for each sequence one head after the other.
fn forward(
    [q, k, v]: [&Tensor; 3],
    (shape, sinks, room): (&AttentionShape, Option<&Tensor>, usize),
    layout: &Layout,
) -> Result<[Tensor; 2]> {
    let room = if tensor_cores::cuda::fit(shape, layout, q.dtype()) { room } else { 0 };
    let y = q.scratch_with_room(q.shape(), q.dtype(), room);
    let lse = q.scratch_like(&[shape.heads * q.rows()], DType::F32);
    let cost = Cost::of(0, &[q, k, v, &y, &lse]).flops(shape.flops(layout, 2));
    let host = |[y, lse]: &mut [Tensor; 2]| {
        with_float!(q.dtype(), T, {
            let inputs = Inputs::<T>::new([q, k, v], shape, layout).with_sinks(sinks);
            cpu::forward(&inputs, y.data_mut(), lse.data_mut());
        });
        Ok(())
    };
    fill(q, cost, [y, lse], host, |gpu, [y, lse]| cuda::forward(gpu, [q, k, v], (shape, layout, sinks), (y, lse)))
}

/// Those of dq, dk and dv that are wanted, at their places.
fn gradients(
    saved: &Saved<'_>,
    (shape, layout): (&AttentionShape, &Layout),
    (needs, places): ([bool; 3], &[GradientPlace; 3]),
) -> Result<[Option<Tensor>; 3]> {
    let [q, ..] = saved.inputs;
    let grads = std::array::from_fn(|i| needs[i].then(|| places[i].scratch(saved.inputs[i])));
    let tensors: Vec<&Tensor> =
        saved.inputs.into_iter().chain([saved.y, saved.dy, saved.lse]).chain(grads.iter().flatten()).collect();
    let cost = Cost::of(0, &tensors).flops(shape.flops(layout, 5));
    let host = |grads: &mut [Option<Tensor>; 3]| {
        with_float!(q.dtype(), T, {
            let inputs = Inputs::<T>::new(saved.inputs, shape, layout);
            let saved = backward::Saved { inputs, y: saved.y.data(), dy: saved.dy.data(), lse: saved.lse.data() };
            backward::backward(&saved, grads.each_mut().map(|it| it.as_mut().map(Tensor::data_mut)));
        });
        Ok(())
    };
    fill(q, cost, grads, host, |gpu, grads| cuda::backward(gpu, saved, (shape, layout), grads))
}

/// Attention of new queries over a cache: `q (tokens, heads * head_dim)` at the layout's positions, against the keys and values in a layer of
/// `pages`, with `kv_heads * head_dim` channels, which hold those of the new rows already. Perhaps with sinks, as
/// [`attention_with_sinks`] has them.
///
/// Returns `y` in the shape and dtype of `q`. Fails if the operands do not fit the layout, or the layout does not fit the pages.
pub fn attend_cached(
    q: &Tensor,
    (pages, layer): (&KvPages, usize),
    (shape, sinks): (AttentionShape, Option<&Tensor>),
    layout: &Layout,
) -> Result<Tensor> {
    const OP: &str = "attend_cached";
    shape.check(OP)?;
    check_sinks(OP, sinks, &shape)?;
    check_operand(OP, q, (q, "queries"), shape.heads * shape.head_dim)?;
    let (tokens, channels) = (layout.tokens(), shape.kv_heads * shape.head_dim);
    if q.rows() != tokens || pages.channels() != channels {
        let message = format!(
            "expected {tokens} queries and pages of {channels} channels, got {} queries and {} channels",
            q.rows(),
            pages.channels()
        );
        return Err(Error::invalid(OP, message).into());
    }
    pages.check(OP, q, layer, (layout, shape.window))?;
    let out = [q.scratch_like(q.shape(), q.dtype()), q.scratch_like(&[shape.heads * tokens], DType::F32)];
    let cost = Cost::of(0, &[q, &out[0]]).flops(shape.flops(layout, 2));
    let host = |[y, lse]: &mut [Tensor; 2]| {
        with_float!(q.dtype(), T, {
            let inputs = Inputs::<T>::cached(q, (pages, layer), &shape, layout).with_sinks(sinks);
            if layout.longest() <= decode::MAX_QUERIES {
                decode::forward(&inputs, y.data_mut());
            } else {
                cpu::forward(&inputs, y.data_mut(), lse.data_mut());
            }
        });
        Ok(())
    };
    let [y, _] = fill(q, cost, out, host, |gpu, [y, lse]| match few_queries::cuda::fit(&shape, layout) {
        true => few_queries::cuda::forward(gpu, (q, pages, layer), (&shape, layout, sinks), y),
        false => paged::cuda::forward(
            (gpu, paged::cuda::Kinds::of(gpu)),
            (q, pages, layer),
            (&shape, layout, sinks),
            (y, lse),
        ),
    })?;
    Ok(y)
}

fn check(shape: &AttentionShape, [q, k, v]: [&Tensor; 3], layout: &Layout) -> Result<()> {
    shape.check("attention")?;
    let operands = [((q, "queries"), shape.heads), ((k, "keys"), shape.kv_heads), ((v, "values"), shape.kv_heads)];
    for ((t, name), heads) in operands {
        check_operand("attention", q, (t, name), heads * shape.head_dim)?;
        if t.rows() != layout.tokens() {
            let expected = format!("{name} of {} rows, one a token of the layout", layout.tokens());
            return Err(Error::shape("attention", expected, t.shape()).into());
        }
    }
    if layout.pages().is_some() {
        let message =
            "expected a layout whose sequences meet their own keys; attend_cached takes one that goes on from a cache";
        return Err(Error::invalid("attention", message).into());
    }
    Ok(())
}

fn check_sinks(op: &'static str, sinks: Option<&Tensor>, shape: &AttentionShape) -> Result<()> {
    match sinks {
        Some(it) if it.shape() != [shape.heads] || it.dtype() != DType::F32 => {
            Err(Error::shape(op, format!("sinks of shape ({}) in f32", shape.heads), it.shape()).into())
        }
        _ => Ok(()),
    }
}

fn check_operand(op: &'static str, q: &Tensor, (t, name): (&Tensor, &str), cols: usize) -> Result<()> {
    crate::product::check_float(op, t)?;
    if t.dtype() != q.dtype() {
        return Err(
            Error::invalid(op, format!("expected {name} in {} as the queries, got {}", q.dtype(), t.dtype())).into()
        );
    }
    if t.shape().is_empty() || t.cols() != cols {
        return Err(Error::shape(op, format!("{name} of shape (rows, {cols})"), t.shape()).into());
    }
    Ok(())
}
