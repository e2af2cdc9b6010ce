use halfbyte_autograd::{Param, Result, Tape, Var};
use halfbyte_tensor::{DType, Tensor};

/// Settings of a gradient check by central differences.
#[derive(Clone, Copy, Debug)]
pub struct Gradcheck {
    /// Half the distance between the two evaluations.
    pub step: f32,
    /// Allowed error, relative to `1 + |gradient|`.
    pub tolerance: f32,
}

impl Default for Gradcheck {
    /// With f32 arithmetic and losses of order one, rounding contributes about `1e-6 / step` and the third derivative
    /// about `step^2`.
    fn default() -> Self {
        Gradcheck { step: 1e-2, tolerance: 1e-2 }
    }
}

/// Compares every element of every parameter's gradient with a central difference.
///
/// `f` builds an output of any shape from the parameters (f32); the loss is its dot product with a fixed random vector,
/// so that no symmetry of a plain sum can hide an error.
pub fn gradcheck(params: &[Param], f: impl for<'m> Fn(&Tape<'m>, &'m [Param]) -> Result<Var>) {
    Gradcheck::default().run(params, f);
}

impl Gradcheck {
    /// See [`gradcheck`].
    pub fn run(&self, params: &[Param], f: impl for<'m> Fn(&Tape<'m>, &'m [Param]) -> Result<Var>) {
        let tape = Tape::recording();
        let y = f(&tape, params).expect("the forward pass works");
        let loss = weighted_sum(&tape, &y);
        let grads = tape.backward(loss).expect("every parameter gets a gradient");
        for p in params {
            let analytic = grads.get(p).unwrap_or_else(|| panic!("no gradient for {}", p.name())).to_f32_vec();
            assert_eq!(grads.get(p).map(|it| it.shape().to_vec()), Some(p.value().shape().to_vec()), "{}", p.name());
            for (i, a) in analytic.into_iter().enumerate() {
                let numeric = self.central_difference(p, i, || {
                    let quiet = Tape::disabled();
                    let y = f(&quiet, params).expect("the forward pass works");
                    f64::from(weighted_sum(&quiet, &y).value().data::<f32>()[0])
                });
                let fine = (a - numeric).abs() <= self.tolerance * (1.0 + a.abs());
                assert!(fine, "{}[{i}]: analytic {a}, numeric {numeric}", p.name());
            }
        }
    }

    fn central_difference(&self, p: &Param, i: usize, loss: impl Fn() -> f64) -> f32 {
        let at = |delta: f32| {
            let before = p.value().data::<f32>()[i];
            p.update(|t| t.data_mut::<f32>()[i] = before + delta);
            let y = loss();
            p.update(|t| t.data_mut::<f32>()[i] = before);
            y
        };
        ((at(self.step) - at(-self.step)) / (2.0 * f64::from(self.step))) as f32
    }
}

/// `sum_i w_i * y_i` for a fixed `w` of values in [-2, 2].
fn weighted_sum(tape: &Tape<'_>, y: &Var) -> Var {
    let w = crate::noise(y.value().shape(), DType::F32, 0x5eed);
    let dtype = y.value().dtype();
    let total: f64 =
        y.value().to_f32_vec().iter().zip(w.data::<f32>()).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum();
    tape.record("weighted_sum", [y], Tensor::scalar(total as f32), move |dy, _| {
        let scale = dy.data::<f32>()[0];
        let dx = w.data::<f32>().iter().map(|w| w * scale).collect();
        Ok([Some(Tensor::from_vec(w.shape(), dx).to_dtype(dtype))])
    })
}
