use crate::ids::once;
use halfbyte_cuda::Gpu;
use halfbyte_tensor::{Result, Tensor, cuda};
use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

/// Which tokens go to which expert. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Routes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tokens: usize,
    each: usize,
    /// The token of every row, the rows of an expert together and in the order of the tokens.
    order: Vec<u32>,
    /// Where each expert's rows begin, and the end.
    starts: Vec<usize>,
    /// The rows of every token, `each` of them, in the order of the experts.
    of_token: Vec<u32>,
    on_gpu: OnceLock<Tensor>,
}

impl Routes {
    /// From the experts of every token, `each` of them, one token after the other.
    pub(super) fn new(chosen: &[u32], (experts, each): (usize, usize)) -> Routes {
        let mut starts = vec![0; experts + 1];
        chosen.iter().for_each(|e| starts[*e as usize + 1] += 1);
        for e in 0..experts {
            starts[e + 1] += starts[e];
        }
        let (mut order, mut next) = (vec![0; chosen.len()], starts.clone());
        for (token, own) in chosen.chunks(each).enumerate() {
            for e in own {
                order[next[*e as usize]] = token as u32;
                next[*e as usize] += 1;
            }
        }
        Routes::of(chosen.len() / each.max(1), each, order, starts)
    }

    fn of(tokens: usize, each: usize, order: Vec<u32>, starts: Vec<usize>) -> Routes {
        let (mut of_token, mut found) = (vec![0; order.len()], vec![0; tokens]);
        for (row, token) in order.iter().enumerate() {
            let token = *token as usize;
            of_token[token * each + found[token]] = row as u32;
            found[token] += 1;
        }
        Routes(Arc::new(Inner { tokens, each, order, starts, of_token, on_gpu: OnceLock::new() }))
    }

    /// All tokens at one expert, and the rest shared by the others.
    pub(super) fn dry(tokens: usize, experts: usize, each: usize) -> Routes {
        let (rest, others) = (tokens * (each - 1), experts.saturating_sub(1).max(1));
        let sizes = (0..experts).map(|e| match e {
            0 => tokens,
            _ => rest / others + usize::from(e <= rest % others),
        });
        let mut starts = vec![0];
        sizes.for_each(|it| starts.push(starts[starts.len() - 1] + it));
        let order = (0..tokens * each).map(|row| (row % tokens.max(1)) as u32).collect();
        Routes::of(tokens, each, order, starts)
    }

    /// Experts, with tokens and without.
    pub fn experts(&self) -> usize {
        self.0.starts.len() - 1
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.0.tokens
    }

    /// Rows of all experts.
    pub fn rows(&self) -> usize {
        self.0.order.len()
    }

    /// The experts that have rows, ascending.
    pub fn busy(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.experts()).filter(|e| !self.range(*e).is_empty())
    }

    /// The rows of an expert.
    pub fn range(&self, expert: usize) -> Range<usize> {
        self.0.starts[expert]..self.0.starts[expert + 1]
    }

    /// Tokens of an expert, ascending.
    pub(super) fn tokens_of(&self, expert: usize) -> &[u32] {
        &self.0.order[self.range(expert)]
    }

    /// The rows of a token.
    pub(super) fn rows_of(&self, token: usize) -> &[u32] {
        &self.0.of_token[token * self.0.each..(token + 1) * self.0.each]
    }

    /// Experts of all tokens, in the order of [`Routes::rows_of`].
    pub(super) fn expert_of(&self) -> Vec<u32> {
        (0..self.experts()).flat_map(|e| vec![e as u32; self.range(e).len()]).collect()
    }

    /// The token of every row on a GPU, u32.
    pub(super) fn order_on(&self, gpu: &Arc<Gpu>) -> Result<&Tensor> {
        once(&self.0.on_gpu, || cuda::upload_u32(gpu, &self.0.order))
    }
}
