use crate::{Role, Trained, Weight};
use halfbyte_autograd::{Param, Result, Tape, Var};
use halfbyte_ops::{
    FrozenMatrix, add, add_scaled, dora_scale,
    dropout::{Dropout, dropout},
    frozen_linear::frozen_linear,
    linear::linear,
    lora_linear::{Layer, LowRank, lora_linear, lora_linears},
    row_norms,
};
use halfbyte_tensor::{DType, Device, Tensor};
use std::sync::Arc;

/// What a forward pass needs to know beyond its input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// Whether dropout is on.
    pub training: bool,
    /// Seeds dropout; a function of the run's seed, the step and the micro-batch.
    pub dropout_seed: u64,
}

/// The matrix of a linear layer.
#[derive(Clone, Debug)]
pub enum Base {
    /// It never trains and has no place for a gradient.
    Frozen(Arc<dyn FrozenMatrix>),
    /// It trains with the whole model.
    Trainable(Param),
}

/// A low-rank update `scaling * B A` of one layer.
#[derive(Clone, Debug)]
pub struct LoraLayer {
    /// `(rank, in_features)`.
    pub a: Param,
    /// `(out_features, rank)`.
    pub b: Param,
    /// `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub scaling: f32,
    /// Probability of dropping an element of the update's input while training.
    pub dropout: f32,
    /// Distinguishes this layer's dropout mask from the others'.
    pub site: u64,
    /// DoRA's magnitude of every output channel, `(out_features)`; plain LoRA has none.
    pub magnitude: Option<Param>,
}

#[derive(Debug)]
enum Adapter {
    LowRank(LoraLayer),
    /// `modules_to_save`: a full trainable copy.
    Full(Param),
}

/// A linear layer: a frozen (or trained) matrix, an optional bias and any number of named adapters.
#[derive(Debug)]
pub struct Linear {
    path: String,
    role: Role,
    base: Base,
    /// While an adapter is merged: the matrix without it, and which one it is.
    unmerged: Option<(Base, Option<usize>)>,
    bias: Option<Weight>,
    adapters: Vec<(String, Adapter)>,
    active: Option<usize>,
}

impl Linear {
    /// A layer at `path`, such as `model.layers.0.self_attn.q_proj`.
    pub fn new(path: impl Into<String>, base: Base, bias: Option<Weight>) -> Linear {
        Linear { path: path.into(), role: Role::Linear, base, unmerged: None, bias, adapters: Vec::new(), active: None }
    }

    /// The output head at `path`, such as `lm_head`.
    pub fn head(path: impl Into<String>, base: Base) -> Linear {
        Linear { role: Role::Head, ..Linear::new(path, base, None) }
    }

    /// What its matrix is for: [`Role::Linear`] or [`Role::Head`].
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

    /// The bias, for an adapter's copy of it.
    pub fn bias_mut(&mut self) -> Option<&mut Weight> {
        self.bias.as_mut()
    }

    /// Adds a low-rank adapter, replacing one of the same name.
    pub fn add_lora(&mut self, adapter: &str, layer: LoraLayer) {
        self.insert(adapter, Adapter::LowRank(layer));
    }

    /// The norm of every row of the matrix without adapters: where DoRA's magnitudes begin.
    pub fn row_norms(&self) -> Result<Vec<f32>> {
        match &self.base {
            Base::Frozen(matrix) => row_norms(matrix.as_ref(), None),
            Base::Trainable(_) => unreachable!("{}: a matrix that trains has no adapter", self.path),
        }
    }

    /// Gives an adapter a full trainable copy of the matrix (`modules_to_save`), or takes the one given.
    pub fn add_full(&mut self, adapter: &str, value: Option<Tensor>) -> Param {
        let value = value.unwrap_or_else(|| self.base.dense()).to_dtype(DType::F32).into_unique();
        let param = Param::new(format!("{}.weight", self.path), value);
        self.insert(adapter, Adapter::Full(param.clone()));
        param
    }

    /// The low-rank part of a named adapter.
    pub fn lora(&self, adapter: &str) -> Option<&LoraLayer> {
        self.adapters.iter().find_map(|(name, it)| match it {
            Adapter::LowRank(layer) if name == adapter => Some(layer),
            _ => None,
        })
    }

    /// The full copy of a named adapter.
    pub fn full(&self, adapter: &str) -> Option<&Param> {
        self.adapters.iter().find_map(|(name, it)| match it {
            Adapter::Full(param) if name == adapter => Some(param),
            _ => None,
        })
    }

    /// The low-rank adapter in use.
    pub fn active_lora(&self) -> Option<&LoraLayer> {
        match self.active_adapter() {
            Some(Adapter::LowRank(layer)) => Some(layer),
            _ => None,
        }
    }

    /// The full copy in use.
    pub fn active_full(&self) -> Option<&Param> {
        match self.active_adapter() {
            Some(Adapter::Full(param)) => Some(param),
            _ => None,
        }
    }

