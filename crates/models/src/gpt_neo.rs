//! GPT-Neo: learned positions, pre-norm blocks whose attention alternates between all keys and a local window, unscaled.

use crate::{Architecture, Error, Input, KvCache, Model, ModelConfig, OutputHead, Result, Weights, model};
use halfbyte_autograd::{Result as OpResult, Tape, Var};
use halfbyte_lora::{Context, Linear, Modules, Role, Weight};
use halfbyte_ops::{
    Ids, Layout,
    add::add,
    attention::{AttentionShape, attend_cached, attention},
    gelu_new::gelu_new,
    layer_norm::layer_norm,
};
use halfbyte_tensor::{DType, Tensor};
use std::sync::Arc;

/// A `GPTNeoForCausalLM`.
pub struct GptNeo {
    config: ModelConfig,
    wte: Weight,
    wpe: Weight,
    layers: Vec<Block>,
    ln_f: LayerNorm,
    lm_head: Option<Linear>,
}

struct Block {
    ln_1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
    window: Option<usize>,
}

struct LayerNorm {
    weight: Weight,
    bias: Weight,
    eps: f32,
}

impl LayerNorm {
    fn new(weights: &mut dyn Weights, path: &str, hidden: usize, eps: f32) -> Result<LayerNorm> {
        let weight = weights.weight(&format!("{path}.weight"), &[hidden], Role::Norm)?;
        let bias = weights.weight(&format!("{path}.bias"), &[hidden], Role::Bias)?;
        Ok(LayerNorm { weight, bias, eps })
    }

    fn forward<'m>(&'m self, tape: &Tape<'m>, x: &Var, ctx: &Context) -> OpResult<Var> {
        layer_norm(tape, x, &self.weight.var(tape, ctx), &self.bias.var(tape, ctx), self.eps)
    }
}

impl GptNeo {
    /// Builds the model out of whatever `weights` provides.
    pub fn new(config: &ModelConfig, weights: &mut dyn Weights) -> Result<GptNeo> {
        let Architecture::GptNeo { local, window_size, layer_norm_epsilon: eps } = &config.architecture else {
            return Err(Error::Input("this config.json does not describe a GPT-Neo".into()));
        };
        let (hidden, inner, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let wte = weights.weight("transformer.wte.weight", &[vocab, hidden], Role::Embedding)?;
        let wpe =
            weights.weight("transformer.wpe.weight", &[config.max_position_embeddings, hidden], Role::Position)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for (i, local) in local.iter().enumerate() {
            let at = |name: &str| format!("transformer.h.{i}.{name}");
            let square = (hidden, hidden);
            layers.push(Block {
                ln_1: LayerNorm::new(weights, &at("ln_1"), hidden, *eps)?,
                q_proj: weights.linear(&at("attn.attention.q_proj"), square, false)?,
                k_proj: weights.linear(&at("attn.attention.k_proj"), square, false)?,
                v_proj: weights.linear(&at("attn.attention.v_proj"), square, false)?,
                out_proj: weights.linear(&at("attn.attention.out_proj"), square, true)?,
                ln_2: LayerNorm::new(weights, &at("ln_2"), hidden, *eps)?,
                c_fc: weights.linear(&at("mlp.c_fc"), (inner, hidden), true)?,
                c_proj: weights.linear(&at("mlp.c_proj"), (hidden, inner), true)?,
                window: local.then_some(*window_size),
            });
        }
        let ln_f = LayerNorm::new(weights, "transformer.ln_f", hidden, *eps)?;
        let lm_head = if config.tie_word_embeddings { None } else { Some(weights.head(model::HEAD, (vocab, hidden))?) };
        Ok(GptNeo { config: config.clone(), wte, wpe, layers, ln_f, lm_head })
    }

    /// The sum of token and position embeddings.
    fn embed<'m>(
        &'m self,
        tape: &Tape<'m>,
        (ids, layout): (&Ids, &Layout),
        compute: DType,
        ctx: &Context,
    ) -> Result<Var> {
        let limit = self.config.max_position_embeddings;
        if layout.furthest() > limit {
            return Err(Error::Input(format!(
                "the model has positions for {limit} tokens (max_position_embeddings); shorten the input, or lower --max-length"
            )));
        }
        let tokens = self.wte.rows(tape, ids, compute, ctx)?;
        let places = self.wpe.rows(tape, &Ids::new(layout.positions().to_vec()), compute, ctx)?;
        Ok(add(tape, &tokens, &places)?)
    }

    fn shape(&self) -> AttentionShape {
        AttentionShape {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_attention_heads,
            head_dim: self.config.head_dim,
            scale: 1.0,
            window: None,
        }
    }
}

