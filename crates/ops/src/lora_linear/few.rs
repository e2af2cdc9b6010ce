//! The GPU's half for few rows, as in generation: two launches for all layers of an input, one of the projections and one of everything
//! else.

use super::{Layer, saved::Projected, stack::Stack};
use crate::few_rows::{self, Addends, MAX_RANK, Product, TOGETHER, Update};
use halfbyte_autograd::{Result, Var};
use halfbyte_tensor::Tensor;

/// Whether it is for such an input and layers.
pub(super) fn fit(x: &Tensor, layers: &[Layer<'_, '_>]) -> bool {
    let updates = || layers.iter().filter_map(|it| it.lora);
    let taken = updates().all(|it| it.dropout.is_off() && (1..=MAX_RANK).contains(&it.a.value().rows()));
    few_rows::fit(x, layers.iter().map(|it| it.w)) && taken && updates().count() <= TOGETHER
}

/// The outputs of all layers, and their projections.
pub(super) fn forward(x: &Tensor, layers: &[Layer<'_, '_>]) -> Result<(Vec<Tensor>, Projected)> {
    let factors: Vec<&Tensor> = layers.iter().filter_map(|it| Some(it.lora?.a.value())).collect();
    let stack = Stack::new(layers.iter().map(|it| it.lora.map(|it| it.a.value().rows())));
    let h = (!factors.is_empty()).then(|| stack.projected(x, &factors)).transpose()?;
    let products: Vec<Product<'_>> = layers
        .iter()
        .enumerate()
        .map(|(i, layer)| {
            let update = layer.lora.zip(h.as_ref()).map(|(lora, h)| Update {
                b: lora.b.value(),
                scaling: lora.scaling,
                h,
                first: stack.place(i).0,
            });
            let addends = Addends { update, bias: layer.bias.map(Var::value), onto: layer.onto.map(Var::value) };
            Product { w: layer.w, addends }
        })
        .collect();
    let ys = few_rows::multiply(x, &products)?;
    drop(products);
    Ok((ys, Projected::Together(h)))
}
