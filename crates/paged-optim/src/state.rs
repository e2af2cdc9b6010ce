//! The state out of the arena and back, for checkpoints.
//!
//! [`AdamW::visit_state`] and [`AdamW::restore`] stream: pieces of at most a page, so a checkpoint of any size needs no memory
//! beyond the budget. [`AdamW::export`] and [`AdamW::import`] hold it whole, for small states.

use std::io;

use crate::{
    AdamW, Error, Result, StateFormat, StatePart,
    adamw::{check_len, check_whole},
    policy::Access,
};

/// Where a piece of state belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatePlace<'a> {
    /// The parameter's position in the order of registration.
    pub param: usize,
    /// Its name.
    pub name: &'a str,
    /// Which of its tensors.
    pub part: StatePart,
    /// The piece's first element within that tensor.
    pub offset: usize,
}

/// The whole state, in memory, of an optimizer that keeps all of it in f32.
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
    /// Shows all state in pieces: parameters in order, of each part after part, each ascending, so that a writer can append
    /// them. A piece is bytes, of f32 numbers as the machine has them or of codes. A parameter that does not fit the budget
    /// is paged in once for each part.
    ///
    /// # Errors
    /// A failure of `visit` (the state is as before) or of the spill file.
    pub fn visit_state(&mut self, visit: &mut dyn FnMut(StatePlace<'_>, &[u8]) -> io::Result<()>) -> Result<()> {
        check_whole(self.broken.as_deref())?;
        self.each_piece(Access::Read, &mut |place, bytes| visit(place, bytes))
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
        fill: &mut dyn FnMut(StatePlace<'_>, &mut [u8]) -> io::Result<()>,
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
    /// State that is not in f32: visit it instead. A failure of the spill file.
    pub fn export(&mut self) -> Result<State> {
        self.check_f32()?;
        let empty = self.specs.iter().map(|s| ParamState {
            name: s.name.clone(),
            m: Vec::with_capacity(s.len),
            v: Vec::with_capacity(s.len),
        });
        let mut params: Vec<ParamState> = empty.collect();
        self.visit_state(&mut |place, values| {
            let param = &mut params[place.param];
            let to = if place.part == StatePart::First { &mut param.m } else { &mut param.v };
            to.extend_from_slice(bytemuck::cast_slice(values));
            Ok(())
        })?;
        Ok(State { steps: self.steps, params })
    }

    /// Replaces all state and the step count.
    ///
    /// # Errors
    /// Another number, order, name or length of parameters, state that is not in f32: nothing has changed. A failure of
    /// the spill file.
    pub fn import(&mut self, state: &State) -> Result<()> {
        self.check_f32()?;
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
            let from = if place.part == StatePart::First { &param.m } else { &param.v };
            values.copy_from_slice(bytemuck::cast_slice(&from[place.offset..place.offset + values.len() / 4]));
            Ok(())
        })
    }

    fn check_f32(&self) -> Result<()> {
        match self.specs.iter().find(|it| it.state != StateFormat::F32) {
            Some(spec) => Err(Error::NotF32 { name: spec.name.clone() }),
            None => Ok(()),
        }
    }

    fn each_piece(
        &mut self,
        access: Access,
        f: &mut dyn FnMut(StatePlace<'_>, &mut [u8]) -> io::Result<()>,
    ) -> Result<()> {
        let layout = self.arena.layout().clone();
        for (param, spec) in self.specs.iter().enumerate() {
            for &part in StatePart::of(spec.state) {
                for span in layout.of_param(param) {
                    let page = match self.arena.page(span.page, access) {
                        Ok(page) => page,
                        Err(error) => {
                            self.broken = Some(error.to_string());
                            return Err(error);
                        }
                    };
                    let bytes = &mut bytemuck::cast_slice_mut(page)[span.bytes(part)];
                    let offset = span.first(part);
                    f(StatePlace { param, name: &spec.name, part, offset }, bytes)
                        .map_err(|source| Error::Transfer { name: spec.name.clone(), part, offset, source })?;
                }
            }
        }
        Ok(())
    }
}