impl Block {
    fn forward<'m>(&'m self, tape: &Tape<'m>, x: &Var, run: &Run) -> OpResult<Var> {
        let h = self.ln_1.forward(tape, x, &run.ctx)?;
        let [q, k, v] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], tape, &h, &run.ctx)?;
        let shape = AttentionShape { window: self.window, ..run.shape };
        let a = attention(tape, [&q, &k, &v], shape, &run.layout)?;
        let x = add(tape, x, &self.out_proj.forward(tape, &a, &run.ctx)?)?;
        self.mlp(tape, &x, &run.ctx)
    }

    fn mlp<'m>(&'m self, tape: &Tape<'m>, x: &Var, ctx: &Context) -> OpResult<Var> {
        let h = self.c_fc.forward(tape, &self.ln_2.forward(tape, x, ctx)?, ctx)?;
        let y = self.c_proj.forward(tape, &gelu_new(tape, &h)?, ctx)?;
        add(tape, x, &y)
    }

    fn linears(&self) -> [&Linear; 6] {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.out_proj, &self.c_fc, &self.c_proj]
    }
}

/// What all blocks of one pass share.
struct Run {
    shape: AttentionShape,
    layout: Layout,
    ctx: Context,
}

impl Model for GptNeo {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn hidden<'m>(&'m self, tape: &Tape<'m>, input: &Input<'_>, ctx: &Context) -> Result<Var> {
        let run = Arc::new(Run { shape: self.shape(), layout: input.layout.clone(), ctx: ctx.clone() });
        let mut x = self.embed(tape, (input.ids, input.layout), input.compute, ctx)?;
        for block in &self.layers {
            x = if input.checkpointing {
                let run = run.clone();
                tape.checkpoint(&x, move |tape, x| block.forward(tape, x, &run))?
            } else {
                block.forward(tape, &x, &run)?
            };
        }
        Ok(self.ln_f.forward(tape, &x, ctx)?)
    }

    fn extend(&self, ids: &[u32], cache: &mut KvCache, ctx: &Context) -> Result<Tensor> {
        let tape = Tape::disabled();
        let (past, new) = (cache.len(), ids.len());
        let (layout, ids) = (Layout::resumed(&[(new, past, 0)])?, Ids::new(ids.to_vec()));
        let mut x = self.embed(&tape, (&ids, &layout), cache.compute(), ctx)?;
        for (i, block) in self.layers.iter().enumerate() {
            let h = block.ln_1.forward(&tape, &x, ctx)?;
            let [q, k, v] = Linear::forward_all([&block.q_proj, &block.k_proj, &block.v_proj], &tape, &h, ctx)?;
            let (keys, values) = cache.append(i, k.value(), v.value())?;
            let shape = AttentionShape { window: block.window, ..self.shape() };
            let a = attend_cached(q.value(), keys, values, shape, &layout)?;
            let a = block.out_proj.forward(&tape, &Var::constant(a), ctx)?;
            x = block.mlp(&tape, &add(&tape, &x, &a)?, ctx)?;
        }
        cache.advance(new);
        Ok(self.ln_f.forward(&tape, &x, ctx)?.into_value())
    }

    fn head<'m>(&'m self, tape: &Tape<'m>, ctx: &Context) -> OutputHead<'m> {
        OutputHead::of(tape, self.lm_head.as_ref(), &self.wte, ctx)
    }

    fn parts(&self) -> (Vec<&Linear>, Vec<&Weight>) {
        let linears = self.layers.iter().flat_map(Block::linears).chain(&self.lm_head).collect();
        let mut weights = vec![&self.wte, &self.wpe];
        for norm in self.layers.iter().flat_map(|it| [&it.ln_1, &it.ln_2]).chain([&self.ln_f]) {
            weights.extend([&norm.weight, &norm.bias]);
        }
        (linears, weights)
    }

    fn modules(&mut self) -> Modules<'_> {
        let mut all = Modules::default();
        match &self.lm_head {
            Some(head) => all.head = Some(head.path().to_owned()),
            None => all.tied = Some(model::tie(&self.wte)),
        }
        all.weights.extend([&mut self.wte, &mut self.wpe]);
        for block in &mut self.layers {
            all.linears.extend([&mut block.q_proj, &mut block.k_proj, &mut block.v_proj, &mut block.out_proj]);
            all.linears.extend([&mut block.c_fc, &mut block.c_proj]);
            for norm in [&mut block.ln_1, &mut block.ln_2] {
                all.weights.extend([&mut norm.weight, &mut norm.bias]);
            }
        }
        all.weights.extend([&mut self.ln_f.weight, &mut self.ln_f.bias]);
        all.linears.extend(&mut self.lm_head);
        all
    }
}
