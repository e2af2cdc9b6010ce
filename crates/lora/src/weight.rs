use crate::{Adapter, Context, Module, Role, Trained, Update};
use halfbyte_autograd::{Param, Result, Tape, Var};
use halfbyte_ops::{Ids, embedding, gather_rows};
use halfbyte_tensor::{DType, Device, Tensor};

/// A weight that is not a linear layer's matrix: an embedding, a norm's scale, a bias. Frozen, or trained with the whole
/// model; an adapter may bring its own copy (`modules_to_save`, `bias`), or a low-rank update of an embedding.
#[derive(Debug)]
pub struct Weight {
    path: String,
    role: Role,
    base: Slot,
}

#[derive(Debug)]
enum Slot {
    Frozen(Tensor),
    Trainable(Param),
}

impl Weight {
    /// A weight that never trains. `path` is its name in the checkpoint, such as `model.norm.weight`.
    pub fn frozen(path: impl Into<String>, role: Role, value: Tensor) -> Weight {
        Weight { path: path.into(), role, base: Slot::Frozen(value) }
    }

    /// A weight that trains with the whole model.
    pub fn trainable(param: Param, role: Role) -> Weight {
        Weight { path: param.name().to_owned(), role, base: Slot::Trainable(param) }
    }

    /// Its name in the checkpoint.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path of the module that owns it: the path without the last component.
    pub fn module(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |it| it.0)
    }

    /// The base's value.
    pub fn value(&self) -> Tensor {
        match &self.base {
            Slot::Trainable(param) => param.value(),
            Slot::Frozen(tensor) => tensor.clone(),
        }
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// What of the base trains: itself, with the whole model.
    pub fn trained(&self) -> Option<Trained> {
        self.param().map(|it| Trained { param: it.clone(), role: self.role })
    }

    /// The parameter, if it trains with the whole model.
    pub fn param(&self) -> Option<&Param> {
        match &self.base {
            Slot::Trainable(param) => Some(param),
            Slot::Frozen(_) => None,
        }
    }

    /// The value with an adapter's update: as it is without one, in f32 with.
    ///
    /// # Errors
    /// If they lie on a device that failed.
    pub fn merged(&self, adapter: Option<&Adapter>) -> Result<Tensor> {
        let mut updates = adapter.into_iter().flat_map(|it| it.update(&self.path).into_iter().chain(self.low_rank(it)));
        updates.try_fold(self.value(), |value, update| update.merge(value.to_dtype(DType::F32)))
    }

    /// Whether an adapter changes it.
    pub(crate) fn is_changed_by(&self, adapter: &Adapter) -> bool {
        adapter.update(&self.path).is_some() || self.low_rank(adapter).is_some()
    }

    /// The low-rank update of an embedding, which is known by its module's path. (A bias has a module, too: its layer.)
    fn low_rank<'a>(&self, adapter: &'a Adapter) -> Option<&'a dyn Update> {
        if self.role.is_table() { adapter.update(self.module()) } else { None }
    }

    /// Puts another frozen value in its place, and gives the one that was there.
    pub(crate) fn replace_value(&mut self, value: Tensor) -> Tensor {
        match std::mem::replace(&mut self.base, Slot::Frozen(value)) {
            Slot::Frozen(tensor) => tensor,
            Slot::Trainable(param) => unreachable!("{}: what trains with the model is not merged into", param.name()),
        }
    }

    /// The value that the pass uses, on the tape. Where rows may use different adapters, ask within [`Context::by_rows`].
    pub fn var(&self, tape: &Tape<'_>, ctx: &Context) -> Var {
        match (ctx.update(&self.path).and_then(|it| it.copy()), &self.base) {
            (Some(param), _) | (None, Slot::Trainable(param)) => tape.param(param),
            (None, Slot::Frozen(tensor)) => Var::constant(tensor.clone()),
        }
    }

    /// The rows of an embedding for token ids, with the pass's update: `(ids.len(), channels)` in `dtype`.
    pub fn rows<'m>(&'m self, tape: &Tape<'m>, ids: &Ids, dtype: DType, ctx: &Context) -> Result<Var> {
        if let Some((groups, contexts)) = ctx.split(&[&self.path, self.module()]) {
            let of_group = |group: usize| -> Vec<u32> {
                groups.rows(group).iter().flat_map(|it| ids.values()[it.clone()].iter().copied()).collect()
            };
            let one = |(group, ctx): (usize, &Context)| self.rows(tape, &Ids::new(of_group(group)), dtype, ctx);
            let parts: Vec<Var> = contexts.iter().enumerate().map(one).collect::<Result<_>>()?;
            return gather_rows(tape, &parts, &groups);
        }
        let table = self.var(tape, ctx);
        match ctx.routing.adapter().and_then(|it| self.low_rank(it)) {
            None => embedding(tape, &table, ids, dtype),
            Some(update) => update.forward(tape, Module::Embedding { table: &table, ids, dtype }, ctx.dropout),
        }
    }

    /// The value that a tied output head uses, on the tape. A low-rank update of the embedding is none of the head's, as in
    /// PEFT.
    pub fn head_var(&self, tape: &Tape<'_>, ctx: &Context) -> Var {
        match ctx.routing.adapter() {
            Some(adapter) if adapter.unties_head => Var::constant(self.value()),
            _ => self.var(tape, ctx),
        }
    }

    /// Moves it.
    pub fn to_device(&mut self, device: &Device) -> Result<()> {
        match &mut self.base {
            Slot::Frozen(tensor) => *tensor = tensor.to_device(device)?,
            Slot::Trainable(param) => param.to_device(device)?,
        }
        Ok(())
    }
}
