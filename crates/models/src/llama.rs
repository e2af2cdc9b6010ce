//! LLaMA: pre-norm blocks of rotary grouped-query attention and SwiGLU.

use crate::{Architecture, Error, Input, KvCache, Model, ModelConfig, OutputHead, Result, Weights, model};
use halfbyte_autograd::{Result as OpResult, Tape, Var};
use halfbyte_lora::{Context, Linear, Modules, Role, Weight};
use halfbyte_ops::{
    Ids, Layout,
    add::add,
    attention::{AttentionShape, attend_cached, attention},
    rms_norm::rms_norm,
    rope::{RopeSpec, RopeTable, rope},
    silu_mul::silu_mul,
};
use halfbyte_tensor::Tensor;
use std::sync::{Arc, Mutex, PoisonError};

/// A `LlamaForCausalLM`.
pub struct Llama {
    config: ModelConfig,
    rope: RopeSpec,
    /// The last table made, for the next pass of about the same length.
    rope_table: Mutex<Option<RopeTable>>,
    eps: f32,
    embed_tokens: Weight,
    layers: Vec<Block>,
    norm: Weight,
    lm_head: Option<Linear>,
}

struct Block {
    input_layernorm: Weight,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: Weight,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    eps: f32,
}

impl Llama {
    /// Builds the model out of whatever `weights` provides.
    pub fn new(config: &ModelConfig, weights: &mut dyn Weights) -> Result<Llama> {
        let Architecture::Llama { rope, rms_norm_eps: eps, attention_bias, mlp_bias } = &config.architecture else {
            return Err(Error::Input("this config.json does not describe a LLaMA".into()));
        };
        let (hidden, inner, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let (q, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let embed_tokens = weights.weight("model.embed_tokens.weight", &[vocab, hidden], Role::Embedding)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            layers.push(Block {
                input_layernorm: weights.weight(&at("input_layernorm.weight"), &[hidden], Role::Norm)?,
                q_proj: weights.linear(&at("self_attn.q_proj"), (q, hidden), *attention_bias)?,
                k_proj: weights.linear(&at("self_attn.k_proj"), (kv, hidden), *attention_bias)?,
                v_proj: weights.linear(&at("self_attn.v_proj"), (kv, hidden), *attention_bias)?,
                o_proj: weights.linear(&at("self_attn.o_proj"), (hidden, q), *attention_bias)?,
                post_attention_layernorm: weights.weight(
                    &at("post_attention_layernorm.weight"),
                    &[hidden],
                    Role::Norm,
                )?,
                gate_proj: weights.linear(&at("mlp.gate_proj"), (inner, hidden), *mlp_bias)?,
                up_proj: weights.linear(&at("mlp.up_proj"), (inner, hidden), *mlp_bias)?,
                down_proj: weights.linear(&at("mlp.down_proj"), (hidden, inner), *mlp_bias)?,
                eps: *eps,
            });
        }
        let norm = weights.weight("model.norm.weight", &[hidden], Role::Norm)?;
        let lm_head = if config.tie_word_embeddings { None } else { Some(weights.head(model::HEAD, (vocab, hidden))?) };
        Ok(Llama {
            config: config.clone(),
            rope: rope.clone(),
            rope_table: Mutex::new(None),
            eps: *eps,
            embed_tokens,
            layers,
            norm,
            lm_head,
        })
    }

    /// A table for positions below `length`: the last one if it is long enough, since generation asks token by token.
    fn rope_table(&self, length: usize) -> Result<RopeTable> {
        if self.rope.depends_on_length() {
            return Ok(RopeTable::new(&self.rope, length)?);
        }
        let mut last = self.rope_table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = last.as_ref().filter(|it| it.length() >= length) {
            return Ok(table.clone());
        }
        Ok(last.insert(RopeTable::new(&self.rope, length.next_power_of_two())?).clone())
    }

    fn shape(&self) -> AttentionShape {
        AttentionShape {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
            scale: 1.0 / (self.config.head_dim as f32).sqrt(),
            window: None,
        }
    }
}

impl Block {
    fn forward<'m>(&'m self, tape: &Tape<'m>, x: &Var, run: &Run) -> OpResult<Var> {
        let h = rms_norm(tape, x, &self.input_layernorm.var(tape, &run.ctx), self.eps)?;
        let [q, k, v] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], tape, &h, &run.ctx)?;
        let q = rope(tape, &q, &run.rope, &run.layout, run.shape.head_dim)?;
        let k = rope(tape, &k, &run.rope, &run.layout, run.shape.head_dim)?;
        let a = attention(tape, [&q, &k, &v], run.shape, &run.layout)?;
        let x = add(tape, x, &self.o_proj.forward(tape, &a, &run.ctx)?)?;
        self.mlp(tape, &x, &run.ctx)
    }

    fn mlp<'m>(&'m self, tape: &Tape<'m>, x: &Var, ctx: &Context) -> OpResult<Var> {
        let h = rms_norm(tape, x, &self.post_attention_layernorm.var(tape, ctx), self.eps)?;
        let [gate, up] = Linear::forward_all([&self.gate_proj, &self.up_proj], tape, &h, ctx)?;
        let y = self.down_proj.forward(tape, &silu_mul(tape, &gate, &up)?, ctx)?;
        add(tape, x, &y)
    }

    fn linears(&self) -> [&Linear; 7] {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj, &self.gate_proj, &self.up_proj, &self.down_proj]
    }
}

