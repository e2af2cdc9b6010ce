//! Causal attention with grouped key/value heads and an optional local window, in blocks over queries and keys.
//!
//! No `time x time` matrix ever exists: the forward pass keeps running maxima and sums (an online softmax) and saves the
//! logarithm of each sum, `lse`; the backward pass computes the probabilities again as `exp(score - lse)`. Inside, all
//! numbers are f32.

mod backward;
mod blocks;
mod cpu;
mod cuda;
mod decode;
#[cfg(test)]
mod tests;

use blocks::Inputs;
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{DType, Error, Tensor, with_float};

/// What the rows and columns of queries, keys and values mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Rows of a sequence, padding included.
    pub time: usize,
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
}

impl AttentionShape {
    /// Query heads that share a key/value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn check(&self, op: &'static str) -> Result<()> {
        let refuse = |message: String| Err(Error::invalid(op, message).into());
        if [self.batch, self.time, self.heads, self.kv_heads, self.head_dim].contains(&0) {
            return refuse(format!("batch, time, heads, kv_heads and head_dim must be positive, got {self:?}"));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return refuse(format!("heads ({}) must be a multiple of kv_heads ({})", self.heads, self.kv_heads));
        }
        if self.window == Some(0) {
            return refuse("a window must be at least 1, got 0".into());
        }
        Ok(())
    }
}

/// Softmax-weighted sums of values: `q (batch * time, heads * head_dim)`, `k` and `v (batch * time, kv_heads *
/// head_dim)` of one dtype give `y` in the shape and dtype of `q`.
///
/// Query `i` sees keys `0..=i` of its sequence, or the last `window` of them. `lengths` holds the real rows of each
/// sequence, padding on the right: outputs and gradients of padded rows are zero and cost nothing. Saves `q`, `k`, `v`,
/// `y` and one number for each row and head.
pub fn attention(tape: &Tape<'_>, q: &Var, k: &Var, v: &Var, shape: AttentionShape, lengths: &[usize]) -> Result<Var> {
    check(&shape, [q.value(), k.value(), v.value()], lengths)?;
    if q.value().gpu().is_some() {
        return attention_on_gpu(tape, [q, k, v], shape, lengths);
    }
    let mut y = Tensor::scratch(q.value().shape(), q.value().dtype());
    let mut lse = Tensor::scratch(&[shape.batch * shape.heads, shape.time], DType::F32);
    with_float!(y.dtype(), T, {
        let inputs = Inputs::<T>::new(q.value(), k.value(), v.value(), shape);
        cpu::forward(&inputs, lengths, y.data_mut(), lse.data_mut());
    });
    if !tape.is_recording() || ![q, k, v].iter().any(|it| it.requires_grad()) {
        return Ok(Var::constant(y));
    }
    let (qv, kv, vv, yv) = (q.value().clone(), k.value().clone(), v.value().clone(), y.clone());
    let lengths = lengths.to_vec();
    Ok(tape.record("attention", [q, k, v], y, move |dy, needs| {
        let gradient = |need: bool, of: &Tensor| need.then(|| Tensor::scratch(of.shape(), of.dtype()));
        let (mut dq, mut dk, mut dv) = (gradient(needs[0], &qv), gradient(needs[1], &kv), gradient(needs[2], &vv));
        with_float!(yv.dtype(), T, {
            let saved = backward::Saved::<T> {
                inputs: Inputs::new(&qv, &kv, &vv, shape),
                y: yv.data(),
                dy: dy.data(),
                lse: lse.data(),
                lengths: &lengths,
            };
            backward::backward(&saved, [&mut dq, &mut dk, &mut dv].map(|it| it.as_mut().map(Tensor::data_mut)));
        });
        Ok([dq, dk, dv])
    }))
}

fn attention_on_gpu(tape: &Tape<'_>, inputs: [&Var; 3], shape: AttentionShape, lengths: &[usize]) -> Result<Var> {
    let place = cuda::Place { kv_time: shape.time, start: 0 };
    let (y, lse) = cuda::forward(inputs.map(Var::value), &shape, place, Some(lengths))?;
    if !tape.is_recording() || !inputs.iter().any(|it| it.requires_grad()) {
        return Ok(Var::constant(y));
    }
    let (kept, yv, lengths) = (inputs.map(|it| it.value().clone()), y.clone(), lengths.to_vec());
    Ok(tape.record("attention", inputs, y, move |dy, needs| {
        let saved = cuda::Saved { inputs: kept.each_ref(), y: &yv, lse: &lse, lengths: &lengths };
        let [dq, dk, dv] = cuda::backward(&saved, &dy, &shape)?;
        Ok([needs[0].then_some(dq), needs[1].then_some(dk), needs[2].then_some(dv)])
    }))
}

/// Attention of new queries over a cache: `q (time, heads * head_dim)` at positions `start..start + time`, against the
/// first `start + time` rows of `k` and `v (capacity, kv_heads * head_dim)`, which hold the new rows already.
///
/// Returns `y` in the shape and dtype of `q`; `shape.batch` is 1.
pub fn attend_cached(q: &Tensor, k: &Tensor, v: &Tensor, shape: AttentionShape, start: usize) -> Result<Tensor> {
    shape.check("attend_cached")?;
    check_operand("attend_cached", q, (q, "queries"), shape.heads * shape.head_dim)?;
    check_operand("attend_cached", q, (k, "keys"), shape.kv_heads * shape.head_dim)?;
    check_operand("attend_cached", q, (v, "values"), shape.kv_heads * shape.head_dim)?;
    let total = start + shape.time;
    if shape.batch != 1 || q.rows() != shape.time || k.rows() < total || v.rows() < total {
        let message = format!(
            "expected one sequence of {} queries and at least {total} cached rows, got {} queries, {} keys, {} values",
            shape.time,
            q.rows(),
            k.rows(),
            v.rows()
        );
        return Err(Error::invalid("attend_cached", message).into());
    }
    if q.gpu().is_some() {
        let place = cuda::Place { kv_time: k.rows(), start };
        return Ok(cuda::forward([q, k, v], &shape, place, None)?.0);
    }
    let mut y = Tensor::scratch(q.shape(), q.dtype());
    with_float!(y.dtype(), T, {
        let inputs = Inputs { start, ..Inputs::<T>::new(q, k, v, shape) };
        if shape.time <= decode::MAX_QUERIES {
            decode::forward(&inputs, y.data_mut());
        } else {
            let mut lse = Tensor::scratch(&[shape.heads, shape.time], DType::F32);
            cpu::forward(&inputs, &[shape.time], y.data_mut(), lse.data_mut());
        }
    });
    Ok(y)
}

fn check(shape: &AttentionShape, [q, k, v]: [&Tensor; 3], lengths: &[usize]) -> Result<()> {
    shape.check("attention")?;
    let operands = [((q, "queries"), shape.heads), ((k, "keys"), shape.kv_heads), ((v, "values"), shape.kv_heads)];
    for ((t, name), heads) in operands {
        check_operand("attention", q, (t, name), heads * shape.head_dim)?;
        if t.rows() != shape.batch * shape.time {
            let expected = format!("{name} of batch * time = {} rows", shape.batch * shape.time);
            return Err(Error::shape("attention", expected, t.shape()).into());
        }
    }
    if lengths.len() != shape.batch || lengths.iter().any(|it| *it > shape.time) {
        let message =
            format!("expected {} lengths of at most {} rows, one a sequence, got {lengths:?}", shape.batch, shape.time);
        return Err(Error::invalid("attention", message).into());
    }
    Ok(())
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
