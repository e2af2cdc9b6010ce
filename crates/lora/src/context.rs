//! What travels with a pass: which adapter each row uses, and whether dropout is on.

use crate::{Adapter, Update};
use std::sync::Arc;

/// Which adapter a pass uses. A model knows none; the same model can run two passes with two adapters at a time.
#[derive(Clone, Debug, Default)]
pub enum Routing {
    /// The base alone.
    #[default]
    Base,
    /// One adapter for all rows.
    One(Arc<Adapter>),
}

impl Routing {
    /// The adapter of all rows, if there is one.
    pub fn adapter(&self) -> Option<&Arc<Adapter>> {
        match self {
            Routing::Base => None,
            Routing::One(adapter) => Some(adapter),
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
    /// The seed of this pass's dropout masks, a function of the run's seed, the step and the micro-batch. None is evaluation,
    /// where nothing is dropped.
    pub dropout: Option<u64>,
}

impl Context {
    /// For evaluation.
    pub fn new(routing: impl Into<Routing>) -> Context {
        Context { routing: routing.into(), dropout: None }
    }

    /// For training: with dropout.
    pub fn training(routing: impl Into<Routing>, seed: u64) -> Context {
        Context { routing: routing.into(), dropout: Some(seed) }
    }

    /// What the adapter of this pass does to the weight at `path`.
    pub(crate) fn update(&self, path: &str) -> Option<&dyn Update> {
        self.routing.adapter()?.update(path)
    }
}
