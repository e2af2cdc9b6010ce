use crate::{Role, Trained};
use halfbyte_autograd::{Param, Result, Tape, Var};
use halfbyte_ops::{Ids, add_scaled, embedding, linear};
use halfbyte_tensor::{DType, Device, Tensor};

/// A low-rank update of an embedding: row `i` gets `scaling * A[i] Bᵀ`.
///
/// PEFT keeps `A` the other way round, `(rank, vocabulary)`; rows lie together here, since a row is what is looked up.
#[derive(Clone, Debug)]
pub struct EmbeddingLora {
    /// `(vocabulary, rank)`.
    pub a: Param,
    /// `(channels, rank)`.
    pub b: Param,
    /// `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub scaling: f32,
}

/// A weight that is not a linear layer's matrix: an embedding, a norm's scale, a bias.
///
/// Frozen, or trained with the whole model; an adapter (`modules_to_save`, `bias`) may bring its own copy, which is used
/// while that adapter is active.
#[derive(Debug)]
pub struct Weight {
    path: String,
    role: Role,
    base: Slot,
    copies: Vec<(String, Param)>,
    updates: Vec<(String, EmbeddingLora)>,
    active_update: Option<usize>,
    /// Adapters whose copy the output head does not share.
    untied: Vec<String>,
    active: Option<usize>,
}

#[derive(Debug)]
enum Slot {
    Frozen(Tensor),
    Trainable(Param),
}

impl Weight {
    /// A weight that never trains. `path` is its name in the checkpoint, such as `model.norm.weight`.
    pub fn frozen(path: impl Into<String>, role: Role, value: Tensor) -> Weight {
        Weight::with(path.into(), role, Slot::Frozen(value))
    }

    /// A weight that trains with the whole model.
    pub fn trainable(param: Param, role: Role) -> Weight {
        Weight::with(param.name().to_owned(), role, Slot::Trainable(param))
    }

    fn with(path: String, role: Role, base: Slot) -> Weight {
        Weight {
            path,
            role,
            base,
            copies: Vec::new(),
            updates: Vec::new(),
            active_update: None,
            untied: Vec::new(),
            active: None,
        }
    }

