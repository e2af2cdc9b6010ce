use crate::{KvCache, ModelConfig, OutputHead, Result};
use halfbyte_autograd::{Result as OpResult, Tape, Var};
use halfbyte_lora::{Context, Linear, Modules, Role, Tie, Weight};
use halfbyte_ops::{
    Ids, Layout,
    attention::{AttentionShape, attention_with_room},
    experts::Balance,
    rope::{RopeSpec, RopeTable, rope},
};
use halfbyte_tensor::{DType, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// One pass through a model: what goes in, and what it is put to.
pub struct Pass<'a> {
    /// One id a row of the layout.
    pub ids: &'a Ids,
    /// Where sequences begin and end, and at which positions.
    pub layout: &'a Layout,
    /// Adapters and dropout.
    pub ctx: &'a Context,
    /// What the tokens attend to.
    pub attend: Attend<'a>,
    /// Dtype of the activations: f32, bf16 or f16.
    pub compute: DType,
    /// Whether blocks are recomputed in the backward pass instead of being kept. For [`Attend::Segments`] alone.
    pub checkpointing: bool,
    /// Which experts were chosen, for the loss that keeps them equally busy; none where nobody asks.
    pub balance: Option<Arc<Balance>>,
}

/// What the tokens of a pass attend to.
pub enum Attend<'a> {
    /// The tokens before them in their own sequence of the layout.
    Segments,
    /// The tokens of their sequence that a cache holds, which they join. The layout is the one of [`KvCache::begin`]. Nothing is
    /// recorded for a backward pass.
    Cache(&'a mut KvCache),
}

impl Attend<'_> {
    /// The attention of layer `layer`, whose queries and keys are rotated by a table if there is one.
    pub(crate) fn attention(
        &mut self,
        tape: &Tape<'_>,
        [mut q, mut k, v]: [Var; 3],
        table: Option<&RopeTable>,
        (shape, sinks, layer): (AttentionShape, Option<&Tensor>, usize),
        (layout, room): (&Layout, usize),
    ) -> OpResult<Var> {
        match self {
            Attend::Segments => {
                if let Some(table) = table {
                    q = rope(tape, &q, table, layout, shape.head_dim)?;
                    k = rope(tape, &k, table, layout, shape.head_dim)?;
                }
                attention_with_room(tape, [&q, &k, &v], (shape, sinks, room), layout)
            }
            Attend::Cache(cache) => {
                let (new, turned) = ([q.value(), k.value(), v.value()], table.map(|it| (it, layout)));
                Ok(Var::constant(cache.attention(new, (shape, sinks), (layer, turned))?))
            }
        }
    }
}

impl<'a> Pass<'a> {
    /// One in which the sequences of the layout attend to themselves, and activations are kept.
    pub fn new(ids: &'a Ids, layout: &'a Layout, ctx: &'a Context, compute: DType) -> Pass<'a> {
        Pass { ids, layout, ctx, attend: Attend::Segments, compute, checkpointing: false, balance: None }
    }

    /// Tokens of the longest text that the pass belongs to.
    pub(crate) fn longest(&self) -> usize {
        let announced = match &self.attend {
            Attend::Segments => 0,
            Attend::Cache(cache) => cache.longest(),
        };
        announced.max(self.layout.furthest())
    }

    /// Leads `x` through the blocks, each of which `block` computes; the last argument is the block's number. The last block would be run
    /// again right after it was run: where the tape keeps what there is memory for, what it made is kept.
    pub(crate) fn blocks<'m, B>(
        &mut self,
        tape: &Tape<'m>,
        mut x: Var,
        blocks: &'m [B],
        block: impl Fn(&'m B, &Tape<'m>, &Var, &mut Attend<'_>, usize) -> OpResult<Var> + 'm,
    ) -> Result<Var> {
        let block = Arc::new(block);
        for (i, it) in blocks.iter().enumerate() {
            let is_kept = !self.checkpointing || (tape.has_room() && i + 1 == blocks.len());
            x = match &mut self.attend {
                Attend::Segments if !is_kept => {
                    let block = block.clone();
                    tape.checkpoint(&x, move |tape, x| block(it, tape, x, &mut Attend::Segments, i))?
                }
                attend => block(it, tape, &x, attend, i)?,
            };
        }
        if let Attend::Cache(cache) = &mut self.attend {
            cache.advance();
        }
        Ok(x)
    }
}

/// A causal language model: its forward pass, and access to its parts.
pub trait Model: Send + Sync {
    /// The facts of its `config.json`.
    fn config(&self) -> &ModelConfig;

    /// The normalised hidden states `(tokens, hidden_size)`. Fails where the tokens do not fit the model, or memory is short; a
    /// cache that took part is of no use then.
    fn forward<'m>(&'m self, tape: &Tape<'m>, pass: &mut Pass<'_>) -> Result<Var>;

    /// The output head of a pass. Where rows may use different adapters, ask within [`Context::by_rows`].
    fn head<'m>(&'m self, tape: &Tape<'m>, ctx: &Context) -> OutputHead<'m>;

    /// Its parts, in the order of the checkpoint.
    fn parts(&self) -> (Vec<&Linear>, Vec<&Weight>);

    /// Its parts, for adapters.
    fn modules(&mut self) -> Modules<'_>;
}

/// A table for positions below `length`: the last one if it serves, since generation asks token by token.
pub(crate) fn table(spec: &RopeSpec, last: &Mutex<Option<RopeTable>>, length: usize) -> Result<RopeTable> {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(table) = last.as_ref().filter(|it| spec.serves(it.length(), length)) {
        return Ok(table.clone());
    }
    Ok(last.insert(RopeTable::new(spec, spec.table_length(length))?).clone())
}

/// What the published files call the output head, and those that tie it by name.
pub(crate) const HEAD: &str = "lm_head";

/// The paths of the weights that a model's head may read: its own matrix's and its bias's, or that of the embedding and the one by which
/// an adapter unties it.
pub(crate) fn head_paths(model: &dyn Model) -> [String; 3] {
    let (linears, weights) = model.parts();
    let own = linears.iter().find(|it| it.role() == Role::Head).map(|it| it.path());
    let tied = || weights.iter().find(|it| it.role() == Role::Embedding).map(|it| it.path());
    [own.or_else(tied).unwrap_or_default().to_owned(), HEAD.to_owned(), format!("{HEAD}.bias")]
}

/// No parts yet, but what there is to say about the head: a layer of its own, or the embedding.
pub(crate) fn modules<'a>(head: Option<&Linear>, embedding: &Weight) -> Modules<'a> {
    let tied = Tie { embedding: embedding.module().to_owned(), head: HEAD.to_owned() };
    match head {
        Some(head) => Modules { head: Some(head.path().to_owned()), ..Modules::default() },
        None => Modules { tied: Some(tied), ..Modules::default() },
    }
}
