use crate::{Error, Result};
use halfbyte_tensor::DType;
use serde::{Deserialize, Serialize};

/// The factor on the loss that keeps small gradients within f16's range: raised while all goes well, halved where a gradient
/// overflows, and then the step is not taken. 1 and constant for other dtypes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    value: f32,
    good_steps: u32,
    dynamic: bool,
}

/// As torch.amp has them.
const FIRST_SCALE: f32 = 65536.0;
const GROWTH_STEPS: u32 = 2000;

impl LossScale {
    /// The scale that a run in `compute` begins with.
    pub fn new(compute: DType) -> LossScale {
        let dynamic = compute == DType::F16;
        LossScale { value: if dynamic { FIRST_SCALE } else { 1.0 }, good_steps: 0, dynamic }
    }

    /// Whether a run in `compute` can have it.
    pub(crate) fn is_of(&self, compute: DType) -> bool {
        let LossScale { value, dynamic, .. } = *self;
        let power_of_two = value.is_normal() && value > 0.0 && value.to_bits().trailing_zeros() >= 23;
        power_of_two && dynamic == (compute == DType::F16) && (dynamic || value == 1.0)
    }

    /// The factor: a power of two.
    pub fn value(&self) -> f32 {
        self.value
    }

    /// Takes in the norm of a step's gradient, scaling taken out.
    ///
    /// # Errors
    /// If the norm is not finite, and no smaller scale could change that.
    pub fn after(&mut self, norm: f32) -> Result<()> {
        if norm.is_finite() {
            self.good_steps += 1;
            if self.dynamic && self.good_steps.is_multiple_of(GROWTH_STEPS) {
                self.value *= 2.0;
            }
            return Ok(());
        }
        if !self.dynamic || self.value < 2.0 {
            return Err(Error::GradientNorm(norm));
        }
        (self.value, self.good_steps) = (self.value / 2.0, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_halves_where_gradients_overflow_and_doubles_after_many_good_steps() {
        let mut scale = LossScale::new(DType::F16);
        scale.after(f32::INFINITY).unwrap();
        scale.after(f32::NAN).unwrap();
        assert_eq!(scale.value, FIRST_SCALE / 4.0);
        for _ in 0..GROWTH_STEPS {
            scale.after(1.0).unwrap();
        }
        assert_eq!(scale.value, FIRST_SCALE / 2.0);
        while scale.value >= 2.0 {
            scale.after(f32::NAN).unwrap();
        }
        assert!(scale.after(f32::NAN).is_err(), "nothing is left to halve");
    }

    #[test]
    fn a_scale_from_a_file_is_one_that_a_run_can_have() {
        let scale = |value, dynamic| LossScale { value, good_steps: 0, dynamic };
        assert!(LossScale::new(DType::F16).is_of(DType::F16) && LossScale::new(DType::Bf16).is_of(DType::Bf16));
        for value in [0.0, -2.0, 3.0, f32::NAN, f32::INFINITY] {
            assert!(!scale(value, true).is_of(DType::F16), "{value}");
        }
        assert!(!scale(2.0, true).is_of(DType::Bf16) && !scale(1.0, false).is_of(DType::F16));
    }

    #[test]
    fn other_dtypes_have_no_scale_and_no_excuse() {
        let mut scale = LossScale::new(DType::Bf16);
        scale.after(1.0).unwrap();
        assert_eq!(scale.value, 1.0);
        assert!(scale.after(f32::NAN).is_err());
    }
}
