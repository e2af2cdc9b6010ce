use crate::{Adapter, Context, Lora, Module, Role, Trained, Update, Weight};
use halfbyte_autograd::{Param, Result, Tape, Var};
use halfbyte_ops::{
    FrozenMatrix,
    add::add,
    frozen,
    frozen_linear::frozen_linear,
    linear::linear,
    lora_linear::{Layer, last_lora_linears, lora_linears, room},
    row_norms,
};
use halfbyte_tensor::{DType, Device, Place, Tensor};
use std::sync::Arc;

/// The matrix of a linear layer.
#[derive(Clone, Debug)]
pub enum Base {
    /// It never trains and has no place for a gradient.
    Frozen(Arc<dyn FrozenMatrix>),
    /// It trains with the whole model.
    Trainable(Param),
}

/// A linear layer: a frozen (or trained) matrix and an optional bias, at a path by which adapters know it.
#[derive(Debug)]
pub struct Linear {
    path: String,
    role: Role,
    base: Base,
    bias: Option<Weight>,
    published_transposed: bool,
    known: Option<Box<Known>>,
}

/// A product of several layers with one input.
type Op<'m, const N: usize> = fn(&Tape<'m>, &Var, [Layer<'_, 'm>; N]) -> Result<[Var; N]>;

/// What adapters call a layer's matrix, where that is not its path.
#[derive(Debug)]
enum Known {
    As(String),
    Member(Member),
}

/// Where the matrix of one expert stands among those of all, which transformers keeps as one parameter `(experts, rows, columns)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The parameter, such as `model.layers.0.mlp.experts.gate_up_proj`.
    pub stack: String,
    /// The number of the expert, and of all.
    pub expert: (usize, usize),
    /// The first of its rows in the expert's part, and how many that has.
    pub rows: (usize, usize),
}

impl Linear {
    /// A layer at `path`, such as `model.layers.0.self_attn.q_proj`.
    pub fn new(path: impl Into<String>, base: Base, bias: Option<Weight>) -> Linear {
        Linear { path: path.into(), role: Role::Linear, base, bias, published_transposed: false, known: None }
    }

    /// Whose matrix the published files hold as `(in_features, out_features)`; here it lies the other way round, as in all layers.
    #[must_use]
    pub fn published_transposed(self) -> Linear {
        Linear { published_transposed: true, ..self }
    }

    /// Whether the published files hold the matrix as `(in_features, out_features)`.
    pub fn is_published_transposed(&self) -> bool {
        self.published_transposed
    }

    /// The output head at `path`, such as `lm_head`.
    pub fn head(path: impl Into<String>, base: Base) -> Linear {
        Linear { role: Role::Head, ..Linear::new(path, base, None) }
    }

    /// With a bias.
    #[must_use]
    pub fn biased(self, bias: Weight) -> Linear {
        Linear { bias: Some(bias), ..self }
    }

    /// Which adapters know by another path than files do.
    #[must_use]
    pub fn known_as(self, module: impl Into<String>) -> Linear {
        Linear { known: Some(Box::new(Known::As(module.into()))), ..self }
    }

    /// The path by which adapters know it.
    pub fn module(&self) -> &str {
        match self.known.as_deref() {
            Some(Known::As(module)) => module,
            _ => &self.path,
        }
    }

    /// The rank of an adapter's update of it.
    pub fn rank(&self, adapter: &Adapter) -> Option<usize> {
        let of_stack = || Some(adapter.update(&self.member()?.stack)?.stacked()?.rank());
        let own = || Some(adapter.update(self.module())?.low_rank()?.a.value().rows());
        own().or_else(of_stack)
    }

    /// As one of many whose matrices adapters know as one parameter.
    #[must_use]
    pub fn in_stack(self, member: Member) -> Linear {
        Linear { known: Some(Box::new(Known::Member(member))), ..self }
    }

    /// The parameter that its matrix is a part of, where it is one of many.
    pub fn member(&self) -> Option<&Member> {
        match self.known.as_deref() {
            Some(Known::Member(member)) => Some(member),
            _ => None,
        }
    }

    /// It, for something else.
    #[must_use]
    pub fn of_role(self, role: Role) -> Linear {
        Linear { role, ..self }
    }

    /// What its matrix is for: [`Role::Linear`], [`Role::Head`] or [`Role::Router`].
    pub fn role(&self) -> Role {
        self.role
    }

    /// The module's path, without `.weight`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `(out_features, in_features)`.
    pub fn dims(&self) -> (usize, usize) {
        match &self.base {
            Base::Frozen(matrix) => matrix.dims(),
            Base::Trainable(param) => (param.value().shape()[0], param.value().shape()[1]),
        }
    }

    /// The matrix.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Puts another matrix in its place, and gives the one that was there.
    pub(crate) fn replace_base(&mut self, base: Base) -> Base {
        std::mem::replace(&mut self.base, base)
    }

