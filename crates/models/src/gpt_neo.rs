//! GPT-Neo: learned positions, pre-norm blocks whose attention alternates between all keys and a local window, unscaled.

use crate::{Architecture, Attend, Error, Model, ModelConfig, OutputHead, Pass, Result, Weights, model};
use halfbyte_autograd::{Result as OpResult, Tape, Var};
use halfbyte_lora::{Context, Linear, Modules, Role, Weight};
use halfbyte_ops::{Ids, Layout, add::add, attention::AttentionShape, gelu_new::gelu_new, layer_norm::layer_norm};

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
        let [y] = ctx.by_rows(tape, x, &[self.weight.path(), self.bias.path()], |x, ctx| {
            Ok([layer_norm(tape, x, &self.weight.var(tape, ctx), &self.bias.var(tape, ctx), self.eps)?])
        })?;
        Ok(y)
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
    fn embed<'m>(&'m self, tape: &Tape<'m>, pass: &Pass<'_>) -> Result<Var> {
        let limit = self.config.max_position_embeddings;
        if pass.layout.furthest() > limit {
            return Err(Error::Input(format!(
                "the model has positions for {limit} tokens (max_position_embeddings); shorten the input, or lower --max-length"
            )));
        }
        let tokens = self.wte.rows(tape, pass.ids, pass.compute, pass.ctx)?;
        let places = self.wpe.rows(tape, &Ids::new(pass.layout.positions().to_vec()), pass.compute, pass.ctx)?;
        Ok(add(tape, &tokens, &places)?)
    }

    fn shape(&self) -> AttentionShape {
        AttentionShape {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_attention_heads,
            head_dim: self.config.head_dim,
            scale: 1.0,
            window: None,
            cap: None,
        }
    }
}

impl Block {
    fn forward<'m>(
        &'m self,
        tape: &Tape<'m>,
        x: &Var,
        run: &Run,
        (attend, layer): (&mut Attend<'_>, usize),
    ) -> OpResult<Var> {
        let h = self.ln_1.forward(tape, x, &run.ctx)?;
        let [q, k, v] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], tape, &h, &run.ctx)?;
        let shape = AttentionShape { window: self.window, ..run.shape };
        let a = attend.attention(tape, [&q, &k, &v], (shape, layer), &run.layout)?;
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

    fn forward<'m>(&'m self, tape: &Tape<'m>, pass: &mut Pass<'_>) -> Result<Var> {
        let run = Run { shape: self.shape(), layout: pass.layout.clone(), ctx: pass.ctx.clone() };
        let x = self.embed(tape, pass)?;
        let x = pass.blocks(tape, x, &self.layers, move |block, tape, x, attend, i| {
            block.forward(tape, x, &run, (attend, i))
        })?;
        Ok(self.ln_f.forward(tape, &x, pass.ctx)?)
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
        let mut all = model::modules(self.lm_head.as_ref(), &self.wte);
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
