//! LLaMA and the decoders built like it: pre-norm blocks of rotary grouped-query attention and SwiGLU. What tells one from
//! another is in a [`BlockSpec`].

use crate::{Architecture, Attend, Error, Model, ModelConfig, OutputHead, Pass, Result, Weights, model};
use halfbyte_autograd::{Result as OpResult, Tape, Var};
use halfbyte_lora::{Context, Linear, Modules, Role, Weight};
use halfbyte_ops::{
    Layout,
    attention::AttentionShape,
    rms_norm::rms_norm,
    rope::{RopeSpec, RopeTable, rope},
    silu_mul::silu_mul,
};
use std::sync::{Mutex, PoisonError};

/// What a block computes beyond the sizes that all models share.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSpec {
    /// Added to the mean square in every norm.
    pub norm_eps: f32,
    /// Which projections have a bias.
    pub biases: Biases,
    /// Whether queries and keys are normalised before they are rotated, each head by itself.
    pub qk_norm: bool,
    /// The rotation of queries and keys.
    pub rope: RopeSpec,
    /// For every layer, how many keys a query sees; all where there is none.
    pub windows: Vec<Option<usize>>,
}

/// Which projections have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// Those of queries, keys and values.
    pub qkv: bool,
    /// The one of attention's output.
    pub o: bool,
    /// Gate, up and down.
    pub mlp: bool,
}

/// A model of such blocks.
pub struct Decoder {
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
    /// Of queries and of keys.
    qk_norm: Option<[Weight; 2]>,
    o_proj: Linear,
    post_attention_layernorm: Weight,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    eps: f32,
    window: Option<usize>,
}

impl Decoder {
    /// Builds the model out of whatever `weights` provides.
    pub fn new(config: &ModelConfig, weights: &mut dyn Weights) -> Result<Decoder> {
        let Architecture::Decoder(spec) = &config.architecture else {
            return Err(Error::Input("this config.json does not describe a model like LLaMA".into()));
        };
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embed_tokens = weights.weight("model.embed_tokens.weight", &[vocab, hidden], Role::Embedding)?;
        let layers =
            (0..config.num_hidden_layers).map(|i| Block::new(i, spec, config, weights)).collect::<Result<_>>()?;
        let norm = weights.weight("model.norm.weight", &[hidden], Role::Norm)?;
        let tied = config.tie_word_embeddings;
        let lm_head = if tied { None } else { Some(weights.head(model::HEAD, (vocab, hidden))?) };
        Ok(Decoder {
            config: config.clone(),
            rope: spec.rope.clone(),
            rope_table: Mutex::new(None),
            eps: spec.norm_eps,
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
    fn new(i: usize, spec: &BlockSpec, config: &ModelConfig, weights: &mut dyn Weights) -> Result<Block> {
        let (hidden, inner, d) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (q, kv) = (config.num_attention_heads * d, config.num_key_value_heads * d);
        let Biases { qkv, o, mlp } = spec.biases;
        let at = |name: &str| format!("model.layers.{i}.{name}");
        let norm = |name: &str, channels: usize, weights: &mut dyn Weights| {
            weights.weight(&at(&format!("{name}.weight")), &[channels], Role::Norm)
        };
        Ok(Block {
            input_layernorm: norm("input_layernorm", hidden, weights)?,
            q_proj: weights.linear(&at("self_attn.q_proj"), (q, hidden), qkv)?,
            k_proj: weights.linear(&at("self_attn.k_proj"), (kv, hidden), qkv)?,
            v_proj: weights.linear(&at("self_attn.v_proj"), (kv, hidden), qkv)?,
            qk_norm: match spec.qk_norm {
                true => Some([norm("self_attn.q_norm", d, weights)?, norm("self_attn.k_norm", d, weights)?]),
                false => None,
            },
            o_proj: weights.linear(&at("self_attn.o_proj"), (hidden, q), o)?,
            post_attention_layernorm: norm("post_attention_layernorm", hidden, weights)?,
            gate_proj: weights.linear(&at("mlp.gate_proj"), (inner, hidden), mlp)?,
            up_proj: weights.linear(&at("mlp.up_proj"), (inner, hidden), mlp)?,
            down_proj: weights.linear(&at("mlp.down_proj"), (hidden, inner), mlp)?,
            eps: spec.norm_eps,
            window: spec.windows[i],
        })
    }

    fn forward<'m>(
        &'m self,
        tape: &Tape<'m>,
        x: &Var,
        run: &Run,
        (attend, layer): (&mut Attend<'_>, usize),
    ) -> OpResult<Var> {
        let h = norm(tape, x, &self.input_layernorm, (self.eps, &run.ctx))?;
        let [mut q, mut k, v] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], tape, &h, &run.ctx)?;
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            q = norm(tape, &q, q_norm, (self.eps, &run.ctx))?;
            k = norm(tape, &k, k_norm, (self.eps, &run.ctx))?;
        }
        let q = rope(tape, &q, &run.rope, &run.layout, run.shape.head_dim)?;
        let k = rope(tape, &k, &run.rope, &run.layout, run.shape.head_dim)?;
        let shape = AttentionShape { window: self.window, ..run.shape };
        let a = attend.attention(tape, [&q, &k, &v], (shape, layer), &run.layout)?;
        let x = self.o_proj.forward_onto(tape, (x, &a), &run.ctx)?;
        self.mlp(tape, &x, &run.ctx)
    }

