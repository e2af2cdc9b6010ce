use crate::{Model, weights::turned};
use halfbyte_autograd::Result;
use halfbyte_lora::{Adapter, Linear};
use halfbyte_tensor::{DType, Device, Tensor};

/// Calls `each` with every tensor of a model as a checkpoint holds it: with an adapter folded in, matrices decoded one at a
/// time, so that saving needs no second copy of the model.
pub fn model_tensors<E>(
    model: &dyn Model,
    adapter: Option<&Adapter>,
    mut each: impl FnMut(&str, &[usize], &dyn Fn() -> Result<Tensor>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let (linears, weights) = model.parts();
    for weight in weights {
        each(weight.path(), weight.value().shape(), &|| weight.merged(adapter))?;
    }
    for linear in &linears {
        if linear.is_published_transposed()
            && let Some(member) = linear.member()
        {
            if member.expert.0 == 0 {
                let all: Vec<&Linear> = linears.iter().copied().filter(|it| is_of(it, &member.stack)).collect();
                experts((&member.stack, &all), adapter, &mut each)?;
            }
            continue;
        }
        let (out, inner) = linear.dims();
        let name = format!("{}.weight", linear.path());
        if linear.is_published_transposed() {
            each(&name, &[inner, out], &|| Ok(turned(&linear.dense(adapter)?.to_device(&Device::Cpu)?)))?;
        } else {
            each(&name, &[out, inner], &|| linear.dense(adapter))?;
        }
        if let Some(bias) = linear.bias() {
            each(bias.path(), bias.value().shape(), &|| bias.merged(adapter))?;
        }
    }
    Ok(())
}

fn is_of(linear: &Linear, stack: &str) -> bool {
    linear.member().is_some_and(|it| it.stack == stack)
}

/// The matrices of all experts as one tensor `(experts, in_features, out_features)`, and their biases as another.
fn experts<E>(
    (name, all): (&str, &[&Linear]),
    adapter: Option<&Adapter>,
    each: &mut impl FnMut(&str, &[usize], &dyn Fn() -> Result<Tensor>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let (out, inner) = all[0].dims();
    let joined = |shape: &[usize], one: &dyn Fn(&Linear) -> Result<Tensor>| {
        let mut values = Vec::with_capacity(shape.iter().product());
        for linear in all {
            values.extend(one(linear)?.to_device(&Device::Cpu)?.to_f32_vec());
        }
        Ok(Tensor::from_vec(shape, values))
    };
    let shape = [all.len(), inner, out];
    each(name, &shape, &|| joined(&shape, &|it| Ok(turned(&it.dense(adapter)?.to_device(&Device::Cpu)?))))?;
    let shape = [all.len(), out];
    each(&format!("{name}_bias"), &shape, &|| {
        joined(&shape, &|it| it.bias().map_or_else(|| Ok(Tensor::zeros(&[out], DType::F32)), |it| it.merged(adapter)))
    })
}
