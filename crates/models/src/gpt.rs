//! The GPTs: layer norms with biases, an MLP without a gate, learned positions or rotated ones. What tells one from another is in a
//! [`GptSpec`].

use crate::{Architecture, Attend, Error, Model, ModelConfig, OutputHead, Pass, Result, Weights, model};
use halfbyte_autograd::{Result as OpResult, Tape, Var};
use halfbyte_lora::{Context, Linear, Modules, Role, Weight};
use halfbyte_ops::{
    Ids, Layout,
    add::add,
    attention::AttentionShape,
    gelu::{Gelu, gelu},
    layer_norm::layer_norm,
    rope::{RopeSpec, RopeTable},
    split::{Columns, split},
};
use std::sync::Mutex;

/// What a block of a GPT computes beyond the sizes that all models share.
#[derive(Clone, Debug, PartialEq)]
pub struct GptSpec {
    /// What the files call its parts, and how they keep them.
    pub kind: GptKind,
    /// Added to the variance in every norm.
    pub norm_eps: f32,
    /// On the scores.
    pub scale: f32,
    /// For every layer, how many keys a query sees; all where there is none.
    pub windows: Vec<Option<usize>>,
    /// The activation of the MLP.
    pub gelu: Gelu,
    /// The rotation of queries and keys; none where positions are learned.
    pub rope: Option<RopeSpec>,
    /// Whether attention and MLP read the same residual stream.
    pub parallel: bool,
    /// Whether queries, keys and values have a bias, whether attention's output has, and whether the output head has.
    pub biases: [bool; 3],
}

/// Which of the GPTs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GptKind {
    /// `GPT2LMHeadModel`.
    Two,
    /// `GPTJForCausalLM`.
    J,
    /// `GPTNeoForCausalLM`.
    Neo,
    /// `GPTNeoXForCausalLM`.
    NeoX,
}

