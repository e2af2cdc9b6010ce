//! Whether a run taught anything: an adapter that did not move, one that the last step made no numbers of, or a tensor that no
//! gradient ever reached, must not look like a result.

use crate::{Error, Result};
use halfbyte_autograd::Param;

/// What is known of the parameters since the run began.
#[derive(Debug)]
pub(crate) struct Learned {
    start: Vec<u64>,
    reached: Vec<bool>,
    /// Whether a step was taken since.
    stepped: bool,
    /// Whether gradients had reached something before.
    goes_on: bool,
}

impl Learned {
    /// The beginning of a run, or of its continuation: `reached` tells which parameters have had a gradient before.
    pub(crate) fn new(params: &[Param], reached: Option<Vec<bool>>) -> Result<Learned> {
        let start = params.iter().map(fingerprint).collect::<Result<Vec<u64>>>()?;
        let reached = reached.unwrap_or_else(|| vec![false; params.len()]);
        Ok(Learned { start, goes_on: reached.contains(&true), reached, stepped: false })
    }

    /// Takes in which gradients of a step were other than zero; none of one that was skipped.
    pub(crate) fn step(&mut self, nonzero: &[bool]) {
        self.stepped = true;
        self.reached.iter_mut().zip(nonzero).for_each(|(reached, nonzero)| *reached |= nonzero);
    }

    /// Which parameters have had a gradient other than zero.
    pub(crate) fn reached(&self) -> &[bool] {
        &self.reached
    }

    /// Refuses a run that taught nothing, or whose last step diverged. One that goes on need not move: nothing may be left but to
    /// conclude, or steps that the loss scale skips. A proves nothing unless it had its [`Chance`].
    pub(crate) fn check(&self, params: &[Param], learning_rate: f64, a_had_a_chance: bool) -> Result<()> {
        let mut moved = false;
        for (param, before) in params.iter().zip(&self.start) {
            if !param.value().is_finite()? {
                return Err(Error::NotFinite { name: param.name().to_owned() });
            }
            moved = moved || fingerprint(param)? != *before;
        }
        if !moved && ((self.stepped && !self.goes_on) || learning_rate == 0.0) {
            return Err(Error::NothingChanged { learning_rate });
        }
        let excused = |name: &str| !a_had_a_chance && name.ends_with("lora_A.weight");
        let reached = params.iter().map(Param::name).zip(&self.reached);
        let never: Vec<&str> = reached.filter(|it| !it.1 && !excused(it.0)).map(|it| it.0).collect();
        match never.first() {
            None => Ok(()),
            Some(first) => {
                Err(Error::Untrained { count: never.len(), of: self.reached.len(), first: (*first).to_owned() })
            }
        }
    }
}

/// Whether A could learn: while B is zero, A's gradient is exactly zero. It is the same whether a run was interrupted or not.
#[derive(Debug)]
pub(crate) struct Chance {
    b_moved: bool,
    came: bool,
}

impl Chance {
    /// After so many steps that moved something.
    pub(crate) fn after(moving: usize) -> Chance {
        Chance { b_moved: moving > 0, came: moving > 1 }
    }

    /// Takes in a step by its norm, which is no number where it was skipped for its loss scale, and its rate.
    pub(crate) fn step(&mut self, norm: f32, rate: f64) {
        if norm.is_finite() {
            self.came |= self.b_moved;
            self.b_moved |= rate > 0.0;
        }
    }

    /// Whether a step was taken when B was no longer zero.
    pub(crate) fn came(&self) -> bool {
        self.came
    }
}

