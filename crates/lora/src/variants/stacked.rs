//! LoRA of a parameter that holds the matrices of many experts (PEFT's `target_parameters`): a low-rank product for each, all of them in
//! two tensors.

use super::{Module, Numbers, Place, Update, What, on_host};
use crate::{Linear, Member, Result};
use halfbyte_autograd::{Param, Result as OpResult, Tape, Var};
use halfbyte_tensor::{DType, Tensor, philox};

/// The low-rank updates `scaling * B[e] A[e]` of the experts' matrices, where those of a gate and the one beside it are one matrix.
#[derive(Clone, Debug)]
pub struct Stacked {
    /// `(experts * rank, in_features)`.
    pub a: Param,
    /// `(experts * out_features, rank)`.
    pub b: Param,
    /// The number of experts.
    pub experts: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub scaling: f32,
}

/// Where such an update belongs.
#[derive(Clone, Copy)]
pub(crate) struct StackPlace<'a> {
    /// One of the matrices, and where it stands among them.
    pub(crate) linear: &'a Linear,
    pub(crate) member: &'a Member,
    /// How many parameters of the module PEFT wraps around this one.
    pub(crate) around: usize,
}

impl StackPlace<'_> {
    /// What PEFT's files call the update, up to the factor's own name.
    fn module(&self) -> String {
        let experts = self.member.stack.rsplit_once('.').map_or("", |it| it.0);
        format!("{experts}{}", ".base_layer".repeat(self.around))
    }

    /// What PEFT's files call A and B.
    pub(crate) fn names(&self) -> [String; 2] {
        let (a, b) = super::Lora::names(&self.module());
        [a, b]
    }

    /// Rows and columns of one expert.
    pub(crate) fn dims(&self) -> (usize, usize) {
        (self.member.rows.1, self.linear.dims().1)
    }
}

pub(super) fn begin(place: &Place<'_>, numbers: &mut Numbers<'_>) -> Result<Option<Box<dyn Update>>> {
    let What::Stack(stack) = &place.what else { return Ok(None) };
    let ((out, inner), rank, experts) = (stack.dims(), place.rank, stack.member.expert.1);
    let [name_a, name_b] = stack.names();
    let a = numbers.param(&name_a, &[experts * rank, inner], |seed| {
        let mut a = vec![0.0; experts * rank * inner];
        let bound = 1.0 / (inner as f32).sqrt();
        philox::fill_uniform(seed, place.index | 1 << 48, -bound, bound, &mut a);
        Tensor::from_vec(&[experts * rank, inner], a)
    })?;
    // Files hold B with the experts innermost: `(out_features, rank * experts)`.
    let b = numbers.param_turned(&name_b, [out, rank * experts], |it| match it {
        None => Tensor::zeros(&[experts * out, rank], DType::F32),
        Some(it) => inward(&it, experts),
    })?;
    Ok(Some(Box::new(Stacked { a, b, experts, scaling: place.scaling })))
}

impl Stacked {
    /// The rank of one expert's update.
    pub fn rank(&self) -> usize {
        self.b.value().cols()
    }

    /// `A` and `B`, or their gradients, by the names and in the shapes of PEFT's files.
    pub fn as_stored(&self, a: Tensor, b: &Tensor) -> Vec<(String, Tensor)> {
        vec![(self.a.name().to_owned(), a), (self.b.name().to_owned(), outward(b, self.experts))]
    }

    /// The matrix of one expert, `(rows, in_features)` f32, with its update.
    pub(crate) fn merged(&self, member: &Member, base: Tensor) -> OpResult<Tensor> {
        let (rank, inner, rows) = (self.rank(), base.cols(), base.rows());
        let (a, b) = (on_host(&self.a)?, on_host(&self.b)?);
        let (e, out) = (member.expert.0, member.rows.1);
        let a = Tensor::from_vec(&[rank, inner], a.data::<f32>()[e * rank * inner..][..rank * inner].to_vec());
        let first = (e * out + member.rows.0) * rank;
        let b = Tensor::from_vec(&[rows, rank], b.data::<f32>()[first..][..rows * rank].to_vec());
        super::lora::sum(base, [&a, &b], self.scaling)
    }
}

/// `(experts * out, rank)` of `(out, rank * experts)`.
fn inward(b: &Tensor, experts: usize) -> Tensor {
    let (out, rank, values) = (b.rows(), b.cols() / experts, b.data::<f32>());
    let at = |i: usize| {
        let (e, o, r) = (i / (out * rank), i / rank % out, i % rank);
        values[o * rank * experts + r * experts + e]
    };
    Tensor::from_vec(&[experts * out, rank], (0..values.len()).map(at).collect())
}

/// The way back.
fn outward(b: &Tensor, experts: usize) -> Tensor {
    let (out, rank, values) = (b.rows() / experts, b.cols(), b.data::<f32>());
    let at = |i: usize| {
        let (o, r, e) = (i / (rank * experts), i / experts % rank, i % experts);
        values[(e * out + o) * rank + r]
    };
    Tensor::from_vec(&[out, rank * experts], (0..values.len()).map(at).collect())
}

impl Update for Stacked {
    fn forward<'m>(&self, _tape: &Tape<'m>, _module: Module<'_, 'm>, _dropout: Option<u64>) -> OpResult<Var> {
        unreachable!("{}: each expert takes its own part", self.a.name())
    }

    fn stacked(&self) -> Option<&Stacked> {
        Some(self)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.a.clone(), self.b.clone()]
    }

    fn merge(&self, _base: Tensor) -> OpResult<Tensor> {
        unreachable!("{}: each expert takes its own part", self.a.name())
    }

    fn stored(&self) -> OpResult<Vec<(String, Tensor)>> {
        Ok(self.as_stored(on_host(&self.a)?, &on_host(&self.b)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_b_with_the_experts_innermost() {
        // Of 2 outputs, rank 3 and 2 experts.
        let file = Tensor::from_vec(&[2, 6], (0..12).map(|it| it as f32).collect());
        let own = inward(&file, 2);
        assert_eq!(own.shape(), [4, 3]);
        // The second expert has every second column.
        assert_eq!(own.data::<f32>()[6..], [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]);
        assert_eq!(outward(&own, 2).data::<f32>(), file.data::<f32>());
    }
}