    fn mlp<'m>(&'m self, tape: &Tape<'m>, x: &Var, ctx: &Context) -> OpResult<Var> {
        let h = norm(tape, x, &self.post_attention_layernorm, (self.eps, ctx))?;
        let [gate, up] = Linear::forward_all([&self.gate_proj, &self.up_proj], tape, &h, ctx)?;
        self.down_proj.forward_onto(tape, (x, &silu_mul(tape, &gate, &up)?), ctx)
    }
}

/// A norm whose weight an adapter may have brought along, each row by its own.
fn norm(tape: &Tape<'_>, x: &Var, weight: &Weight, (eps, ctx): (f32, &Context)) -> OpResult<Var> {
    let [y] = ctx.by_rows(tape, x, &[weight.path()], |x, ctx| Ok([rms_norm(tape, x, &weight.var(tape, ctx), eps)?]))?;
    Ok(y)
}

/// What all blocks of one pass share.
struct Run {
    shape: AttentionShape,
    rope: RopeTable,
    layout: Layout,
    ctx: Context,
}

impl Model for Decoder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn forward<'m>(&'m self, tape: &Tape<'m>, pass: &mut Pass<'_>) -> Result<Var> {
        let rope = self.rope_table(pass.layout.furthest())?;
        let (layout, ctx) = (pass.layout.clone(), pass.ctx.clone());
        let run = Run { shape: self.shape(), rope, layout, ctx };
        let x = self.embed_tokens.rows(tape, pass.ids, pass.compute, pass.ctx)?;
        let x = pass.blocks(tape, x, &self.layers, move |block, tape, x, attend, i| {
            block.forward(tape, x, &run, (attend, i))
        })?;
        Ok(norm(tape, &x, &self.norm, (self.eps, pass.ctx))?)
    }

    fn head<'m>(&'m self, tape: &Tape<'m>, ctx: &Context) -> OutputHead<'m> {
        OutputHead::of(tape, self.lm_head.as_ref(), &self.embed_tokens, ctx)
    }

    fn parts(&self) -> (Vec<&Linear>, Vec<&Weight>) {
        let (mut linears, mut weights) = (Vec::new(), vec![&self.embed_tokens]);
        for it in &self.layers {
            linears.extend([&it.q_proj, &it.k_proj, &it.v_proj, &it.o_proj, &it.gate_proj, &it.up_proj, &it.down_proj]);
            weights.push(&it.input_layernorm);
            weights.extend(it.qk_norm.iter().flatten());
            weights.push(&it.post_attention_layernorm);
        }
        linears.extend(&self.lm_head);
        weights.push(&self.norm);
        (linears, weights)
    }

    fn modules(&mut self) -> Modules<'_> {
        let mut all = model::modules(self.lm_head.as_ref(), &self.embed_tokens);
        all.weights.push(&mut self.embed_tokens);
        for it in &mut self.layers {
            all.linears.extend([&mut it.q_proj, &mut it.k_proj, &mut it.v_proj, &mut it.o_proj]);
            all.linears.extend([&mut it.gate_proj, &mut it.up_proj, &mut it.down_proj]);
            all.weights.push(&mut it.input_layernorm);
            all.weights.extend(it.qk_norm.iter_mut().flatten());
            all.weights.push(&mut it.post_attention_layernorm);
        }
        all.weights.push(&mut self.norm);
        all.linears.extend(&mut self.lm_head);
        all
    }
}