/// What all blocks of one pass share.
struct Run {
    shape: AttentionShape,
    rope: RopeTable,
    layout: Layout,
    ctx: Context,
}

impl Model for Llama {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn hidden<'m>(&'m self, tape: &Tape<'m>, input: &Input<'_>, ctx: &Context) -> Result<Var> {
        let run = Arc::new(Run {
            shape: self.shape(),
            rope: self.rope_table(input.layout.longest())?,
            layout: input.layout.clone(),
            ctx: ctx.clone(),
        });
        let mut x = self.embed_tokens.rows(tape, input.ids, input.compute, ctx)?;
        for block in &self.layers {
            x = if input.checkpointing {
                let run = run.clone();
                tape.checkpoint(&x, move |tape, x| block.forward(tape, x, &run))?
            } else {
                block.forward(tape, &x, &run)?
            };
        }
        Ok(rms_norm(tape, &x, &self.norm.var(tape, ctx), self.eps)?)
    }

    fn extend(&self, ids: &[u32], cache: &mut KvCache, ctx: &Context) -> Result<Tensor> {
        let tape = Tape::disabled();
        let (past, new) = (cache.len(), ids.len());
        let table = self.rope_table(past + new)?;
        let (layout, ids) = (Layout::resumed(&[(new, past, 0)])?, Ids::new(ids.to_vec()));
        let shape = self.shape();
        let mut x = self.embed_tokens.rows(&tape, &ids, cache.compute(), ctx)?;
        for (i, block) in self.layers.iter().enumerate() {
            let h = rms_norm(&tape, &x, &block.input_layernorm.var(&tape, ctx), self.eps)?;
            let [q, k, v] = Linear::forward_all([&block.q_proj, &block.k_proj, &block.v_proj], &tape, &h, ctx)?;
            let q = rope(&tape, &q, &table, &layout, shape.head_dim)?;
            let k = rope(&tape, &k, &table, &layout, shape.head_dim)?;
            let (keys, values) = cache.append(i, k.value(), v.value())?;
            let a = attend_cached(q.value(), keys, values, shape, &layout)?;
            let a = block.o_proj.forward(&tape, &Var::constant(a), ctx)?;
            x = block.mlp(&tape, &add(&tape, &x, &a)?, ctx)?;
        }
        cache.advance(new);
        Ok(rms_norm(&tape, &x, &self.norm.var(&tape, ctx), self.eps)?.into_value())
    }

    fn head<'m>(&'m self, tape: &Tape<'m>, ctx: &Context) -> OutputHead<'m> {
        OutputHead::of(tape, self.lm_head.as_ref(), &self.embed_tokens, ctx)
    }

    fn parts(&self) -> (Vec<&Linear>, Vec<&Weight>) {
        let linears = self.layers.iter().flat_map(Block::linears).chain(&self.lm_head).collect();
        let norms = self.layers.iter().flat_map(|it| [&it.input_layernorm, &it.post_attention_layernorm]);
        (linears, [&self.embed_tokens].into_iter().chain(norms).chain([&self.norm]).collect())
    }

    fn modules(&mut self) -> Modules<'_> {
        let mut all = Modules::default();
        match &self.lm_head {
            Some(head) => all.head = Some(head.path().to_owned()),
            None => all.tied = Some(model::tie(&self.embed_tokens)),
        }
        all.weights.push(&mut self.embed_tokens);
        for block in &mut self.layers {
            all.linears.extend([&mut block.q_proj, &mut block.k_proj, &mut block.v_proj, &mut block.o_proj]);
            all.linears.extend([&mut block.gate_proj, &mut block.up_proj, &mut block.down_proj]);
            all.weights.extend([&mut block.input_layernorm, &mut block.post_attention_layernorm]);
        }
        all.weights.push(&mut self.norm);
        all.linears.extend(&mut self.lm_head);
        all
    }
}