    /// Its name in the checkpoint.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path of the module that owns it: the path without the last component.
    pub fn module(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |it| it.0)
    }

    /// The value in use.
    pub fn value(&self) -> Tensor {
        self.active_param().map_or_else(|| self.base_value(), Param::value)
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The value in use with the active low-rank update, in f32 if there is one.
    pub fn merged(&self) -> Tensor {
        let Some(EmbeddingLora { a, b, scaling }) = self.active_update() else { return self.value() };
        let (value, a, b) = (self.value(), a.value(), b.value());
        let (channels, rank) = (value.cols(), a.cols());
        let mut rows = value.to_f32_vec();
        for (row, a) in rows.chunks_mut(channels).zip(a.data::<f32>().chunks(rank)) {
            for (x, b) in row.iter_mut().zip(b.data::<f32>().chunks(rank)) {
                *x += scaling * a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            }
        }
        Tensor::from_vec(value.shape(), rows)
    }

    /// The rows of an embedding for token ids, with the active low-rank update: `(ids.len(), channels)` in `dtype`.
    pub fn rows(&self, tape: &Tape<'_>, ids: &Ids, dtype: DType) -> Result<Var> {
        let x = embedding(tape, &self.var(tape), ids, dtype)?;
        let Some(EmbeddingLora { a, b, scaling }) = self.active_update() else { return Ok(x) };
        let h = embedding(tape, &tape.param(a), ids, dtype)?;
        add_scaled(tape, &x, &linear(tape, &h, &tape.param(b), None)?, *scaling)
    }

    /// Adds a low-rank update, replacing one of the same adapter. A head that is tied to the embedding stays on the base, as
    /// in PEFT.
    pub fn add_update(&mut self, adapter: &str, update: EmbeddingLora) {
        match self.updates.iter_mut().find(|it| it.0 == adapter) {
            Some(known) => known.1 = update,
            None => self.updates.push((adapter.to_owned(), update)),
        }
    }

    /// The low-rank update of a named adapter.
    pub fn update_of(&self, adapter: &str) -> Option<&EmbeddingLora> {
        self.updates.iter().find(|it| it.0 == adapter).map(|it| &it.1)
    }

    /// The low-rank update in use.
    pub fn active_update(&self) -> Option<&EmbeddingLora> {
        self.active_update.map(|at| &self.updates[at].1)
    }

    /// The parameters that train as things stand.
    pub fn trained(&self) -> Vec<Trained> {
        let own = self.param().map(|it| Trained { param: it.clone(), role: self.role });
        // The factors of an update are no rows of tokens, and get gradients like a linear layer's.
        let update = self.active_update().map(|it| [&it.a, &it.b]).into_iter().flatten();
        own.into_iter().chain(update.map(|it| Trained { param: it.clone(), role: Role::Linear })).collect()
    }

    fn base_value(&self) -> Tensor {
        match &self.base {
            Slot::Trainable(param) => param.value(),
            Slot::Frozen(tensor) => tensor.clone(),
        }
    }

    /// The value in use, on the tape.
    pub fn var(&self, tape: &Tape<'_>) -> Var {
        match (self.active_param(), &self.base) {
            (Some(param), _) | (None, Slot::Trainable(param)) => tape.param(param),
            (None, Slot::Frozen(tensor)) => Var::constant(tensor.clone()),
        }
    }

    /// The value that a tied output head uses, on the tape.
    pub fn head_var(&self, tape: &Tape<'_>) -> Var {
        match self.active {
            Some(at) if self.untied.contains(&self.copies[at].0) => Var::constant(self.base_value()),
            _ => self.var(tape),
        }
    }

    /// Whether a tied output head keeps the base although this adapter brought its own copy of the embedding.
    pub fn is_untied(&self, adapter: &str) -> bool {
        self.untied.iter().any(|it| it == adapter)
    }

    /// Keeps a tied output head on the base while this adapter is active.
    pub fn untie(&mut self, adapter: &str) {
        if !self.is_untied(adapter) {
            self.untied.push(adapter.to_owned());
        }
    }

    /// The parameter behind the value in use, if it trains.
    pub fn param(&self) -> Option<&Param> {
        match (self.active_param(), &self.base) {
            (Some(param), _) | (None, Slot::Trainable(param)) => Some(param),
            (None, Slot::Frozen(_)) => None,
        }
    }

    /// Gives an adapter its own trainable copy (f32) of the base, or of `value` where one was loaded.
    pub fn add_copy(&mut self, adapter: &str, value: Option<Tensor>) -> Param {
        let value = value.unwrap_or_else(|| self.base_value()).to_dtype(DType::F32);
        let param = Param::new(self.path.clone(), value.into_unique());
        self.untied.retain(|it| it != adapter);
        // In place, so that the choice of the active one stays right.
        match self.copies.iter_mut().find(|it| it.0 == adapter) {
            Some(copy) => copy.1 = param.clone(),
            None => self.copies.push((adapter.to_owned(), param.clone())),
        }
        param
    }

    /// The copy that an adapter brought.
    pub fn copy_of(&self, adapter: &str) -> Option<&Param> {
        self.copies.iter().find(|it| it.0 == adapter).map(|it| &it.1)
    }

    /// Uses an adapter's copy and update if it has them, else the base.
    pub fn set_active(&mut self, adapter: Option<&str>) {
        self.active_update = adapter.and_then(|name| self.updates.iter().position(|it| it.0 == name));
        self.active = adapter.and_then(|name| self.copies.iter().position(|it| it.0 == name));
    }

    /// Moves the base, all copies and all updates.
    pub fn to_device(&mut self, device: &Device) -> Result<()> {
        match &mut self.base {
            Slot::Frozen(tensor) => *tensor = tensor.to_device(device)?,
            Slot::Trainable(param) => param.to_device(device)?,
        }
        self.copies.iter().try_for_each(|it| it.1.to_device(device))?;
        self.updates.iter().flat_map(|it| [&it.1.a, &it.1.b]).try_for_each(|it| it.to_device(device))
    }

    fn active_param(&self) -> Option<&Param> {
        self.active.map(|at| &self.copies[at].1)
    }
}
