use crate::{
    Error, GradientPlace, Grads, Param, ParamId, Result, Var,
    offload::Offload,
    profile::{self, Phase},
};
use halfbyte_tensor::Tensor;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

/// Gets the gradients of a node's outputs, of which one at least is there.
pub(crate) type BackwardFn<'m> = Box<dyn FnOnce(Vec<Option<Tensor>>, &mut Sink<'_>) -> Result<()> + 'm>;

struct Node<'m> {
    name: &'static str,
    /// The slots of its outputs: those before belong to earlier nodes.
    slots: Range<usize>,
    backward: BackwardFn<'m>,
}

/// Records one closure per differentiable op and runs them in reverse, freeing what each saved as it goes.
///
/// `'m` is the lifetime of the model: a backward closure may borrow frozen weights.
pub struct Tape<'m> {
    nodes: RefCell<Vec<Node<'m>>>,
    used: RefCell<Vec<Param>>,
    recording: Cell<bool>,
    /// Whether outputs of cheap ops are kept.
    pub(crate) keeps_cheap: bool,
    /// Whether a checkpoint is run again on it, so that nobody reads what it gives.
    pub(crate) replays: bool,
    /// Inputs of checkpoints, where they wait in host memory.
    offload: Option<Rc<Offload>>,
}

/// What a backward closure is given beside the gradients of its outputs.
#[derive(Clone, Copy)]
struct Given {
    /// The gradient that the first parent has already, with room beside its rows if it has some.
    there: bool,
    /// Gradients as they are; without room beside their rows otherwise.
    room: bool,
}

/// Where a backward closure delivers its results.
pub(crate) struct Sink<'a> {
    pending: &'a mut [Option<Tensor>],
    grads: &'a mut Grads,
}

impl Sink<'_> {
    pub(crate) fn deliver(&mut self, slot: usize, dx: Tensor) {
        match &mut self.pending[slot] {
            Some(sum) => sum.add_assign(&dx),
            slot => *slot = Some(dx),
        }
    }

    pub(crate) fn merge(&mut self, grads: Grads) {
        self.grads.merge(grads);
    }
}

