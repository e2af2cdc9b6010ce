use crate::Model;
use halfbyte_autograd::Result;
use halfbyte_lora::Adapter;
use halfbyte_tensor::Tensor;

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
        each(&format!("{}.weight", linear.path()), &[out, inner], &|| linear.dense(adapter))?;
        if let Some(bias) = linear.bias() {
            each(bias.path(), bias.value().shape(), &|| bias.merged(adapter))?;
        }
    }
    Ok(())
}
