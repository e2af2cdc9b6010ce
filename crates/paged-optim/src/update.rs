//! One step over the pages: which elements meet which state, in parallel; and torch's AdamW, element by element.

use rayon::prelude::*;

use crate::{
    AdamWConfig, ParamSpec, ParamStep, StateFormat,
    arena::PageMut,
    format::BLOCK,
    layout::{Layout, Span},
    update8::{self, Blocks},
};

/// Elements of a piece of work, whole blocks: enough to outweigh handing it to a thread. Blocks do not depend on each
/// other, so the cut does not show in the result.
const PIECE: usize = 1 << 14;

/// One step's constants, computed in f64 and rounded once, as torch does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coefficients {
    /// `1 - lr * weight_decay`, the share of a decayed parameter that stays.
    pub(crate) keep: f32,
    /// `1 - beta1`
    pub(crate) mix1: f32,
    pub(crate) beta2: f32,
    /// `1 - beta2`
    pub(crate) mix2: f32,
    /// `lr / (1 - beta1^t)`
    pub(crate) step_size: f32,
    /// `sqrt(1 - beta2^t)`
    pub(crate) correction2: f32,
    pub(crate) eps: f32,
    pub(crate) in_8_bits: update8::Coefficients,
}

impl Coefficients {
    /// For step `t`, counted from one.
    pub(crate) fn new(config: &AdamWConfig, lr: f64, t: u64) -> Self {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = *config;
        Self {
            keep: (1.0 - lr * weight_decay) as f32,
            mix1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            mix2: (1.0 - beta2) as f32,
            step_size: (lr / (1.0 - beta1.powf(t as f64))) as f32,
            correction2: (1.0 - beta2.powf(t as f64)).sqrt() as f32,
            eps: eps as f32,
            in_8_bits: update8::Coefficients::new(config, lr, t),
        }
    }
}

/// Elements that lie together in one parameter and in one page.
struct Piece<'a> {
    value: &'a mut [f32],
    grad: &'a [f32],
    decay: bool,
    state: PieceState<'a>,
}

enum PieceState<'a> {
    F32 { first: &'a mut [f32], second: &'a mut [f32] },
    Blockwise8(Blocks<'a>),
}

/// Walks the parameters beside the pages.
pub(crate) struct Walk<'p> {
    /// What is left of each parameter.
    params: Vec<Rest<'p>>,
    layout: Layout,
    coefficients: Coefficients,
}

struct Rest<'p> {
    value: &'p mut [f32],
    grad: &'p [f32],
    decay: bool,
}

impl<'p> Walk<'p> {
    /// Lengths are checked by the caller.
    pub(crate) fn new(
        specs: &[ParamSpec],
        layout: Layout,
        params: &'p mut [ParamStep<'_>],
        coefficients: Coefficients,
    ) -> Self {
        let pairs = specs.iter().zip(params);
        let params = pairs.map(|(spec, step)| Rest { value: &mut *step.value, grad: step.grad, decay: spec.decay });
        Self { params: params.collect(), layout, coefficients }
    }

    /// Updates the elements that the next pages hold the state of, in parallel.
    pub(crate) fn update(&mut self, pages: Vec<PageMut<'_>>) {
        let layout = self.layout.clone();
        let mut pieces = Vec::new();
        for PageMut { page, mut words } in pages {
            for span in layout.of_page(page) {
                let state;
                (state, words) = words.split_at_mut(span.words());
                self.cut(span, state, &mut pieces);
            }
        }
        let c = self.coefficients;
        pieces.into_par_iter().for_each(|piece| {
            let Piece { value, grad, decay, state } = piece;
            match state {
                PieceState::F32 { first, second } => {
                    adamw(value, grad, first, second, if decay { c.keep } else { 1.0 }, &c)
                }
                PieceState::Blockwise8(blocks) => update8::adamw(value, grad, blocks, decay, &c.in_8_bits),
            }
        });
    }

    /// A span, whose state is `words`, in pieces.
    fn cut<'a>(&mut self, span: &Span, words: &'a mut [f32], pieces: &mut Vec<Piece<'a>>)
    where
        'p: 'a,
    {
        let (value, grad, decay) = self.take(span.param, span.len);
        let pairs = value.chunks_mut(PIECE).zip(grad.chunks(PIECE));
        match span.format {
            StateFormat::F32 => {
                let (first, second) = words.split_at_mut(span.len);
                let states = first.chunks_mut(PIECE).zip(second.chunks_mut(PIECE));
                pieces.extend(pairs.zip(states).map(|((value, grad), (first, second))| Piece {
                    value,
                    grad,
                    decay,
                    state: PieceState::F32 { first, second },
                }));
            }
            StateFormat::Blockwise8 => {
                let blocks = span.len.div_ceil(BLOCK);
                let (codes, absmax) = words.split_at_mut(2 * blocks * BLOCK / size_of::<f32>());
                let (first, second) = bytemuck::cast_slice_mut(codes).split_at_mut(blocks * BLOCK);
                let (first_absmax, second_absmax) = absmax.split_at_mut(blocks);
                let codes = first.chunks_mut(PIECE).zip(second.chunks_mut(PIECE));
                let absmax = first_absmax.chunks_mut(PIECE / BLOCK).zip(second_absmax.chunks_mut(PIECE / BLOCK));
                pieces.extend(pairs.zip(codes).zip(absmax).map(|(((value, grad), codes), absmax)| Piece {
                    value,
                    grad,
                    decay,
                    state: PieceState::Blockwise8(Blocks { codes: codes.into(), absmax: absmax.into() }),
                }));
            }
        }
    }

    /// The next elements of a parameter.
    fn take(&mut self, param: usize, len: usize) -> (&'p mut [f32], &'p [f32], bool) {
        let rest = &mut self.params[param];
        let (value, value_after) = std::mem::take(&mut rest.value).split_at_mut(len);
        let (grad, grad_after) = rest.grad.split_at(len);
        (rest.value, rest.grad) = (value_after, grad_after);
        (value, grad, rest.decay)
    }
}

/// One step of torch's AdamW:
///
/// ```text
/// p = p (1 - lr wd)
/// m = m + (g - m) (1 - beta1)
/// v = v beta2 + (1 - beta2) g g
/// p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
/// ```
///
/// Without fused multiply-add: where the processor lacks it each one would be a slow library call, and where it is used the
/// bits would differ from machine to machine.
fn adamw(value: &mut [f32], grad: &[f32], first: &mut [f32], second: &mut [f32], keep: f32, c: &Coefficients) {
    let state = first.iter_mut().zip(second);
    for ((p, &g), (m, v)) in value.iter_mut().zip(grad).zip(state) {
        *m += (g - *m) * c.mix1;
        *v = *v * c.beta2 + c.mix2 * g * g;
        *p = *p * keep - c.step_size * *m / (v.sqrt() / c.correction2 + c.eps);
    }
}
