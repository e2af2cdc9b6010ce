//! The second half of a block: a gated MLP, or a mixture of such, of which a router chooses a few for each token.

use crate::{BlockSpec, Error, Pass, Result, Weights, decoder::Projections};
use halfbyte_autograd::{Result as OpResult, Tape, Var};
use halfbyte_lora::{Context, Linear, Member, Role, Share};
use halfbyte_ops::{
    experts::{Balance, Choice, from_experts, route, to_experts, weigh},
    gated::{Gate, gated, gated_with_room},
    split::split,
};
use std::sync::Arc;

/// `down(f(gate(x)) * up(x))`.
pub(crate) struct Mlp {
    gate_up: Projections<2>,
    down: Linear,
}

/// The MLPs of a block and their router.
pub(crate) struct Experts {
    router: Linear,
    experts: Vec<Mlp>,
    choice: Choice,
}

/// What a block has.
pub(crate) enum Feed {
    Dense(Mlp),
    Sparse(Experts),
}

/// What all blocks of a pass know of it.
#[derive(Clone)]
pub(crate) struct Fed {
    pub(crate) gate: Gate,
    pub(crate) balance: Option<Arc<Balance>>,
    pub(crate) ctx: Context,
}

impl Fed {
    pub(crate) fn new(gate: Gate, pass: &Pass<'_>) -> Fed {
        Fed { gate, balance: pass.balance.clone(), ctx: pass.ctx.clone() }
    }
}

const GATE_UP: [&str; 2] = ["mlp.gate_proj", "mlp.up_proj"];

impl Feed {
    /// That of block `i`, whose weights have names in `at`.
    pub(crate) fn new(
        weights: &mut dyn Weights,
        at: impl Fn(&str) -> String,
        (spec, i): (&BlockSpec, usize),
        (hidden, inner): (usize, usize),
    ) -> Result<Feed> {
        if let Some(experts) = spec.experts.as_ref().filter(|_| spec.layers[i].sparse) {
            let (names, inner) = (experts.names, experts.inner);
            let path = at(&format!("{}.{}", names.file, names.router));
            let mut router = weights.router(&path, (experts.count, hidden))?;
            if names.matrices.is_none() {
                router = router.biased(weights.weight(&format!("{path}.bias"), &[experts.count], Role::Bias)?);
            }
            let router = router.known_as(at(&format!("{}.{}", names.module, names.router)));
            let one = |e: usize| {
                let path = |name: &str| at(&format!("{}.experts.{e}.{name}", names.file));
                let member = |stack: &str, rows: (usize, usize)| Member {
                    stack: at(&format!("{}.experts.{stack}", names.module)),
                    expert: (e, experts.count),
                    rows,
                };
                let Some([gate, up, down]) = names.matrices else {
                    return joined(weights, (path, member), (hidden, inner));
                };
                let gate = weights.linear(&path(gate), (inner, hidden), false)?;
                let up = weights.linear(&path(up), (inner, hidden), false)?;
                let linears = vec![
                    gate.in_stack(member("gate_up_proj", (0, 2 * inner))),
                    up.in_stack(member("gate_up_proj", (inner, 2 * inner))),
                ];
                let down = weights.linear(&path(down), (hidden, inner), false)?;
                let down = down.in_stack(member("down_proj", (0, hidden)));
                Ok(Mlp { gate_up: Projections { linears, widths: [inner; 2], in_turn: false }, down })
            };
            let all = (0..experts.count).map(one).collect::<Result<_>>()?;
            return Ok(Feed::Sparse(Experts { router, experts: all, choice: experts.choice }));
        }
        let fused = spec.fused.then_some("mlp.gate_up_proj");
        let bias = spec.biases.mlp;
        let gate_up = Projections::new(weights, &at, (GATE_UP, fused), ([inner; 2], hidden, bias))?;
        Ok(Feed::Dense(Mlp { gate_up, down: weights.linear(&at("mlp.down_proj"), (hidden, inner), bias)? }))
    }

    pub(crate) fn linears(&self) -> Vec<&Linear> {
        match self {
            Feed::Dense(it) => it.linears().collect(),
            Feed::Sparse(it) => [&it.router].into_iter().chain(it.experts.iter().flat_map(Mlp::linears)).collect(),
        }
    }

    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Feed::Dense(it) => it.linears_mut().collect(),
            Feed::Sparse(it) => {
                [&mut it.router].into_iter().chain(it.experts.iter_mut().flat_map(Mlp::linears_mut)).collect()
            }
        }
    }
}

