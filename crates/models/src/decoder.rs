//! LLaMA and the decoders built like it: blocks of rotary grouped-query attention and a gated MLP. What tells one from another is in a
//! [`BlockSpec`].

use crate::{
    Architecture, Attend, Biases, BlockSpec, EmbeddingScale, Error, LayerSpec, Model, ModelConfig, Norms, OutputHead,
    Pass, QkNorm, Result, Weights,
    mlp::{Fed, Feed},
    model,
};
use halfbyte_autograd::{Result as OpResult, Tape, Var};
use halfbyte_lora::{Context, Linear, Modules, Role, Weight};
use halfbyte_ops::{
    Layout,
    add::{add_scaled, scale},
    attention::AttentionShape,
    rms_norm::{RmsNorm, rms_norm_with_room},
    rope::{RopeSpec, RopeTable},
    split::{Columns, split},
};
use halfbyte_tensor::{DType, Tensor};
use std::sync::Mutex;

/// A model of such blocks.
pub struct Decoder {
    config: ModelConfig,
    spec: BlockSpec,
    rotations: Vec<Rotation>,
    embed_tokens: Weight,
    layers: Vec<Block>,
    norm: Weight,
    lm_head: Option<Linear>,
}

/// A rotation, and the last table made, for the next pass of about the same length.
struct Rotation {
    spec: RopeSpec,
    last: Mutex<Option<RopeTable>>,
}

struct Block {
    before_attention: Option<Weight>,
    qkv: Projections<3>,
    /// Of queries and of keys.
    qk_norm: Option<[Weight; 2]>,
    /// A score a head.
    sinks: Option<Weight>,
    o_proj: Linear,
    after_attention: Option<Weight>,
    before_mlp: Option<Weight>,
    feed: Feed,
    after_mlp: Option<Weight>,
    layer: LayerSpec,
}

/// Layers with one input, or one layer that has the columns of all.
pub(crate) struct Projections<const N: usize> {
    pub(crate) linears: Vec<Linear>,
    pub(crate) widths: [usize; N],
    /// Whether the one layer has a column of each in turn.
    pub(crate) in_turn: bool,
}

impl<const N: usize> Projections<N> {
    /// Those of these names and widths, or, where one is given, the one of that name.
    pub(crate) fn new(
        weights: &mut dyn Weights,
        at: impl Fn(&str) -> String,
        (names, fused): ([&str; N], Option<&str>),
        (widths, inner, bias): ([usize; N], usize, bool),
    ) -> Result<Projections<N>> {
        let linears = match fused {
            Some(name) => vec![weights.linear(&at(name), (widths.iter().sum(), inner), bias)?],
            None => {
                let all = names.into_iter().zip(widths);
                all.map(|(name, width)| weights.linear(&at(name), (width, inner), bias)).collect::<Result<_>>()?
            }
        };
        Ok(Projections { linears, widths, in_turn: false })
    }

    /// Those of each in what the one layer gives.
    pub(crate) fn columns(&self) -> [Columns; N] {
        let mut first = 0;
        std::array::from_fn(|i| {
            let width = self.widths[i];
            first += width;
            match self.in_turn {
                true => Columns { first: i, width: 1, stride: N, count: width },
                false => Columns::one(first - width, width),
            }
        })
    }

    pub(crate) fn forward<'m>(&'m self, tape: &Tape<'m>, x: &Var, ctx: &Context) -> OpResult<[Var; N]> {
        if let [fused] = &self.linears[..] {
            return split(tape, &fused.forward(tape, x, ctx)?, self.columns());
        }
        Linear::forward_all(std::array::from_fn::<_, N, _>(|i| &self.linears[i]), tape, x, ctx)
    }
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
        let rotations = spec.ropes.iter().map(|it| Rotation { spec: it.clone(), last: Mutex::new(None) }).collect();
        Ok(Decoder { config: config.clone(), spec: spec.clone(), rotations, embed_tokens, layers, norm, lm_head })
    }

    fn shape(&self) -> AttentionShape {
        AttentionShape {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
            scale: self.spec.scale,
            window: None,
            cap: self.spec.cap,
        }
    }

    fn embed<'m>(&'m self, tape: &Tape<'m>, pass: &Pass<'_>) -> OpResult<Var> {
        let x = self.embed_tokens.rows(tape, pass.ids, pass.compute, pass.ctx)?;
        match self.spec.embedding.in_dtype(pass.compute) {
            1.0 => Ok(x),
            factor => scale(tape, &x, factor),
        }
    }
}