/// A hash of a parameter's bits (FNV-1a).
fn fingerprint(param: &Param) -> Result<u64> {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for value in param.value().read_f32()? {
        hash = (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3);
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_tensor::Tensor;

    fn pair() -> [Param; 2] {
        ["q_proj.lora_A.weight", "q_proj.lora_B.weight"]
            .map(|it| Param::new(it, Tensor::from_vec(&[2], vec![0.5, 0.0])))
    }

    fn moved(params: &[Param]) {
        params[1].set(Tensor::from_vec(&[2], vec![0.5, 0.25]));
    }

    #[test]
    fn a_run_that_changes_nothing_is_refused() {
        let params = pair();
        let mut learned = Learned::new(&params, None).unwrap();
        learned.step(&[true, true]);
        assert!(matches!(learned.check(&params, 0.5, true), Err(Error::NothingChanged { learning_rate: 0.5 })));
        moved(&params);
        learned.check(&params, 0.5, true).unwrap();
    }

    #[test]
    fn a_run_that_goes_on_from_steps_that_were_skipped_has_not_begun() {
        let params = pair();
        let mut before = Learned::new(&params, None).unwrap();
        before.step(&[]);
        let mut learned = Learned::new(&params, Some(before.reached().to_vec())).unwrap();
        learned.step(&[]);
        assert!(matches!(learned.check(&params, 0.5, true), Err(Error::NothingChanged { .. })));
    }

    #[test]
    fn a_run_that_goes_on_and_skips_its_last_step_is_none_of_them() {
        let params = pair();
        let mut learned = Learned::new(&params, Some(vec![true, true])).unwrap();
        learned.step(&[true, true]);
        learned.check(&params, 0.5, true).unwrap();
    }

    #[test]
    fn a_last_step_that_left_no_numbers_is_no_result() {
        let params = pair();
        let mut learned = Learned::new(&params, None).unwrap();
        learned.step(&[true, true]);
        params[1].set(Tensor::from_vec(&[2], vec![0.5, f32::NAN]));
        let Err(Error::NotFinite { name }) = learned.check(&params, 0.5, true) else { panic!("B is NaN") };
        assert_eq!(name, params[1].name());
    }

    #[test]
    fn one_that_has_only_to_conclude_need_not_move() {
        let learned = Learned::new(&pair(), Some(vec![true, true])).unwrap();
        learned.check(&pair(), 0.5, false).unwrap();
        assert!(matches!(learned.check(&pair(), 0.0, false), Err(Error::NothingChanged { .. })));
    }

    #[test]
    fn a_tensor_that_no_gradient_reached_is_named() {
        let params = pair();
        let mut learned = Learned::new(&params, None).unwrap();
        moved(&params);
        learned.step(&[false, true]);
        let Err(Error::Untrained { count: 1, of: 2, first }) = learned.check(&params, 1.0, true) else {
            panic!("A was never trained")
        };
        assert_eq!(first, params[0].name());
        learned.check(&params, 1.0, false).expect("A has an excuse as long as B is zero");
        learned.step(&[true, false]);
        learned.check(&params, 1.0, true).expect("once is enough");
        assert_eq!(learned.reached(), [true, true]);
    }

    #[test]
    fn a_has_a_chance_when_b_has_moved_and_a_step_is_taken() {
        let of = |steps: &[(f32, f64)]| {
            let mut it = Chance::after(0);
            steps.iter().for_each(|(norm, rate)| it.step(*norm, *rate));
            it.came()
        };
        assert!(of(&[(1.0, 0.5), (1.0, 0.0)]) && of(&[(1.0, 0.0), (1.0, 0.5), (1.0, 0.25)]));
        assert!(!of(&[(1.0, 0.5)]) && !of(&[(1.0, 0.0), (1.0, 0.5)]), "B moves in the last step");
        assert!(!of(&[(f32::INFINITY, 0.5), (1.0, 0.25)]), "a step that was skipped moved nothing");
        assert!(!of(&[(1.0, 0.5), (f32::NAN, 0.25)]), "and no gradient of it was taken");
        for (before, [taken, not]) in [(0, [false, false]), (1, [true, false]), (2, [true, true])] {
            let [mut goes_on, concludes] = [(); 2].map(|()| Chance::after(before));
            goes_on.step(1.0, 0.5);
            assert_eq!([goes_on.came(), concludes.came()], [taken, not], "{before}");
        }
    }

    #[test]
    fn b_has_no_excuse() {
        let params = pair();
        let mut learned = Learned::new(&params, Some(vec![true, false])).unwrap();
        moved(&params);
        learned.step(&[true, false]);
        assert!(matches!(learned.check(&params, 1.0, false), Err(Error::Untrained { .. })));
    }
}