/// One expert of which the files have gate and up in one.
fn joined(
    weights: &mut dyn Weights,
    (path, member): (impl Fn(&str) -> String, impl Fn(&str, (usize, usize)) -> Member),
    (hidden, inner): (usize, usize),
) -> Result<Mlp> {
    let mut one = |name: &str, dims: (usize, usize)| {
        let member = member(name, (0, dims.0));
        Ok::<_, Error>(weights.expert(&path(name), &member, dims)?.in_stack(member))
    };
    let linears = vec![one("gate_up_proj", (2 * inner, hidden))?];
    let gate_up = Projections { linears, widths: [inner; 2], in_turn: true };
    Ok(Mlp { gate_up, down: one("down_proj", (hidden, inner))? })
}

impl Mlp {
    /// What the last layer is to multiply.
    pub(crate) fn inside<'m>(&'m self, tape: &Tape<'m>, x: &Var, fed: &Fed) -> OpResult<Var> {
        let [gate, up] = self.gate_up.forward(tape, x, &fed.ctx)?;
        let room = Linear::room([&self.down].into_iter(), &fed.ctx, gate.value());
        gated_with_room(tape, [&gate, &up], fed.gate, room)
    }

    /// The layers that take its input.
    pub(crate) fn inner(&self) -> impl Iterator<Item = &Linear> {
        self.gate_up.linears.iter()
    }

    /// The last layer.
    pub(crate) fn down(&self) -> &Linear {
        &self.down
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.gate_up.linears.iter().chain([&self.down])
    }

    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.gate_up.linears.iter_mut().chain([&mut self.down])
    }
}

impl Projections<2> {
    /// Of an expert, with its share of the experts' update.
    fn forward_shared<'m>(&'m self, tape: &Tape<'m>, x: &Var, with: (Option<&Share>, &Context)) -> OpResult<[Var; 2]> {
        match &self.linears[..] {
            [both] => {
                let [y] = Linear::forward_shared([both], tape, x, with)?;
                split(tape, &y, self.columns())
            }
            _ => Linear::forward_shared(std::array::from_fn(|i| &self.linears[i]), tape, x, with),
        }
    }
}

impl Experts {
    /// What the chosen experts make of `x (tokens, hidden_size)`.
    pub(crate) fn forward<'m>(&'m self, tape: &Tape<'m>, x: &Var, fed: &Fed) -> OpResult<Var> {
        let of_expert = |it: &'m Linear| [Some(it.path()), it.member().map(|it| it.stack.as_str())];
        let of_experts = self.experts.iter().flat_map(Mlp::linears).flat_map(of_expert).flatten();
        let mut paths: Vec<&str> = [self.router.module()].into_iter().chain(of_experts).collect();
        paths.dedup();
        let [y] = fed.ctx.by_rows(tape, x, &paths, |x, ctx| {
            Ok([self.alone(tape, x, &Fed { ctx: ctx.clone(), ..fed.clone() })?])
        })?;
        Ok(y)
    }

    /// Where all rows use the same adapter.
    fn alone<'m>(&'m self, tape: &Tape<'m>, x: &Var, fed: &Fed) -> OpResult<Var> {
        let logits = self.router.forward(tape, x, &fed.ctx)?;
        let (routes, weights) = route(tape, &logits, self.choice, fed.balance.as_ref())?;
        let xs = to_experts(tape, x, &routes)?;
        let busy: Vec<usize> = routes.busy().collect();
        let shares = |layers: &[Linear]| Share::all(tape, &fed.ctx, layers, &routes);
        let like = &self.experts[0];
        let (gate_up, down) = (shares(&like.gate_up.linears)?, shares(std::slice::from_ref(&like.down))?);
        let one = |(i, e): (usize, &usize)| {
            let (it, share) = (&self.experts[*e], |all: &'_ Option<Vec<Share>>| all.as_ref().map(|it| it[i].clone()));
            let [gate, up] = it.gate_up.forward_shared(tape, &xs[i], (share(&gate_up).as_ref(), &fed.ctx))?;
            let inside = gated(tape, &gate, &up, fed.gate)?;
            let down = |x: &Var| Linear::forward_shared([&it.down], tape, x, (share(&down).as_ref(), &fed.ctx));
            if it.down.bias().is_some() {
                let [y] = down(&inside)?;
                return weigh(tape, &y, &weights[i]);
            }
            // The last layer is linear: to weigh what it multiplies saves keeping what it makes of it.
            let [y] = down(&weigh(tape, &inside, &weights[i])?)?;
            Ok(y)
        };
        let ys: Vec<Var> = busy.iter().enumerate().map(one).collect::<OpResult<_>>()?;
        let idle = (0..self.experts.len()).filter(|e| routes.range(*e).is_empty());
        let idle: Vec<Var> = idle
            .flat_map(|e| self.experts[e].linears())
            .filter_map(|it| it.trained_matrix(&fed.ctx).map(|it| tape.param(it)))
            .collect();
        from_experts(tape, &ys, &routes, &idle)
    }
}