impl<'m> Tape<'m> {
    /// A tape for training.
    pub fn recording() -> Tape<'m> {
        Tape {
            nodes: RefCell::default(),
            used: RefCell::default(),
            recording: Cell::new(true),
            keeps_cheap: false,
            replays: false,
            offload: None,
        }
    }

    /// This tape, on which, and on those of its checkpoints, the outputs of cheap ops are kept for the backward pass, too, if `keeps` says
    /// so: faster, where there is memory for them.
    #[must_use]
    pub fn keeping_cheap(self, keeps: bool) -> Tape<'m> {
        Tape { keeps_cheap: keeps, ..self }
    }

    /// This tape, whose checkpoints' inputs leave a GPU for page-locked host memory and come back one checkpoint ahead in the backward
    /// pass, if `offloads` says so. Where they lie in host memory anyway nothing changes.
    #[must_use]
    pub fn offloading(self, offloads: bool) -> Tape<'m> {
        Tape { offload: offloads.then(Rc::default), ..self }
    }

    /// Whether there is memory for what the backward pass asks for soon: outputs of cheap ops are kept, and nothing is sent away.
    pub fn has_room(&self) -> bool {
        self.keeps_cheap && self.offload.is_none()
    }

    /// Whether a checkpoint is run again on this tape: nobody reads the value of what it gives, only its gradient's way.
    pub fn is_replay(&self) -> bool {
        self.replays
    }

    /// This tape, for a checkpoint that is run again.
    pub(crate) fn replaying(self) -> Tape<'m> {
        Tape { replays: true, ..self }
    }

    /// Brings the input of a checkpoint that is run again onto the tape.
    pub(crate) fn input(&self, x: Tensor) -> Var {
        self.push_one("input", x, Box::new(|_, _| Ok(())))
    }

    /// The parameters that were used.
    pub(crate) fn into_used(self) -> Vec<Param> {
        self.used.into_inner()
    }

    /// Enters parameters that were used on another tape on behalf of this one.
    pub(crate) fn add_used(&self, used: Vec<Param>) {
        self.used.borrow_mut().extend(used);
    }

    /// A tape that records nothing, for evaluation and generation: nothing is saved for a backward pass.
    pub fn disabled() -> Tape<'m> {
        let tape = Tape::recording();
        tape.recording.set(false);
        tape
    }

    /// Whether ops are recorded, so that one may skip work that only a backward pass needs.
    pub fn is_recording(&self) -> bool {
        self.recording.get()
    }

    /// The names of the recorded ops, in order.
    pub fn names(&self) -> Vec<&'static str> {
        self.nodes.borrow().iter().map(|it| it.name).collect()
    }

    /// A variable of this value that backward passes compute again by `recipe` rather than keep, unless this tape keeps such values: for
    /// the output of a cheap op whose inputs its own backward pass keeps anyway. The recipe must give the same bits.
    #[must_use]
    pub fn recomputed(&self, y: Var, recipe: impl Fn() -> Result<Tensor> + Send + Sync + 'static) -> Var {
        if self.keeps_cheap { y } else { y.recomputed_by(recipe) }
    }

    /// Brings a trainable tensor onto the tape.
    pub fn param(&self, param: &Param) -> Var {
        self.used.borrow_mut().push(param.clone());
        if !self.recording.get() {
            return Var::constant(param.value());
        }
        let id = param.id();
        let keep = move |dys: Vec<Option<Tensor>>, sink: &mut Sink<'_>| {
            dys.into_iter().flatten().for_each(|dy| sink.grads.add(id, dy));
            Ok(())
        };
        self.push_one("param", param.value(), Box::new(keep))
    }

    /// Records one op with output `y`. `backward` gets the gradient of `y` and, for each parent, whether one is wanted,
    /// and returns exactly the wanted ones; a branch that needs none costs nothing and saves nothing.
    ///
    /// The closure is dropped at once if no parent wants a gradient.
    pub fn record<const N: usize>(
        &self,
        name: &'static str,
        parents: [&Var; N],
        y: Tensor,
        backward: impl FnOnce(Tensor, [bool; N]) -> Result<[Option<Tensor>; N]> + 'm,
    ) -> Var {
        let run = move |mut dys: Vec<Option<Tensor>>, needs: &[bool]| {
            let (Some(Some(dy)), Ok(needs)) = (dys.pop(), needs.try_into()) else {
                unreachable!("{name}: one output that has a gradient, and {N} parents")
            };
            backward(dy, needs).map(Vec::from)
        };
        let mut vars = self.record_many(name, &parents, vec![y], run);
        vars.pop().unwrap_or_else(|| unreachable!("{name}: one output, one variable"))
    }

    /// [`Tape::record`] for an op that can add what it finds for its first parent to what is there: `backward` also gets the gradient that
    /// later ops gave that parent, if any did, and answers with the sum of both.
    pub fn record_onto<const N: usize>(
        &self,
        name: &'static str,
        parents: [&Var; N],
        y: Tensor,
        backward: impl FnOnce(Tensor, [bool; N], Option<Tensor>) -> Result<[Option<Tensor>; N]> + 'm,
    ) -> Var {
        let run = move |mut dys: Vec<Option<Tensor>>, needs: &[bool], there: Option<Tensor>| {
            let (Some(Some(dy)), Ok(needs)) = (dys.pop(), needs.try_into()) else {
                unreachable!("{name}: one output that has a gradient, and {N} parents")
            };
            backward(dy, needs, there).map(Vec::from)
        };
        let mut vars = self.record_all((name, Given { there: true, room: false }), &parents, vec![y], run);
        vars.pop().unwrap_or_else(|| unreachable!("{name}: one output, one variable"))
    }

    /// Records one op with several outputs `ys`; see [`Tape::record`]. `backward` gets a gradient for each output that anything depends on;
    /// where one is missing, the gradients of parents that only matter to it may be missing as well.
    pub fn record_many(
        &self,
        name: &'static str,
        parents: &[&Var],
        ys: Vec<Tensor>,
        backward: impl FnOnce(Vec<Option<Tensor>>, &[bool]) -> Result<Vec<Option<Tensor>>> + 'm,
    ) -> Vec<Var> {
        let given = Given { there: false, room: false };
        self.record_all((name, given), parents, ys, move |dys, needs, _| backward(dys, needs))
    }

    /// [`Tape::record_many`] for an op whose `backward` takes gradients with room beside their rows as they are.
    pub fn record_many_in_rows(
        &self,
        name: &'static str,
        parents: &[&Var],
        ys: Vec<Tensor>,
        backward: impl FnOnce(Vec<Option<Tensor>>, &[bool]) -> Result<Vec<Option<Tensor>>> + 'm,
    ) -> Vec<Var> {
        let given = Given { there: false, room: true };
        self.record_all((name, given), parents, ys, move |dys, needs, _| backward(dys, needs))
    }

    fn record_all(
        &self,
        (name, given): (&'static str, Given),
        parents: &[&Var],
        ys: Vec<Tensor>,
        backward: impl FnOnce(Vec<Option<Tensor>>, &[bool], Option<Tensor>) -> Result<Vec<Option<Tensor>>> + 'm,
    ) -> Vec<Var> {
        profile::charge(name, Phase::Forward);
        let slots: Vec<Option<usize>> = parents.iter().map(|it| it.slot).collect();
        let needs: Vec<bool> = slots.iter().map(Option::is_some).collect();
        if !self.recording.get() || !needs.contains(&true) {
            return ys.into_iter().map(Var::constant).collect();
        }
        let shapes: Vec<Vec<usize>> = parents.iter().map(|it| it.value.shape().to_vec()).collect();
        let run = move |mut dys: Vec<Option<Tensor>>, sink: &mut Sink<'_>| {
            if !given.room {
                dys.iter_mut().flatten().for_each(|it| *it = it.dense());
            }
            let all = dys.iter().all(Option::is_some);
            let there = slots[0].filter(|_| given.there).and_then(|it| sink.pending[it].take());
            let found = backward(dys, &needs, there)?;
            assert_eq!(found.len(), slots.len(), "{name}: backward must answer for every parent");
            for ((slot, dx), shape) in slots.into_iter().zip(found).zip(&shapes) {
                let asked = slot.is_some() == dx.is_some() || (dx.is_none() && !all);
                assert!(asked, "{name}: backward must return exactly the gradients it was asked for");
                if let (Some(slot), Some(dx)) = (slot, dx) {
                    assert_eq!(dx.shape(), shape, "{name}: a gradient has its operand's shape");
                    sink.deliver(slot, dx);
                }
            }
            Ok(())
        };
        let first = self.push(name, ys.len(), Box::new(run));
        ys.into_iter().zip(first..).map(|(value, slot)| Var::at(slot, value)).collect()
    }

    /// Runs `f` without recording and runs it again, recorded, during backward: only `x` is kept in between.
    ///
    /// Recorded if `x` or any parameter used inside needs a gradient. Room that the op behind the result wants beside the rows of its gradient
    /// ([`GradientPlace`](crate::GradientPlace)) is wanted of whoever takes the result, in another checkpoint, too.
    pub fn checkpoint(&self, x: &Var, f: impl Fn(&Tape<'m>, &Var) -> Result<Var> + 'm) -> Result<Var> {
        if !self.recording.get() {
            return f(self, x);
        }
        let quiet = Tape::disabled();
        // First, so that it leaves while `f` runs.
        let put = |shelf: &Rc<Offload>| Ok::<_, Error>((shelf.clone(), shelf.put(&x.value)?));
        let away = self.offload.as_ref().map(put).transpose()?;
        let y = f(&quiet, &Var::constant(x.value.clone()))?;
        let used = quiet.into_used();
        if used.is_empty() && !x.requires_grad() {
            if let Some((shelf, number)) = away {
                shelf.forget(number);
            }
            return Ok(y);
        }
        self.add_used(used);
        let kept = if away.is_some() { None } else { Some(x.value.clone()) };
        let (x_slot, keeps_cheap, room) = (x.slot, self.keeps_cheap, x.wanted_room());
        let wanted_room = y.wanted_room();
        let replay = move |mut dys: Vec<Option<Tensor>>, sink: &mut Sink<'_>| {
            let Some(Some(dy)) = dys.pop() else { return Ok(()) };
            let x_value = match (kept, &away) {
                (Some(value), _) => value,
                (None, Some((shelf, number))) => shelf.take(*number)?,
                (None, None) => unreachable!("an input is kept here or sent away"),
            };
            let inner = Tape::recording().keeping_cheap(keeps_cheap).replaying();
            let x = if x_slot.is_some() { inner.input(x_value) } else { Var::constant(x_value) };
            let x = x.wanting(GradientPlace::with_room(room));
            let y = f(&inner, &x)?;
            // Its ops keep of the input what they need.
            let wanted = x.slot;
            drop(x);
            // What a block holds most of, its MLP, is through halfway, and the rest takes as long as a copy.
            let halfway = || away.map_or(Ok(()), |(shelf, number)| shelf.fetch_before(number));
            let (grads, dx) = inner.run_with((y, dy), wanted, halfway)?;
            sink.merge(grads);
            if let (Some(slot), Some(dx)) = (x_slot, dx) {
                sink.deliver(slot, dx);
            }
            Ok(())
        };
        let y = self.push_one("checkpoint", y.value, Box::new(replay));
        Ok(y.wanting(GradientPlace::with_room(wanted_room)))
    }

    /// The gradients of `loss` (shape `[1]`) with respect to every parameter used, consuming the tape.
    ///
    /// Fails if nothing trainable was used, or if a used parameter got no gradient.
    pub fn backward(self, loss: Var) -> Result<Grads> {
        self.backward_scaled(loss, 1.0)
    }

    /// The gradients of `scale * loss`, as [`Tape::backward`] gives those of `loss`. The factor begins the walk as a scalar in host
    /// memory, wherever the loss lies.
    pub fn backward_scaled(self, loss: Var, scale: f32) -> Result<Grads> {
        if !loss.requires_grad() {
            return Err(Error::NothingTrains);
        }
        assert_eq!(loss.value.len(), 1, "backward starts from a scalar");
        let seed = Tensor::scalar(scale).to_dtype(loss.value.dtype()).reshape(loss.value.shape())?;
        let used: Vec<(ParamId, String)> =
            self.used.borrow().iter().map(|it| (it.id(), it.name().to_owned())).collect();
        let (grads, _) = self.run(loss, seed, None)?;
        let mut names: Vec<String> = used.into_iter().filter(|(id, _)| !grads.contains(*id)).map(|it| it.1).collect();
        names.dedup();
        if names.is_empty() { Ok(grads) } else { Err(Error::MissingGradient { names }) }
    }

    /// Walks the nodes in reverse. `keep` is the slot of a gradient that is handed out instead of followed.
    pub(crate) fn run(self, y: Var, dy: Tensor, keep: Option<usize>) -> Result<(Grads, Option<Tensor>)> {
        self.run_with((y, dy), keep, || Ok(()))
    }

    /// [`run`](Self::run), with something to do when half of the nodes are behind.
    fn run_with(
        self,
        (y, dy): (Var, Tensor),
        keep: Option<usize>,
        halfway: impl FnOnce() -> Result<()>,
    ) -> Result<(Grads, Option<Tensor>)> {
        let mut nodes = self.nodes.into_inner();
        let mut pending: Vec<Option<Tensor>> = vec![None; nodes.last().map_or(0, |it| it.slots.end)];
        let (mut grads, mut kept) = (Grads::default(), None);
        if let Some(slot) = y.slot {
            pending[slot] = Some(dy);
        }
        drop(y);
        let (half, mut halfway) = (nodes.len() / 2, Some(halfway));
        while let Some(node) = nodes.pop() {
            if nodes.len() <= half
                && let Some(halfway) = halfway.take()
            {
                halfway()?;
            }
            let mut dys: Vec<Option<Tensor>> = pending[node.slots.clone()].iter_mut().map(Option::take).collect();
            if dys.iter().all(Option::is_none) {
                continue;
            }
            if keep == Some(node.slots.start) {
                kept = dys.swap_remove(0);
                continue;
            }
            (node.backward)(dys, &mut Sink { pending: &mut pending, grads: &mut grads })?;
            profile::charge(node.name, Phase::Backward);
        }
        Ok((grads, kept))
    }

    /// Gives the slot of the first output.
    fn push(&self, name: &'static str, outputs: usize, backward: BackwardFn<'m>) -> usize {
        let mut nodes = self.nodes.borrow_mut();
        let start = nodes.last().map_or(0, |it| it.slots.end);
        nodes.push(Node { name, slots: start..start + outputs, backward });
        start
    }

    pub(crate) fn push_one(&self, name: &'static str, value: Tensor, backward: BackwardFn<'m>) -> Var {
        Var::at(self.push(name, 1, backward), value)
    }
}