    /// Uses an adapter if this layer has it, else the base alone. A merged one is taken out first, or it would count
    /// beside the chosen one.
    pub fn set_active(&mut self, adapter: Option<&str>) {
        self.unmerge();
        self.active = adapter.and_then(|name| self.adapters.iter().position(|it| it.0 == name));
        if let Some(bias) = &mut self.bias {
            bias.set_active(adapter);
        }
    }

    /// The parameters that train as things stand, in a fixed order.
    pub fn trained(&self) -> Vec<Trained> {
        let matrices = match (self.active_adapter(), &self.base) {
            (Some(Adapter::LowRank(layer)), _) => layer.params(),
            (Some(Adapter::Full(param)), _) | (None, Base::Trainable(param)) => vec![param.clone()],
            (None, Base::Frozen(_)) => Vec::new(),
        };
        let matrices = matrices.into_iter().map(|param| Trained { param, role: self.role });
        matrices.chain(self.bias.iter().flat_map(Weight::trained)).collect()
    }

    /// `x (rows, in_features)` to `(rows, out_features)`.
    pub fn forward<'m>(&'m self, tape: &Tape<'m>, x: &Var, ctx: &Context) -> Result<Var> {
        let bias = self.bias.as_ref().map(|it| it.var(tape));
        if let Some(weight) = self.trained_matrix() {
            return linear(tape, x, &tape.param(weight), bias.as_ref());
        }
        match self.frozen_parts(tape) {
            (w, None) => frozen_linear(tape, x, w, bias.as_ref()),
            (w, Some((layer, a, b))) => match &layer.magnitude {
                None => lora_linear(tape, x, w, bias.as_ref(), layer.low_rank((&a, &b), ctx)),
                Some(magnitude) => layer.dora(tape, x, (w, &a, &b), (&tape.param(magnitude), bias.as_ref()), ctx),
            },
        }
    }

    /// The same for several layers with one input, which is cheaper than one after the other.
    pub fn forward_all<'m, const N: usize>(
        layers: [&'m Linear; N],
        tape: &Tape<'m>,
        x: &Var,
        ctx: &Context,
    ) -> Result<[Var; N]> {
        let apart = |it: &Linear| {
            it.trained_matrix().is_some() || it.active_lora().is_some_and(|layer| layer.magnitude.is_some())
        };
        if layers.iter().any(|it| apart(it)) {
            let ys: Vec<Var> = layers.iter().map(|it| it.forward(tape, x, ctx)).collect::<Result<_>>()?;
            return ys.try_into().map_err(|_| unreachable!("as many outputs as layers"));
        }
        let biases = layers.map(|it| it.bias.as_ref().map(|bias| bias.var(tape)));
        let parts = layers.map(|it| it.frozen_parts(tape));
        let all: [Layer<'_, 'm>; N] = std::array::from_fn(|i| {
            let (w, update) = &parts[i];
            let lora = update.as_ref().map(|(layer, a, b)| layer.low_rank((a, b), ctx));
            Layer { w: *w, bias: biases[i].as_ref(), lora }
        });
        lora_linears(tape, x, all)
    }

    /// The matrix if it trains as a whole.
    fn trained_matrix(&self) -> Option<&Param> {
        match (self.active_adapter(), &self.base) {
            (Some(Adapter::Full(param)), _) | (None, Base::Trainable(param)) => Some(param),
            (Some(Adapter::LowRank(_)), Base::Trainable(_)) => {
                unreachable!("attach refuses a low-rank adapter on a layer that trains in full")
            }
            (_, Base::Frozen(_)) => None,
        }
    }

    /// The matrix of a layer that does not train as a whole, and its active update.
    fn frozen_parts<'m>(&'m self, tape: &Tape<'m>) -> (&'m dyn FrozenMatrix, Option<(&'m LoraLayer, Var, Var)>) {
        let Base::Frozen(matrix) = &self.base else { unreachable!("{}: the base trains", self.path) };
        let update = match self.active_adapter() {
            Some(Adapter::LowRank(layer)) => Some((layer, tape.param(&layer.a), tape.param(&layer.b))),
            _ => None,
        };
        (matrix.as_ref(), update)
    }

    /// The matrix with the active adapter's update, decoded: `(out_features, in_features)` in f32.
    ///
    /// `W + scaling * B A`, summed in f32 as PEFT's merge does; with DoRA, its rows then scaled to their magnitudes.
    pub fn dense(&self) -> Tensor {
        match self.active_adapter() {
            Some(Adapter::Full(param)) => param.value().to_dtype(DType::F32),
            Some(Adapter::LowRank(layer)) => {
                let (out, inner) = self.dims();
                let mut w = self.base.dense().to_f32_vec();
                layer.add_update(&mut w, inner);
                Tensor::from_vec(&[out, inner], w)
            }
            None => self.base.dense(),
        }
    }

    /// Folds the active adapter into the matrix, which `freeze` stores again (for a 4-bit base: quantises again). The
    /// original is kept, so that [`Linear::unmerge`] is exact.
    pub fn merge<E>(
        &mut self,
        freeze: impl FnOnce(&str, Tensor) -> std::result::Result<Base, E>,
    ) -> std::result::Result<bool, E> {
        if self.unmerged.is_some() || self.active_adapter().is_none() {
            return Ok(false);
        }
        let merged = freeze(&self.path, self.dense())?;
        let original = std::mem::replace(&mut self.base, merged);
        self.unmerged = Some((original, self.active.take()));
        Ok(true)
    }

    /// Undoes [`Linear::merge`], bit for bit: the adapter that was folded in is active again.
    pub fn unmerge(&mut self) {
        if let Some((original, active)) = self.unmerged.take() {
            (self.base, self.active) = (original, active);
        }
    }

    /// Moves matrix, bias and all adapters.
    pub fn to_device(&mut self, device: &Device) -> Result<()> {
        match &mut self.base {
            Base::Trainable(param) => param.to_device(device)?,
            Base::Frozen(matrix) => {
                if let Some(moved) = matrix.to_device(device)? {
                    *matrix = moved;
                }
            }
        }
        if let Some(bias) = &mut self.bias {
            bias.to_device(device)?;
        }
        for (_, adapter) in &self.adapters {
            let params = match adapter {
                Adapter::LowRank(layer) => layer.params(),
                Adapter::Full(param) => vec![param.clone()],
            };
            params.iter().try_for_each(|it| it.to_device(device))?;
        }
        Ok(())
    }

    fn insert(&mut self, name: &str, adapter: Adapter) {
        match self.adapters.iter().position(|it| it.0 == name) {
            Some(at) => self.adapters[at].1 = adapter,
            None => self.adapters.push((name.to_owned(), adapter)),
        }
    }

    fn active_adapter(&self) -> Option<&Adapter> {
        self.active.map(|at| &self.adapters[at].1)
    }
}

