//! What weights a model has, without having them.

use crate::{ModelConfig, Result, Weights, build};
use halfbyte_lora::{Base, Linear, Member, Role, Weight};
use halfbyte_matmul::Source;
use halfbyte_ops::FrozenMatrix;
use halfbyte_tensor::Tensor;
use std::sync::Arc;

/// A weight as a checkpoint holds it as long as it is dense.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightSpec {
    /// Its name in the checkpoint.
    pub name: String,
    /// The extents, outermost first.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// Whether it is the matrix of a linear layer, `(in_features, out_features)` instead of the other way round.
    pub transposed: bool,
}

/// Every weight of the model that `config` describes, in the order in which it is asked for.
///
/// Fails where the model cannot be built.
pub fn spec(config: &ModelConfig) -> Result<Vec<WeightSpec>> {
    let mut recorder = Recorder::default();
    build(config, &mut recorder)?;
    Ok(recorder.0)
}

/// Provides nothing and writes down what was asked for, so that names stand in the constructors alone.
#[derive(Default)]
struct Recorder(Vec<WeightSpec>);

impl Recorder {
    fn record(&mut self, name: String, shape: &[usize], role: Role) {
        self.0.push(WeightSpec { name, shape: shape.to_vec(), role, transposed: false });
    }

    fn matrix(&mut self, path: &str, dims: (usize, usize), role: Role) -> Base {
        self.record(format!("{path}.weight"), &[dims.0, dims.1], role);
        Base::Frozen(Arc::new(Absent(dims)))
    }
}

impl Weights for Recorder {
    fn linear(&mut self, path: &str, dims: (usize, usize), bias: bool) -> Result<Linear> {
        let base = self.matrix(path, dims, Role::Linear);
        let bias = if bias { Some(self.weight(&format!("{path}.bias"), &[dims.0], Role::Bias)?) } else { None };
        Ok(Linear::new(path, base, bias))
    }

    fn transposed(&mut self, path: &str, dims: (usize, usize), bias: bool) -> Result<Linear> {
        let layer = self.linear(path, dims, bias)?;
        let of_matrix = self.0.iter_mut().rev().find(|it| it.role == Role::Linear);
        if let Some(it) = of_matrix {
            it.shape.reverse();
            it.transposed = true;
        }
        Ok(layer.published_transposed())
    }

    fn expert(&mut self, path: &str, member: &Member, dims: (usize, usize)) -> Result<Linear> {
        let (expert, count) = member.expert;
        if expert == 0 {
            self.record(member.stack.clone(), &[count, dims.1, dims.0], Role::Linear);
            self.record(format!("{}_bias", member.stack), &[count, dims.0], Role::Bias);
        }
        let bias = Weight::frozen(format!("{path}.bias"), Role::Bias, Tensor::from_vec::<f32>(&[0], Vec::new()));
        Ok(Linear::new(path, Base::Frozen(Arc::new(Absent(dims))), Some(bias)).published_transposed())
    }

    fn weight(&mut self, name: &str, shape: &[usize], role: Role) -> Result<Weight> {
        self.record(name.to_owned(), shape, role);
        Ok(Weight::frozen(name, role, Tensor::from_vec::<f32>(&[0], Vec::new())))
    }

    fn head(&mut self, path: &str, dims: (usize, usize)) -> Result<Linear> {
        Ok(Linear::head(path, self.matrix(path, dims, Role::Head)))
    }

    fn router(&mut self, path: &str, dims: (usize, usize)) -> Result<Linear> {
        Ok(Linear::head(path, self.matrix(path, dims, Role::Router)).of_role(Role::Router))
    }
}

#[derive(Debug)]
struct Absent((usize, usize));

impl FrozenMatrix for Absent {
    fn dims(&self) -> (usize, usize) {
        self.0
    }

    fn source<'a>(&'a self) -> Box<dyn Source + 'a> {
        unreachable!("a model that only says what it needs is not run")
    }

    fn bytes(&self) -> usize {
        0
    }

    fn format(&self) -> String {
        "absent".into()
    }
}