impl EmbeddingScale {
    fn in_dtype(self, dtype: DType) -> f32 {
        match self {
            EmbeddingScale::Exact(factor) => factor,
            EmbeddingScale::Rounded(factor) => Tensor::scalar(factor).to_dtype(dtype).to_f32_vec()[0],
        }
    }
}

impl Norms {
    /// What the files call the norms before and after attention, and before and after the MLP.
    fn names(self) -> [Option<&'static str>; 4] {
        let (input, after, last) = ("input_layernorm", "post_attention_layernorm", "post_feedforward_layernorm");
        match self {
            // LLaMA's second norm is called after what is before it.
            Norms::Before => [Some(input), None, Some(after), None],
            Norms::After => [None, Some(after), None, Some(last)],
            Norms::Around => [Some(input), Some(after), Some("pre_feedforward_layernorm"), Some(last)],
        }
    }
}

const QKV: [&str; 3] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];

impl Block {
    fn new(i: usize, spec: &BlockSpec, config: &ModelConfig, weights: &mut dyn Weights) -> Result<Block> {
        let (hidden, inner, d) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (q, kv) = (config.num_attention_heads * d, config.num_key_value_heads * d);
        let Biases { qkv, o, .. } = spec.biases;
        let at = |name: &str| format!("model.layers.{i}.{name}");
        let norm = |name: &str, channels: usize, weights: &mut dyn Weights| {
            weights.weight(&at(&format!("{name}.weight")), &[channels], Role::Norm)
        };
        let [before_attention, after_attention, before_mlp, after_mlp] = spec.norms.names();
        let maybe = |name: Option<&'static str>, weights: &mut dyn Weights| {
            name.map(|it| norm(it, hidden, weights)).transpose()
        };
        let [q_norm, k_norm] = if spec.qk_norm == QkNorm::Whole { [q, kv] } else { [d, d] };
        Ok(Block {
            before_attention: maybe(before_attention, weights)?,
            qkv: Projections::new(
                weights,
                at,
                (QKV, spec.fused.then_some("self_attn.qkv_proj")),
                ([q, kv, kv], hidden, qkv),
            )?,
            qk_norm: match spec.qk_norm {
                QkNorm::None => None,
                _ => Some([norm("self_attn.q_norm", q_norm, weights)?, norm("self_attn.k_norm", k_norm, weights)?]),
            },
            sinks: if spec.sinks { Some(sinks(weights, &at("self_attn.sinks"), config)?) } else { None },
            o_proj: weights.linear(&at("self_attn.o_proj"), (hidden, q), o)?,
            after_attention: maybe(after_attention, weights)?,
            before_mlp: maybe(before_mlp, weights)?,
            feed: Feed::new(weights, at, (spec, i), (hidden, inner))?,
            after_mlp: maybe(after_mlp, weights)?,
            layer: spec.layers[i],
        })
    }

    fn forward<'m>(
        &'m self,
        tape: &Tape<'m>,
        x: &Var,
        run: &Run,
        (attend, layer): (&mut Attend<'_>, usize),
    ) -> OpResult<Var> {
        let h = run.norm_before(tape, x, self.before_attention.as_ref(), self.qkv.linears.iter())?;
        let [mut q, mut k, v] = self.qkv.forward(tape, &h, &run.ctx)?;
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            q = norm(tape, &q, q_norm, (run.norm, &run.ctx))?;
            k = norm(tape, &k, k_norm, (run.norm, &run.ctx))?;
        }
        let table = self.layer.rope.map(|it| &run.ropes[it]);
        let shape = AttentionShape { window: self.layer.window, ..run.shape };
        let sinks = self.sinks.as_ref().map(|it| it.value().to_dtype(DType::F32));
        let room = Linear::room([&self.o_proj].into_iter(), &run.ctx, q.value());
        let a = attend.attention(tape, [q, k, v], table, (shape, sinks.as_ref(), layer), (&run.layout, room))?;
        let x = run.join(tape, x, (&self.o_proj, &a), self.after_attention.as_ref())?;
        if run.in_strips(x.value().rows()) && matches!(self.feed, Feed::Dense(_)) {
            let run = run.clone();
            return tape
                .checkpoint_in_strips(&x, STRIP, move |tape, x, i| self.feed_forward(tape, x, &run.of_strip(i)));
        }
        self.feed_forward(tape, &x, run)
    }

    /// The second half of the block, which computes each row by itself.
    fn feed_forward<'m>(&'m self, tape: &Tape<'m>, x: &Var, run: &Run) -> OpResult<Var> {
        let (before, after) = (self.before_mlp.as_ref(), self.after_mlp.as_ref());
        match &self.feed {
            Feed::Dense(it) => {
                let h = run.norm_before(tape, x, before, it.inner())?;
                let inside = it.inside(tape, &h, &run.fed)?;
                match after {
                    None if run.residual == 1.0 => it.down().forward_last_onto(tape, (x, &inside), &run.ctx),
                    _ => run.join(tape, x, (it.down(), &inside), after),
                }
            }
            Feed::Sparse(it) => {
                let h = run.maybe_norm(tape, x, before)?;
                run.take_up(tape, x, &it.forward(tape, &h, &run.fed)?, after)
            }
        }
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.qkv.linears.iter().chain([&self.o_proj]).chain(self.feed.linears())
    }

    /// What is no linear layer.
    fn weights(&self) -> impl Iterator<Item = &Weight> {
        let it = self;
        let rest = it.sinks.iter().chain(&it.after_attention).chain(&it.before_mlp).chain(&it.after_mlp);
        it.before_attention.iter().chain(it.qk_norm.iter().flatten()).chain(rest)
    }
}

