//! The arithmetic of AdamW on slices, element by element.

use rayon::prelude::*;

use crate::{AdamWConfig, ParamSpec, ParamStep, arena::PageMut};

/// Elements of a piece of work: enough to outweigh handing it to a thread. Elements do not depend on each other, so the
/// cut does not show in the result.
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
        }
    }
}

/// Elements that lie together in one parameter and in one page.
struct Piece<'a> {
    value: &'a mut [f32],
    grad: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    decay: bool,
}

/// Walks the parameters beside the pages.
pub(crate) struct Walk<'p> {
    /// Parameters not yet begun.
    params: Box<dyn Iterator<Item = Rest<'p>> + Send + 'p>,
    rest: Option<Rest<'p>>,
    coefficients: Coefficients,
}

/// What is left of a parameter.
struct Rest<'p> {
    value: &'p mut [f32],
    grad: &'p [f32],
    decay: bool,
}

impl<'p> Walk<'p> {
    /// Lengths are checked by the caller.
    pub(crate) fn new(specs: &'p [ParamSpec], params: &'p mut [ParamStep<'_>], coefficients: Coefficients) -> Self {
        let params = specs.iter().zip(params).map(|(spec, step)| Rest {
            value: &mut *step.value,
            grad: step.grad,
            decay: spec.decay,
        });
        Self { params: Box::new(params), rest: None, coefficients }
    }

    /// Updates the elements that the next pages hold the state of, in parallel.
    pub(crate) fn update(&mut self, pages: Vec<PageMut<'_>>) {
        let mut pieces = Vec::new();
        for page in pages {
            let (mut first, mut second) = (page.first, page.second);
            while !first.is_empty() {
                let (value, grad, decay) = self.take(first.len().min(PIECE));
                let (m, v);
                (m, first) = first.split_at_mut(value.len());
                (v, second) = second.split_at_mut(value.len());
                pieces.push(Piece { value, grad, first: m, second: v, decay });
            }
        }
        let c = self.coefficients;
        pieces.into_par_iter().for_each(|piece| adamw(piece, &c));
    }

    /// The next elements, at most `len`, at least one, all of one parameter.
    fn take(&mut self, len: usize) -> (&'p mut [f32], &'p [f32], bool) {
        let mut rest = match self.rest.take() {
            Some(rest) => rest,
            None => {
                let mut begun = self.params.by_ref().skip_while(|r| r.value.is_empty());
                begun.next().expect("pages hold exactly the state of all parameters")
            }
        };
        let (value, value_after) = std::mem::take(&mut rest.value).split_at_mut(len.min(rest.grad.len()));
        let (grad, grad_after) = rest.grad.split_at(value.len());
        let decay = rest.decay;
        if !grad_after.is_empty() {
            self.rest = Some(Rest { value: value_after, grad: grad_after, decay });
        }
        (value, grad, decay)
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
fn adamw(piece: Piece<'_>, c: &Coefficients) {
    let keep = if piece.decay { c.keep } else { 1.0 };
    let state = piece.first.iter_mut().zip(piece.second);
    for ((p, &g), (m, v)) in piece.value.iter_mut().zip(piece.grad).zip(state) {
        *m += (g - *m) * c.mix1;
        *v = *v * c.beta2 + c.mix2 * g * g;
        *p = *p * keep - c.step_size * *m / (v.sqrt() / c.correction2 + c.eps);
    }
}