/// What the files call the parts of a model, and how they keep them.
pub(crate) struct Names {
    /// All but the head, and what it consists of: the embedding, positions, blocks and the last norm.
    pub(crate) body: &'static str,
    pub(crate) parts: [&'static str; 4],
    /// Before attention and before the MLP; where the second has no name, both read what the first makes.
    norms: [&'static str; 2],
    qkv: QkvNames,
    out: &'static str,
    mlp: [&'static str; 2],
    /// Whether matrices are `(in_features, out_features)`.
    transposed: bool,
}

enum QkvNames {
    Apart([&'static str; 3]),
    /// One layer: all queries, then all keys, then all values.
    InRow(&'static str),
    /// One layer: query, key and value of a head, then those of the next.
    ByHead(&'static str),
}

impl GptKind {
    pub(crate) fn names(self) -> Names {
        match self {
            GptKind::Two => Names {
                body: "transformer",
                parts: ["wte", "wpe", "h", "ln_f"],
                norms: ["ln_1", "ln_2"],
                qkv: QkvNames::InRow("attn.c_attn"),
                out: "attn.c_proj",
                mlp: ["mlp.c_fc", "mlp.c_proj"],
                transposed: true,
            },
            GptKind::Neo => Names {
                qkv: QkvNames::Apart(["attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"]),
                out: "attn.attention.out_proj",
                transposed: false,
                ..GptKind::Two.names()
            },
            GptKind::J => Names {
                parts: ["wte", "", "h", "ln_f"],
                norms: ["ln_1", ""],
                qkv: QkvNames::Apart(["attn.q_proj", "attn.k_proj", "attn.v_proj"]),
                out: "attn.out_proj",
                mlp: ["mlp.fc_in", "mlp.fc_out"],
                transposed: false,
                ..GptKind::Two.names()
            },
            GptKind::NeoX => Names {
                body: "gpt_neox",
                parts: ["embed_in", "", "layers", "final_layer_norm"],
                norms: ["input_layernorm", "post_attention_layernorm"],
                qkv: QkvNames::ByHead("attention.query_key_value"),
                out: "attention.dense",
                mlp: ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
                transposed: false,
            },
        }
    }
}

/// A GPT.
pub struct Gpt {
    config: ModelConfig,
    spec: GptSpec,
    tokens: Weight,
    /// A row for every position, where they are learned.
    positions: Option<Weight>,
    rope: Mutex<Option<RopeTable>>,
    layers: Vec<Block>,
    last: LayerNorm,
    lm_head: Option<Linear>,
}

struct Block {
    ln_1: LayerNorm,
    qkv: Qkv,
    out: Linear,
    ln_2: Option<LayerNorm>,
    widen: Linear,
    narrow: Linear,
    window: Option<usize>,
}

enum Qkv {
    Apart([Linear; 3]),
    Fused(Linear, [Columns; 3]),
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

impl Gpt {
    /// Builds the model out of whatever `weights` provides.
    pub fn new(config: &ModelConfig, weights: &mut dyn Weights) -> Result<Gpt> {
        let Architecture::Gpt(spec) = &config.architecture else {
            return Err(Error::Input("this config.json does not describe a GPT".into()));
        };
        let (hidden, vocab, names) = (config.hidden_size, config.vocab_size, spec.kind.names());
        let at = |part: usize| format!("{}.{}", names.body, names.parts[part]);
        let tokens = weights.weight(&format!("{}.weight", at(0)), &[vocab, hidden], Role::Embedding)?;
        let positions = match spec.rope {
            None => {
                let shape = [config.max_position_embeddings, hidden];
                Some(weights.weight(&format!("{}.weight", at(1)), &shape, Role::Position)?)
            }
            Some(_) => None,
        };
        let blocks = 0..config.num_hidden_layers;
        let layers =
            blocks.map(|i| Block::new(&format!("{}.{i}", at(2)), (spec, i), config, weights)).collect::<Result<_>>()?;
        let last = LayerNorm::new(weights, &at(3), hidden, spec.norm_eps)?;
        let mut lm_head =
            if config.tie_word_embeddings { None } else { Some(weights.head(model::HEAD, (vocab, hidden))?) };
        if let Some(head) = lm_head.take_if(|_| spec.biases[2]) {
            lm_head = Some(head.biased(weights.weight(&format!("{}.bias", model::HEAD), &[vocab], Role::Bias)?));
        }
        let (config, spec, rope) = (config.clone(), spec.clone(), Mutex::new(None));
        Ok(Gpt { config, spec, tokens, positions, rope, layers, last, lm_head })
    }

    /// Embeddings of tokens, with those of positions where these are learned.
    fn embed<'m>(&'m self, tape: &Tape<'m>, pass: &Pass<'_>) -> Result<Var> {
        let tokens = self.tokens.rows(tape, pass.ids, pass.compute, pass.ctx)?;
        let Some(positions) = &self.positions else { return Ok(tokens) };
        let limit = self.config.max_position_embeddings;
        if pass.layout.furthest() > limit {
            return Err(Error::Input(format!(
                "the model has positions for {limit} tokens (max_position_embeddings); shorten the input, or lower --max-length"
            )));
        }
        let places = positions.rows(tape, &Ids::new(pass.layout.positions().to_vec()), pass.compute, pass.ctx)?;
        Ok(add(tape, &tokens, &places)?)
    }

    fn shape(&self) -> AttentionShape {
        AttentionShape {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_attention_heads,
            head_dim: self.config.head_dim,
            scale: self.spec.scale,
            window: None,
            cap: None,
        }
    }
}

impl Block {
    fn new(path: &str, (spec, i): (&GptSpec, usize), config: &ModelConfig, weights: &mut dyn Weights) -> Result<Block> {
        let (hidden, inner, d, names) =
            (config.hidden_size, config.intermediate_size, config.head_dim, spec.kind.names());
        let [qkv_bias, out_bias, _] = spec.biases;
        let at = |name: &str| format!("{path}.{name}");
        let linear = |name: &str, dims, bias, weights: &mut dyn Weights| match names.transposed {
            true => weights.transposed(&at(name), dims, bias),
            false => weights.linear(&at(name), dims, bias),
        };
        let ln_1 = LayerNorm::new(weights, &at(names.norms[0]), hidden, spec.norm_eps)?;
        let fused = |name: &str, columns: [Columns; 3], weights: &mut dyn Weights| {
            Ok::<_, Error>(Qkv::Fused(linear(name, (3 * hidden, hidden), qkv_bias, weights)?, columns))
        };
        let qkv = match names.qkv {
            QkvNames::Apart([q, k, v]) => Qkv::Apart([
                linear(q, (hidden, hidden), qkv_bias, weights)?,
                linear(k, (hidden, hidden), qkv_bias, weights)?,
                linear(v, (hidden, hidden), qkv_bias, weights)?,
            ]),
            QkvNames::InRow(name) => fused(name, [0, 1, 2].map(|it| Columns::one(it * hidden, hidden)), weights)?,
            QkvNames::ByHead(name) => {
                let count = config.num_attention_heads;
                let columns = |it| Columns { first: it * d, width: d, stride: 3 * d, count };
                fused(name, [0, 1, 2].map(columns), weights)?
            }
        };
        Ok(Block {
            ln_1,
            qkv,
            out: linear(names.out, (hidden, hidden), out_bias, weights)?,
            ln_2: match names.norms[1] {
                "" => None,
                name => Some(LayerNorm::new(weights, &at(name), hidden, spec.norm_eps)?),
            },
            widen: linear(names.mlp[0], (inner, hidden), true, weights)?,
            narrow: linear(names.mlp[1], (hidden, inner), true, weights)?,
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
        let h = self.ln_1.forward(tape, x, &run.ctx)?;
        let qkv = match &self.qkv {
            Qkv::Apart([q, k, v]) => Linear::forward_all([q, k, v], tape, &h, &run.ctx)?,
            Qkv::Fused(linear, columns) => split(tape, &linear.forward(tape, &h, &run.ctx)?, *columns)?,
        };
        let shape = AttentionShape { window: self.window, ..run.shape };
        let a = attend.attention(tape, qkv, run.rope.as_ref(), (shape, None, layer), (&run.layout, 0))?;
        let y = add(tape, x, &self.out.forward(tape, &a, &run.ctx)?)?;
        let h = match &self.ln_2 {
            Some(norm) => norm.forward(tape, if run.parallel { x } else { &y }, &run.ctx)?,
            None => h,
        };
        let h = self.widen.forward(tape, &h, &run.ctx)?;
        add(tape, &y, &self.narrow.forward(tape, &gelu(tape, &h, run.gelu)?, &run.ctx)?)
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.qkv.all().iter().chain([&self.out, &self.widen, &self.narrow])
    }

    fn norms(&self) -> impl Iterator<Item = &LayerNorm> {
        [&self.ln_1].into_iter().chain(&self.ln_2)
    }
}

impl Qkv {
    fn all(&self) -> &[Linear] {
        match self {
            Qkv::Apart(all) => all,
            Qkv::Fused(one, _) => std::slice::from_ref(one),
        }
    }

    fn all_mut(&mut self) -> &mut [Linear] {
        match self {
            Qkv::Apart(all) => all,
            Qkv::Fused(one, _) => std::slice::from_mut(one),
        }
    }
}

/// What all blocks of one pass share.
struct Run {
    shape: AttentionShape,
    rope: Option<RopeTable>,
    gelu: Gelu,
    parallel: bool,
    layout: Layout,
    ctx: Context,
}

impl Model for Gpt {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn forward<'m>(&'m self, tape: &Tape<'m>, pass: &mut Pass<'_>) -> Result<Var> {
        let rope = self.spec.rope.as_ref().map(|it| model::table(it, &self.rope, pass.longest())).transpose()?;
        let GptSpec { gelu, parallel, .. } = self.spec;
        let (layout, ctx) = (pass.layout.clone(), pass.ctx.clone());
        let run = Run { shape: self.shape(), rope, gelu, parallel, layout, ctx };
        let x = self.embed(tape, pass)?;
        let x = pass.blocks(tape, x, &self.layers, move |block, tape, x, attend, i| {
            block.forward(tape, x, &run, (attend, i))
        })?;
        Ok(self.last.forward(tape, &x, pass.ctx)?)
    }

    fn head<'m>(&'m self, tape: &Tape<'m>, ctx: &Context) -> OutputHead<'m> {
        OutputHead::of(tape, self.lm_head.as_ref(), &self.tokens, ctx)
    }

    fn parts(&self) -> (Vec<&Linear>, Vec<&Weight>) {
        let linears = self.layers.iter().flat_map(Block::linears).chain(&self.lm_head).collect();
        let mut weights: Vec<&Weight> = [&self.tokens].into_iter().chain(&self.positions).collect();
        for norm in self.layers.iter().flat_map(Block::norms).chain([&self.last]) {
            weights.extend([&norm.weight, &norm.bias]);
        }
        (linears, weights)
    }

    fn modules(&mut self) -> Modules<'_> {
        let mut all = model::modules(self.lm_head.as_ref(), &self.tokens);
        all.weights.push(&mut self.tokens);
        all.weights.extend(&mut self.positions);
        for block in &mut self.layers {
            all.linears.extend(block.qkv.all_mut());
            all.linears.extend([&mut block.out, &mut block.widen, &mut block.narrow]);
            for norm in [&mut block.ln_1].into_iter().chain(&mut block.ln_2) {
                all.weights.extend([&mut norm.weight, &mut norm.bias]);
            }
        }
        all.weights.extend([&mut self.last.weight, &mut self.last.bias]);
        all.linears.extend(&mut self.lm_head);
        all
    }
}