    /// What the matrix is stored as, for people.
    pub fn format(&self) -> String {
        match &self.base {
            Base::Frozen(matrix) => matrix.format(),
            Base::Trainable(param) => format!("{}, trainable", param.value().dtype()),
        }
    }

    /// Bytes of the matrix.
    pub fn bytes(&self) -> usize {
        match &self.base {
            Base::Frozen(matrix) => matrix.bytes(),
            Base::Trainable(param) => param.value().bytes(),
        }
    }

    /// The bias.
    pub fn bias(&self) -> Option<&Weight> {
        self.bias.as_ref()
    }

    pub(crate) fn bias_mut(&mut self) -> Option<&mut Weight> {
        self.bias.as_mut()
    }

    /// The norm of every row of the matrix: where DoRA's magnitudes begin.
    pub fn row_norms(&self) -> Result<Vec<f32>> {
        match &self.base {
            Base::Frozen(matrix) => Ok(row_norms(matrix.as_ref(), None)?.read_f32()?),
            Base::Trainable(_) => unreachable!("{}: a matrix that trains has no adapter", self.path),
        }
    }

    /// What of the base trains: nothing, or matrix and bias.
    pub fn trained(&self) -> impl Iterator<Item = Trained> + '_ {
        let matrix = match &self.base {
            Base::Trainable(param) => Some(Trained { param: param.clone(), role: self.role }),
            Base::Frozen(_) => None,
        };
        matrix.into_iter().chain(self.bias.as_ref().and_then(Weight::trained))
    }

    /// The matrix that the pass multiplies with, if it trains as a whole: the adapter's copy, or the base.
    pub fn trained_matrix<'a>(&'a self, ctx: &'a Context) -> Option<&'a Param> {
        match (ctx.update(self.module()), &self.base) {
            (Some(update), _) => update.copy(),
            (None, Base::Trainable(param)) => Some(param),
            (None, Base::Frozen(_)) => None,
        }
    }

    /// `x (rows, in_features)` to `(rows, out_features)`.
    pub fn forward<'m>(&'m self, tape: &Tape<'m>, x: &Var, ctx: &Context) -> Result<Var> {
        let [y] = ctx.by_rows(tape, x, &self.paths(), |x, ctx| Ok([self.alone(tape, x, ctx)?]))?;
        Ok(y)
    }

    /// `onto + forward(x)`: as a residual takes it up.
    pub fn forward_onto<'m>(&'m self, tape: &Tape<'m>, (onto, x): (&Var, &Var), ctx: &Context) -> Result<Var> {
        self.onto(tape, (onto, x), (ctx, lora_linears))
    }

    /// [`Linear::forward_onto`] where that is what a checkpoint gives: when it is run again nobody reads the value, and it is left out.
    pub fn forward_last_onto<'m>(&'m self, tape: &Tape<'m>, (onto, x): (&Var, &Var), ctx: &Context) -> Result<Var> {
        self.onto(tape, (onto, x), (ctx, last_lora_linears))
    }

    fn onto<'m>(&'m self, tape: &Tape<'m>, (onto, x): (&Var, &Var), (ctx, op): (&Context, Op<'m, 1>)) -> Result<Var> {
        let in_product = matches!(x.value().place(), Place::Gpu(_)) || tape.is_replay();
        if in_product && ctx.split(&self.paths()).is_none() && self.shares(ctx.update(self.module())) {
            let [y] = Linear::together([self], tape, x, (([Some(onto)], op), ctx))?;
            return Ok(y);
        }
        add(tape, onto, &self.forward(tape, x, ctx)?)
    }

    /// Whether its product can be one with its update.
    fn shares(&self, update: Option<&dyn Update>) -> bool {
        matches!(self.base, Base::Frozen(_)) && update.is_none_or(|it| it.low_rank().is_some())
    }

    /// The paths by which adapters know its matrix and its bias.
    pub fn paths(&self) -> [&str; 2] {
        [self.module(), self.bias.as_ref().map_or(self.module(), Weight::path)]
    }

    /// Where all rows use the same adapter.
    fn alone<'m>(&'m self, tape: &Tape<'m>, x: &Var, ctx: &Context) -> Result<Var> {
        let bias = self.bias.as_ref().map(|it| it.var(tape, ctx));
        match (&self.base, ctx.update(self.module())) {
            (Base::Trainable(_), _) => {
                let Some(weight) = self.trained_matrix(ctx) else {
                    unreachable!("{}: a matrix that trains in full takes no low-rank update", self.path)
                };
                linear(tape, x, &tape.param(weight), bias.as_ref())
            }
            (Base::Frozen(w), None) => frozen_linear(tape, x, w.as_ref(), bias.as_ref()),
            (Base::Frozen(w), Some(update)) => {
                update.forward(tape, Module::Linear { x, w: w.as_ref(), bias: bias.as_ref() }, ctx.dropout)
            }
        }
    }

    /// The columns of room beside `x`, which layers are to take, that they have a use for; see [`Tensor::scratch_with_room`]. None unless
    /// all of them are products with updates that need no mask.
    pub fn room<'a>(layers: impl Iterator<Item = &'a Linear>, ctx: &Context, x: &Tensor) -> usize {
        let mut ranks = Vec::new();
        for layer in layers {
            let Base::Frozen(w) = &layer.base else { return 0 };
            if w.multiplies_itself() || frozen::has_few_rows(x, w.as_ref()) || ctx.split(&layer.paths()).is_some() {
                return 0;
            }
            let Some(update) = ctx.update(layer.module()) else { continue };
            let Some(lora) = update.low_rank().filter(|it| it.mask(ctx.dropout).is_off()) else { return 0 };
            ranks.push(lora.a.value().rows());
        }
        room(ranks.into_iter(), x)
    }

    /// The outputs of several layers with one input, which is cheaper than one after the other.
    pub fn forward_all<'m, const N: usize>(
        layers: [&'m Linear; N],
        tape: &Tape<'m>,
        x: &Var,
        ctx: &Context,
    ) -> Result<[Var; N]> {
        let paths: Vec<&str> = layers.iter().flat_map(|it| it.paths()).collect();
        ctx.by_rows(tape, x, &paths, |x, ctx| Linear::all_alone(layers, tape, x, ctx))
    }

    fn all_alone<'m, const N: usize>(
        layers: [&'m Linear; N],
        tape: &Tape<'m>,
        x: &Var,
        ctx: &Context,
    ) -> Result<[Var; N]> {
        if !layers.iter().all(|it| it.shares(ctx.update(it.module()))) {
            let ys: Vec<Var> = layers.iter().map(|it| it.alone(tape, x, ctx)).collect::<Result<_>>()?;
            return ys.try_into().map_err(|_| unreachable!("as many outputs as layers"));
        }
        Linear::together(layers, tape, x, (([None; N], lora_linears), ctx))
    }

    /// Of layers that all share, each added to what it is told.
    fn together<'m, const N: usize>(
        layers: [&'m Linear; N],
        tape: &Tape<'m>,
        x: &Var,
        ((onto, op), ctx): (([Option<&Var>; N], Op<'m, N>), &Context),
    ) -> Result<[Var; N]> {
        let updates = layers.map(|it| ctx.update(it.module()));
        let biases = layers.map(|it| it.bias.as_ref().map(|bias| bias.var(tape, ctx)));
        let low_rank: [Option<(&Lora, Var, Var)>; N] = updates.map(|it| {
            let lora = it.and_then(Update::low_rank)?;
            Some((lora, tape.param(&lora.a), tape.param(&lora.b)))
        });
        let all: [Layer<'_, 'm>; N] = std::array::from_fn(|i| {
            let Base::Frozen(w) = &layers[i].base else { unreachable!("{}: the base trains", layers[i].path) };
            let lora = low_rank[i].as_ref().map(|(lora, a, b)| lora.on((a, b), ctx.dropout));
            Layer { w: w.as_ref(), bias: biases[i].as_ref(), lora, onto: onto[i] }
        });
        op(tape, x, all)
    }

    /// The matrix with an adapter's update, decoded: `(out_features, in_features)` in f32.
    ///
    /// Fails if the matrix cannot be read from its device.
    pub fn dense(&self, adapter: Option<&Adapter>) -> Result<Tensor> {
        let base = self.base.dense()?;
        let Some(adapter) = adapter else { return Ok(base) };
        if let Some(update) = adapter.update(self.module()) {
            return update.merge(base);
        }
        let stack = self.member().and_then(|it| Some((it, adapter.update(&it.stack)?.stacked()?)));
        match stack {
            Some((member, it)) => it.merged(member, base),
            None => Ok(base),
        }
    }

    /// Whether an adapter changes its matrix.
    pub(crate) fn is_changed_by(&self, adapter: &Adapter) -> bool {
        let of_stack = self.member().is_some_and(|it| adapter.update(&it.stack).is_some());
        of_stack || adapter.update(self.module()).is_some()
    }

    /// Moves matrix and bias.
    pub fn to_device(&mut self, device: &Device) -> Result<()> {
        match &mut self.base {
            Base::Trainable(param) => param.to_device(device)?,
            Base::Frozen(matrix) => {
                if let Some(moved) = matrix.to_device(device)? {
                    *matrix = moved;
                }
            }
        }
        self.bias.iter_mut().try_for_each(|it| it.to_device(device))
    }
}

impl Base {
    /// The matrix, decoded, in f32.
    fn dense(&self) -> Result<Tensor> {
        match self {
            Base::Trainable(param) => Ok(param.value().to_dtype(DType::F32)),
            Base::Frozen(matrix) => frozen::dense(matrix),
        }
    }
}
