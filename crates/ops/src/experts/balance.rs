use super::Routes;
use crate::add::sum;
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::Tensor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What all routers of a pass chose, for the loss that keeps experts equally busy (Switch Transformer, equations 4 to 6, as transformers
/// takes it over all layers): `experts * sum_e f_e P_e`, with `f_e` the rows of expert e a token and layer, and `P_e` the mean of its
/// probability.
///
/// Only `P` has a derivative, which is the same for every token: so routers add it to their own gradient, in a backward pass that began
/// at [`Balance::join`]. That a block is recomputed there changes nothing.
#[derive(Debug)]
pub struct Balance(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Rows of every expert, and the sums of its probabilities, over all layers.
    counts: Vec<f64>,
    sums: Vec<f64>,
    /// Tokens, over all layers.
    rows: f64,
    /// The loss's factor, once it was taken.
    factor: Option<f32>,
    /// The gradient of the loss that it was added to.
    upstream: f32,
}

impl Balance {
    /// Of no layer yet.
    pub fn new(experts: usize) -> Arc<Balance> {
        let (counts, sums) = (vec![0.0; experts], vec![0.0; experts]);
        Arc::new(Balance(Mutex::new(State { counts, sums, rows: 0.0, factor: None, upstream: 0.0 })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A layer's router, with its probabilities `(tokens, experts)`. What is recomputed has been counted.
    pub(super) fn enter(&self, probabilities: &[f32], routes: &Routes) {
        let mut state = self.state();
        if state.factor.is_some() {
            return;
        }
        for row in probabilities.chunks(state.sums.len()) {
            state.sums.iter_mut().zip(row).for_each(|(sum, p)| *sum += f64::from(*p));
        }
        routes.busy().for_each(|e| state.counts[e] += routes.range(e).len() as f64);
        state.rows += routes.tokens() as f64;
    }

    /// `loss + factor * balance`, which ends the pass's counting; a loss of a dry run is as it was.
    ///
    /// # Errors
    /// If a GPU fails.
    pub fn join(self: &Arc<Self>, tape: &Tape<'_>, loss: &Var, factor: f32) -> Result<Var> {
        let own = {
            let mut state = self.state();
            state.factor = Some(factor);
            match state.rows {
                0.0 => 0.0,
                rows => {
                    let pairs = state.counts.iter().zip(&state.sums);
                    state.sums.len() as f64 * pairs.map(|(f, p)| f / rows * (p / rows)).sum::<f64>()
                }
            }
        };
        let own = Tensor::scalar(factor * own as f32).to_device(&loss.value().device())?;
        let y = sum(loss.value(), &own.reshape(loss.value().shape())?, 1.0)?;
        let balance = self.clone();
        Ok(tape.record("balance", [loss], y, move |dy, _| {
            balance.state().upstream = dy.read_f32()?[0];
            Ok([Some(dy)])
        }))
    }

    /// Its derivative by every probability of an expert.
    pub(super) fn slope(&self) -> Option<Vec<f32>> {
        let state = self.state();
        let factor = f64::from(state.factor? * state.upstream) * state.sums.len() as f64;
        Some(state.counts.iter().map(|f| (factor * f / (state.rows * state.rows)) as f32).collect())
    }
}
