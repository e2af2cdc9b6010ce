use crate::{
    Error, Grads, Param, ParamId, Result,
    profile::{self, Phase},
};
use halfbyte_tensor::Tensor;
use std::cell::{Cell, RefCell};

/// A value on the tape. It never turns into a [`Tensor`] that goes on being differentiated: a gradient path can only be
/// cut by writing [`Var::constant`].
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    node: Option<usize>,
}

impl Var {
    /// A value through which no gradient flows.
    pub fn constant(value: Tensor) -> Var {
        Var { value, node: None }
    }

    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The value, without the handle on the tape.
    pub fn into_value(self) -> Tensor {
        self.value
    }

    /// Whether a gradient is wanted here.
    pub fn requires_grad(&self) -> bool {
        self.node.is_some()
    }
}

type BackwardFn<'m> = Box<dyn FnOnce(Tensor, &mut Sink<'_>) -> Result<()> + 'm>;

struct Node<'m> {
    name: &'static str,
    backward: BackwardFn<'m>,
}

/// Records one closure per differentiable op and runs them in reverse, freeing what each saved as it goes.
///
/// `'m` is the lifetime of the model: a backward closure may borrow frozen weights.
pub struct Tape<'m> {
    nodes: RefCell<Vec<Node<'m>>>,
    used: RefCell<Vec<Param>>,
    recording: Cell<bool>,
}

/// Where a backward closure delivers its results.
struct Sink<'a> {
    pending: &'a mut [Option<Tensor>],
    grads: &'a mut Grads,
}

impl Sink<'_> {
    fn deliver(&mut self, node: usize, dx: Tensor) {
        match &mut self.pending[node] {
            Some(sum) => sum.add_assign(&dx),
            slot => *slot = Some(dx),
        }
    }
}

impl<'m> Tape<'m> {
    /// A tape for training.
    pub fn recording() -> Tape<'m> {
        Tape { nodes: RefCell::default(), used: RefCell::default(), recording: Cell::new(true) }
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

    /// Brings a trainable tensor onto the tape.
    pub fn param(&self, param: &Param) -> Var {
        self.used.borrow_mut().push(param.clone());
        if !self.recording.get() {
            return Var::constant(param.value());
        }
        let id = param.id();
        let keep = move |dy, sink: &mut Sink<'_>| {
            sink.grads.add(id, dy);
            Ok(())
        };
        self.push("param", param.value(), Box::new(keep))
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
        profile::charge(name, Phase::Forward);
        let nodes = parents.map(|it| it.node);
        let needs = nodes.map(|it| it.is_some());
        if !self.recording.get() || !needs.contains(&true) {
            return Var::constant(y);
        }
        let shapes = parents.map(|it| it.value.shape().to_vec());
        let run = move |dy, sink: &mut Sink<'_>| {
            let found = backward(dy, needs)?;
            for (((node, need), dx), shape) in nodes.into_iter().zip(needs).zip(found).zip(&shapes) {
                assert_eq!(need, dx.is_some(), "{name}: backward must return exactly the gradients it was asked for");
                if let (Some(node), Some(dx)) = (node, dx) {
                    assert_eq!(dx.shape(), shape, "{name}: a gradient has its operand's shape");
                    sink.deliver(node, dx);
                }
            }
            Ok(())
        };
        self.push(name, y, Box::new(run))
    }

    /// Runs `f` without recording and runs it again, recorded, during backward: only `x` is kept in between.
    ///
    /// Recorded if `x` or any parameter used inside needs a gradient.
    pub fn checkpoint(&self, x: &Var, f: impl Fn(&Tape<'m>, &Var) -> Result<Var> + 'm) -> Result<Var> {
        if !self.recording.get() {
            return f(self, x);
        }
        let quiet = Tape::disabled();
        let y = f(&quiet, &Var::constant(x.value.clone()))?;
        let used = quiet.used.into_inner();
        if used.is_empty() && !x.requires_grad() {
            return Ok(y);
        }
        self.used.borrow_mut().extend(used);
        let (x_value, x_node) = (x.value.clone(), x.node);
        let replay = move |dy, sink: &mut Sink<'_>| {
            let inner = Tape::recording();
            let x = match x_node {
                Some(_) => inner.push("input", x_value, Box::new(|_, _| Ok(()))),
                None => Var::constant(x_value),
            };
            let y = f(&inner, &x)?;
            let (grads, dx) = inner.run(y, dy, x.node)?;
            sink.grads.merge(grads);
            if let (Some(node), Some(dx)) = (x_node, dx) {
                sink.deliver(node, dx);
            }
            Ok(())
        };
        Ok(self.push("checkpoint", y.value, Box::new(replay)))
    }

    /// The gradients of `loss` (shape `[1]`) with respect to every parameter used, consuming the tape.
    ///
    /// Fails if nothing trainable was used, or if a used parameter got no gradient.
    pub fn backward(self, loss: Var) -> Result<Grads> {
        self.backward_scaled(loss, 1.0)
    }

    /// The same for `scale * loss`.
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

    /// Walks the nodes in reverse. `keep` is a node whose gradient is handed out instead of followed.
    fn run(self, y: Var, dy: Tensor, keep: Option<usize>) -> Result<(Grads, Option<Tensor>)> {
        let mut nodes = self.nodes.into_inner();
        let mut pending: Vec<Option<Tensor>> = nodes.iter().map(|_| None).collect();
        let (mut grads, mut kept) = (Grads::default(), None);
        if let Some(node) = y.node {
            pending[node] = Some(dy);
        }
        drop(y);
        while let Some(node) = nodes.pop() {
            let at = nodes.len();
            let Some(dy) = pending[at].take() else { continue };
            if keep == Some(at) {
                kept = Some(dy);
                continue;
            }
            (node.backward)(dy, &mut Sink { pending: &mut pending, grads: &mut grads })?;
            profile::charge(node.name, Phase::Backward);
        }
        Ok((grads, kept))
    }

    fn push(&self, name: &'static str, value: Tensor, backward: BackwardFn<'m>) -> Var {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(Node { name, backward });
        Var { value, node: Some(nodes.len() - 1) }
    }
}
