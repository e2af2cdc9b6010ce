//! The state out of the arena and back, for checkpoints.
//!
//! [`AdamW::visit_state`] and [`AdamW::restore`] stream: pieces of at most a page, so a checkpoint of any size needs no memory
//! beyond the budget. [`AdamW::export`] and [`AdamW::import`] hold it whole, for small states.

use std::{fmt, io};

use crate::{AdamW, Error, Result, adamw::check_len, policy::Access};

/// Which of a parameter's two state tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// The running mean of gradients, torch's `exp_avg`.
    First,
    /// The running mean of squared gradients, torch's `exp_avg_sq`.
    Second,
}

impl Moment {
    /// Both, in the order in which they are visited.
    pub const ALL: [Self; 2] = [Self::First, Self::Second];
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first moment",
            Self::Second => "second moment",
        })
    }
}

/// Where a piece of state belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatePlace<'a> {
    /// The parameter's position in the order of registration.
    pub param: usize,
    /// Its name.
    pub name: &'a str,
    /// Which of its two tensors.
    pub moment: Moment,
    /// The piece's first element within that tensor.
    pub offset: usize,
}

/// The whole state, in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Steps taken.
    pub steps: u64,
    /// In the order of registration.
    pub params: Vec<ParamState>,
}

/// The state of one parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamState {
    /// The parameter's name.
    pub name: String,
    /// First moment.
    pub m: Vec<f32>,
    /// Second moment.
    pub v: Vec<f32>,
}

impl AdamW {
    /// Shows all state in pieces: parameters in order, of each the first moment, then the second, each ascending, so that
    /// a writer can append them. A parameter that does not fit the budget is paged in twice for that.
    ///
    /// # Errors
    /// A failure of `visit` (the state is as before) or of the spill file.
    pub fn visit_state(&mut self, visit: &mut dyn FnMut(StatePlace<'_>, &[f32]) -> io::Result<()>) -> Result<()> {
        self.check_whole()?;
        self.each_piece(Access::Read, &mut |place, values| visit(place, values))
    }

    /// Replaces all state and the step count: `fill` is asked for the pieces, in the order of
    /// [`visit_state`](Self::visit_state), and writes into the slice that it gets (which holds zeros or old values).
    ///
    /// # Errors
    /// A failure of `fill` or of the spill file. The former state is gone then, and the optimizer refuses to work until
    /// a restore succeeds.
    pub fn restore(
        &mut self,
        steps: u64,
        fill: &mut dyn FnMut(StatePlace<'_>, &mut [f32]) -> io::Result<()>,
    ) -> Result<()> {
        self.arena.clear();
        self.broken = None;
        let done = self.each_piece(Access::Write, fill);
        match &done {
            Ok(()) => self.steps = steps,
            Err(error) => self.broken = Some(error.to_string()),
        }
        done
    }

    /// A copy of all state.
    ///
    /// # Errors
    /// A failure of the spill file.
    pub fn export(&mut self) -> Result<State> {
        let empty = self.specs.iter().map(|s| ParamState {
            name: s.name.clone(),
            m: Vec::with_capacity(s.len),
            v: Vec::with_capacity(s.len),
        });
        let mut params: Vec<ParamState> = empty.collect();
        self.visit_state(&mut |place, values| {
            let param = &mut params[place.param];
            match place.moment {
                Moment::First => param.m.extend_from_slice(values),
                Moment::Second => param.v.extend_from_slice(values),
            }
            Ok(())
        })?;
        Ok(State { steps: self.steps, params })
    }

    /// Replaces all state and the step count.
    ///
    /// # Errors
    /// Another number, order, name or length of parameters: nothing has changed. A failure of the spill file.
    pub fn import(&mut self, state: &State) -> Result<()> {
        let (expected, got) = (self.specs.len(), state.params.len());
        if expected != got {
            return Err(Error::ParamCount { what: "the checkpoint", expected, got });
        }
        for (index, (spec, param)) in self.specs.iter().zip(&state.params).enumerate() {
            if spec.name != param.name {
                return Err(Error::ParamName { index, expected: spec.name.clone(), got: param.name.clone() });
            }
            check_len("first moment", spec, param.m.len())?;
            check_len("second moment", spec, param.v.len())?;
        }
        self.restore(state.steps, &mut |place, values| {
            let param = &state.params[place.param];
            let from = match place.moment {
                Moment::First => &param.m,
                Moment::Second => &param.v,
            };
            values.copy_from_slice(&from[place.offset..place.offset + values.len()]);
            Ok(())
        })
    }

    fn each_piece(
        &mut self,
        access: Access,
        f: &mut dyn FnMut(StatePlace<'_>, &mut [f32]) -> io::Result<()>,
    ) -> Result<()> {
        let layout = self.arena.layout().clone();
        for (param, spec) in self.specs.iter().enumerate() {
            for moment in Moment::ALL {
                for span in layout.spans(param) {
                    let page = match self.arena.page(span.page, access) {
                        Ok(page) => page,
                        Err(error) => {
                            self.broken = Some(error.to_string());
                            return Err(error);
                        }
                    };
                    let values = &mut page[layout.words(span.page, moment, span.within)];
                    let place = StatePlace { param, name: &spec.name, moment, offset: span.offset };
                    f(place, values).map_err(|source| Error::Transfer {
                        name: spec.name.clone(),
                        moment,
                        offset: span.offset,
                        source,
                    })?;
                }
            }
        }
        Ok(())
    }
}