/// The sinks of a block, f32 or fewer bits; they never train.
fn sinks(weights: &mut dyn Weights, name: &str, config: &ModelConfig) -> Result<Weight> {
    let found = weights.weight(name, &[config.num_attention_heads], Role::Sink)?;
    match found.param() {
        Some(_) => Err(Error::Input(format!(
            "{name} cannot train: --method full is not supported for {}; train an adapter",
            config.architecture_name()
        ))),
        None => Ok(found),
    }
}

/// A norm whose weight an adapter may have brought along, each row by its own.
fn norm(tape: &Tape<'_>, x: &Var, weight: &Weight, (norm, ctx): (RmsNorm, &Context)) -> OpResult<Var> {
    norm_with_room(tape, (x, weight), (norm, ctx), 0)
}

/// The same with so much room beside its rows.
fn norm_with_room(
    tape: &Tape<'_>,
    (x, weight): (&Var, &Weight),
    (norm, ctx): (RmsNorm, &Context),
    room: usize,
) -> OpResult<Var> {
    let alone = ctx.split(&[weight.path()]).is_none();
    let [y] = ctx.by_rows(tape, x, &[weight.path()], |x, ctx| {
        Ok([rms_norm_with_room(tape, (x, &weight.var(tape, ctx)), norm, if alone { room } else { 0 })?])
    })?;
    Ok(y)
}

/// The most rows that an MLP takes at a time, where they are more than twice as many and nothing is kept of it for the backward pass: so
/// many that a matrix is decoded in a few percent of the time that its product takes.
const STRIP: usize = 8192;

/// What all blocks of one pass share.
#[derive(Clone)]
struct Run {
    shape: AttentionShape,
    norm: RmsNorm,
    fed: Fed,
    residual: f32,
    /// Whether blocks are run again, or never gone back through.
    forgets: bool,
    ropes: Vec<RopeTable>,
    layout: Layout,
    ctx: Context,
}

impl Run {
    /// Whether the rows are so many that an MLP takes them in strips. The number alone decides, so that the bits of a pass are the same
    /// on any machine.
    fn in_strips(&self, rows: usize) -> bool {
        self.forgets && rows > 2 * STRIP && self.ctx.is_one()
    }

    fn of_strip(&self, i: usize) -> Run {
        let ctx = self.ctx.of_part(i);
        Run { fed: Fed { ctx: ctx.clone(), ..self.fed.clone() }, ctx, ..self.clone() }
    }

