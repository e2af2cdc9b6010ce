//! What travels with a pass: which adapter each row uses, and whether dropout is on.

use crate::{Adapter, Error, Result, Update};
use halfbyte_autograd::{Result as OpResult, Tape, Var};
use halfbyte_ops::{Layout, RowGroups, deal_rows, gather_rows};
use halfbyte_tensor::philox;
use std::sync::Arc;

/// Which adapter a pass uses. A model knows none; the same model can run two passes with two adapters at a time.
#[derive(Clone, Debug, Default)]
pub enum Routing {
    /// The base alone.
    #[default]
    Base,
    /// One adapter for all rows.
    One(Arc<Adapter>),
    /// An adapter, or none, for each sequence of the batch. See [`Context::by_row`].
    ByRow {
        /// Those that some sequence uses.
        adapters: Vec<Arc<Adapter>>,
        /// Which of them each sequence uses; none is the base alone.
        of_sequence: Arc<[Option<usize>]>,
    },
}

impl Routing {
    /// The adapter of all rows, if there is one.
    pub fn adapter(&self) -> Option<&Arc<Adapter>> {
        match self {
            Routing::One(adapter) => Some(adapter),
            Routing::Base | Routing::ByRow { .. } => None,
        }
    }
}

impl From<Option<Arc<Adapter>>> for Routing {
    fn from(adapter: Option<Arc<Adapter>>) -> Routing {
        adapter.map_or(Routing::Base, Routing::One)
    }
}

/// What a pass needs to know beyond its input; models hand it through.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Which adapter each row uses.
    pub routing: Routing,
    /// Where the sequences are, for [`Routing::ByRow`].
    pub layout: Option<Layout>,
    /// The seed of this pass's dropout masks, a function of the run's seed, the step and the micro-batch. None is evaluation,
    /// where nothing is dropped.
    pub dropout: Option<u64>,
}

impl Context {
    /// For evaluation.
    pub fn new(routing: impl Into<Routing>) -> Context {
        Context { routing: routing.into(), ..Context::default() }
    }

    /// For training: with dropout.
    pub fn training(routing: impl Into<Routing>, seed: u64) -> Context {
        Context { dropout: Some(seed), ..Context::new(routing) }
    }

    /// For a batch whose sequences use different adapters: `of_sequence` says for each which of `adapters` it is.
    ///
    /// Each adapter's rows then go through the layers that it changes as a batch of their own. So a row has the bits that it has in
    /// a pass of its adapter's rows alone, with one reservation: on the CPU a product of at most four rows (eight in bf16,
    /// where the processor has dot products of it) is summed in another order than one of more, so what is shared by all
    /// rows (the base's own products) must be on the same side of that
    /// number in both passes.
    ///
    /// Fails if there is not a choice for each sequence, or one that does not exist.
    pub fn by_row(adapters: Vec<Arc<Adapter>>, of_sequence: &[Option<usize>], layout: &Layout) -> Result<Context> {
        if of_sequence.len() != layout.sequences() || of_sequence.iter().flatten().any(|it| *it >= adapters.len()) {
            return Err(Error::Config(format!(
                "each of the batch's {} sequences needs one of the {} adapters or none, got {of_sequence:?}",
                layout.sequences(),
                adapters.len()
            )));
        }
        let routing = Routing::ByRow { adapters, of_sequence: of_sequence.into() };
        Ok(Context { routing, layout: Some(layout.clone()), dropout: None })
    }

    /// This context for part `i` of a pass's rows, which a layer computes by themselves: with masks of its own.
    #[must_use]
    pub fn of_part(&self, i: usize) -> Context {
        let seed = |seed: u64| {
            let [a, b, ..] = philox::quad(seed, 0x5714_90ab, i as u64);
            u64::from(a) << 32 | u64::from(b)
        };
        Context { dropout: self.dropout.map(seed), ..self.clone() }
    }

    /// Whether all rows use the same adapter, or none.
    pub fn is_one(&self) -> bool {
        !matches!(self.routing, Routing::ByRow { .. })
    }

    /// What the adapter of this pass does to the weight at `path`.
    pub(crate) fn update(&self, path: &str) -> Option<&dyn Update> {
        debug_assert!(self.split(&[path]).is_none(), "{path}: rows of different adapters are split before");
        self.routing.adapter()?.update(path)
    }

    /// The rows of each adapter that changes one of the places at `paths`, those of all others together, and a context for
    /// each; none where there is nothing to split.
    pub fn split(&self, paths: &[&str]) -> Option<(RowGroups, Vec<Context>)> {
        let Routing::ByRow { adapters, of_sequence } = &self.routing else { return None };
        let changes: Vec<bool> =
            adapters.iter().map(|adapter| paths.iter().any(|it| adapter.update(it).is_some())).collect();
        if !of_sequence.iter().flatten().any(|it| changes[*it]) {
            return None;
        }
        let Some(layout) = &self.layout else { unreachable!("rows are routed within a layout") };
        // Groups in the order in which they first occur.
        let mut found: Vec<Option<usize>> = Vec::new();
        let of_sequence = of_sequence.iter().map(|choice| {
            let choice = choice.filter(|it| changes[*it]);
            found.iter().position(|it| *it == choice).unwrap_or_else(|| {
                found.push(choice);
                found.len() - 1
            })
        });
        let of_sequence: Vec<usize> = of_sequence.collect();
        let groups = RowGroups::new(layout, of_sequence.into_iter());
        let alone = |choice: Option<usize>| Context {
            routing: choice.map(|it| adapters[it].clone()).into(),
            layout: None,
            dropout: self.dropout,
        };
        Some((groups, found.into_iter().map(alone).collect()))
    }

    /// Computes `f`, which uses the weights at `paths`, from `x (rows, channels)`: for the rows of each adapter apart where they
    /// need it.
    pub fn by_rows<const N: usize>(
        &self,
        tape: &Tape<'_>,
        x: &Var,
        paths: &[&str],
        f: impl Fn(&Var, &Context) -> OpResult<[Var; N]>,
    ) -> OpResult<[Var; N]> {
        let Some((groups, contexts)) = self.split(paths) else { return f(x, self) };
        if let [only] = &contexts[..] {
            return f(x, only);
        }
        let xs = deal_rows(tape, x, &groups)?;
        let ys: Vec<[Var; N]> = xs.iter().zip(&contexts).map(|(x, ctx)| f(x, ctx)).collect::<OpResult<_>>()?;
        let one = |i: usize| gather_rows(tape, &ys.iter().map(|it| it[i].clone()).collect::<Vec<_>>(), &groups);
        let all: Vec<Var> = (0..N).map(one).collect::<OpResult<_>>()?;
        all.try_into().map_err(|_| unreachable!("as many outputs as were asked for"))
    }
}