impl Base {
    /// The matrix, decoded, in f32.
    fn dense(&self) -> Tensor {
        match self {
            Base::Trainable(param) => param.value().to_dtype(DType::F32),
            Base::Frozen(matrix) => {
                let ((out, inner), source) = (matrix.dims(), matrix.source());
                let mut w = vec![0.0; out * inner];
                for (row, values) in w.chunks_mut(inner).enumerate() {
                    source.read_f32(row, 0, values);
                }
                Tensor::from_vec(&[out, inner], w)
            }
        }
    }
}

impl LoraLayer {
    /// What of it trains.
    pub fn params(&self) -> Vec<Param> {
        [&self.a, &self.b].into_iter().chain(&self.magnitude).cloned().collect()
    }

    fn low_rank<'a>(&self, (a, b): (&'a Var, &'a Var), ctx: &Context) -> LowRank<'a> {
        LowRank { a, b, scaling: self.scaling, dropout: self.dropout(ctx) }
    }

    fn dropout(&self, ctx: &Context) -> Dropout {
        let p = if ctx.training { self.dropout } else { 0.0 };
        Dropout { p, seed: ctx.dropout_seed, site: self.site }
    }

    /// Adds `scaling * B A` to a row-major matrix of `inner` columns.
    fn add_update(&self, w: &mut [f32], inner: usize) {
        let (a, b) = (self.a.value().to_f32_vec(), self.b.value().to_f32_vec());
        let rank = a.len() / inner;
        for (row, b) in w.chunks_mut(inner).zip(b.chunks(rank)) {
            let mut update = vec![0.0f32; inner];
            for (b, a) in b.iter().zip(a.chunks(inner)) {
                for (u, a) in update.iter_mut().zip(a) {
                    *u += b * a;
                }
            }
            for (w, u) in row.iter_mut().zip(update) {
                *w += self.scaling * u;
            }
        }
        if let Some(magnitude) = &self.magnitude {
            for (row, m) in w.chunks_mut(inner).zip(magnitude.value().to_f32_vec()) {
                let norm = row.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>().sqrt() as f32;
                row.iter_mut().for_each(|it| *it *= m / norm);
            }
        }
    }

    /// `x Wᵀ + bias`, rescaled. With dropout the base's product stays that of `x`, and the correction is that of the
    /// dropped-out input, as in PEFT: `x Wᵀ + (m / n - 1) drop(x) Wᵀ + m / n * scaling * drop(x) Aᵀ Bᵀ`.
    fn dora<'m>(
        &self,
        tape: &Tape<'m>,
        x: &Var,
        (w, a, b): (&'m dyn FrozenMatrix, &Var, &Var),
        (magnitude, bias): (&Var, Option<&Var>),
        ctx: &Context,
    ) -> Result<Var> {
        let norms = row_norms(w, Some((a.value(), b.value(), self.scaling)))?;
        let dropped = dropout(tape, x, self.dropout(ctx))?;
        let update = LowRank { a, b, scaling: self.scaling, dropout: Dropout::default() };
        let u = lora_linear(tape, &dropped, w, None, update)?;
        let y = dora_scale(tape, &u, magnitude, norms, bias)?;
        if self.dropout(ctx).is_off() {
            return Ok(y);
        }
        let lost = add_scaled(tape, x, &dropped, -1.0)?;
        add(tape, &y, &frozen_linear(tape, &lost, w, None)?)
    }
}
