use crate::{Model, weights::turned};
use halfbyte_autograd::Result;
use halfbyte_lora::Adapter;
use halfbyte_tensor::{Device, Tensor};

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
    for linear in linears {
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