    fn maybe_norm(&self, tape: &Tape<'_>, x: &Var, weight: Option<&Weight>) -> OpResult<Var> {
        weight.map_or_else(|| Ok(x.clone()), |it| norm(tape, x, it, (self.norm, &self.ctx)))
    }

    /// The norm before layers with one input, which nobody else takes: with room for what they put beside it.
    fn norm_before<'m>(
        &self,
        tape: &Tape<'m>,
        x: &Var,
        weight: Option<&Weight>,
        layers: impl Iterator<Item = &'m Linear>,
    ) -> OpResult<Var> {
        let Some(weight) = weight else { return Ok(x.clone()) };
        let room = Linear::room(layers, &self.ctx, x.value());
        norm_with_room(tape, (x, weight), (self.norm, &self.ctx), room)
    }

    /// The residual stream with what a half of the block adds to it: a layer's output, normalised where there is a norm for it.
    fn join<'m>(
        &self,
        tape: &Tape<'m>,
        x: &Var,
        (linear, input): (&'m Linear, &Var),
        weight: Option<&Weight>,
    ) -> OpResult<Var> {
        if weight.is_none() && self.residual == 1.0 {
            return linear.forward_onto(tape, (x, input), &self.ctx);
        }
        self.take_up(tape, x, &linear.forward(tape, input, &self.ctx)?, weight)
    }

    /// The residual stream with `y`, normalised where there is a norm for it.
    fn take_up(&self, tape: &Tape<'_>, x: &Var, y: &Var, weight: Option<&Weight>) -> OpResult<Var> {
        add_scaled(tape, x, &self.maybe_norm(tape, y, weight)?, self.residual)
    }
}

impl Model for Decoder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn forward<'m>(&'m self, tape: &Tape<'m>, pass: &mut Pass<'_>) -> Result<Var> {
        let length = pass.longest();
        let ropes = self.rotations.iter().map(|it| model::table(&it.spec, &it.last, length)).collect::<Result<_>>()?;
        let (layout, ctx) = (pass.layout.clone(), pass.ctx.clone());
        let BlockSpec { norm: of_norms, gate, residual, .. } = self.spec;
        let forgets = pass.checkpointing || !tape.is_recording();
        let (shape, fed) = (self.shape(), Fed::new(gate, pass));
        let run = Run { shape, norm: of_norms, fed, residual, forgets, ropes, layout, ctx };
        let x = self.embed(tape, pass)?;
        let x = pass.blocks(tape, x, &self.layers, move |block, tape, x, attend, i| {
            block.forward(tape, x, &run, (attend, i))
        })?;
        Ok(norm(tape, &x, &self.norm, (of_norms, pass.ctx))?)
    }

    fn head<'m>(&'m self, tape: &Tape<'m>, ctx: &Context) -> OutputHead<'m> {
        OutputHead::of(tape, self.lm_head.as_ref(), &self.embed_tokens, ctx).shaped(self.spec.logits)
    }

    fn parts(&self) -> (Vec<&Linear>, Vec<&Weight>) {
        let linears = self.layers.iter().flat_map(Block::linears).chain(&self.lm_head).collect();
        let others = self.layers.iter().flat_map(Block::weights);
        let weights = [&self.embed_tokens].into_iter().chain(others).chain([&self.norm]).collect();
        (linears, weights)
    }

    fn modules(&mut self) -> Modules<'_> {
        let mut all = model::modules(self.lm_head.as_ref(), &self.embed_tokens);
        all.weights.push(&mut self.embed_tokens);
        for it in &mut self.layers {
            all.linears.extend(it.qkv.linears.iter_mut().chain([&mut it.o_proj]));
            all.linears.extend(it.feed.linears_mut());
            all.weights.extend(&mut it.before_attention);
            all.weights.extend(it.qk_norm.iter_mut().flatten());
            all.weights.extend(it.sinks.iter_mut().chain(&mut it.after_attention));
            all.weights.extend(it.before_mlp.iter_mut().chain(&mut it.after_mlp));
        }
        all.weights.push(&mut self.norm);
        all.linears.extend(&mut self.lm_head);
        all
    }
}
