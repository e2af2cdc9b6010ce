//! The memory plan: what a run will hold, class by class, before anything is loaded.
//!
//! It is not computed by formulas that would have to follow the ops: it is a [`rehearsal`] of the run, the real model, tape and optimizer
//! over tensors that have sizes and no contents.

mod card;
mod longest;
pub(crate) mod rehearsal;
pub(crate) mod roofline;
mod room;
mod untrained;
mod weights;

pub(crate) use card::Card;
pub(crate) use longest::Longest;
pub(crate) use rehearsal::Rehearsal;
pub(crate) use room::Room;
pub(crate) use untrained::{Asked, Untrained, compared};

use crate::console::mib;
use serde::Serialize;

/// Of a training: measured on an idle process with a tokenizer of 49,152 entries loaded.
pub(crate) const RUNTIME_BYTES: usize = 72 << 20;

/// Bytes of each class.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Plan {
    /// Frozen matrices as they are stored, scales included.
    pub(crate) frozen_matrices: usize,
    /// Embeddings, norms, biases and the output head, where they do not train.
    pub(crate) dense_weights: usize,
    /// What trains, in f32.
    pub(crate) trainable: usize,
    /// Its gradients, in f32.
    pub(crate) gradients: usize,
    /// The optimizer's state that is in memory.
    pub(crate) optimizer: usize,
    /// What the forward pass keeps for the backward pass.
    pub(crate) activations: usize,
    /// What comes and goes: logits, gradients on their way, decoded matrices, panels of products; on a GPU also what its pool and its
    /// libraries keep.
    pub(crate) workspace: usize,
    /// Token ids of the data sets.
    pub(crate) data: usize,
    /// The process itself: code, tokenizer, thread stacks, allocator.
    pub(crate) runtime: usize,
    /// Page-locked host memory beside all that, for what leaves a GPU and comes back.
    pub(crate) page_locked: usize,
}

impl Plan {
    /// All classes together, which lie on one device.
    pub(crate) fn total(&self) -> usize {
        self.classes().iter().map(|it| it.1).sum()
    }

    /// Lines for people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |name: &str, bytes: usize| format!("  {name:<22} {:>12}", mib(bytes));
        let mut lines: Vec<String> = self.classes().iter().filter(|it| it.1 > 0).map(|it| line(it.0, it.1)).collect();
        lines.push(line("planned in all", self.total()));
        if self.page_locked > 0 {
            lines.push(line("page-locked beside it", self.page_locked));
        }
        lines
    }

    fn classes(&self) -> [(&'static str, usize); 9] {
        [
            ("frozen matrices", self.frozen_matrices),
            ("dense weights", self.dense_weights),
            ("trainable weights", self.trainable),
            ("gradients", self.gradients),
            ("optimizer state", self.optimizer),
            ("activations", self.activations),
            ("workspace", self.workspace),
            ("data", self.data),
            ("runtime", self.runtime),
        ]
    }
}
