//! The GPU's half. A frozen weight is decoded into a workspace anyway, so a layer's B lies beside it there, and the projections lie
//! beside the input: `y = [x | h] [W | sB]ᵀ` is one product, with no second pass over y. In the same way
//! `dx = [dy | dh] [W ; A]`. What is copied side by side for that must be smaller than the pass that it saves, which the shapes say.

use super::{
    Layer, LowRank,
    saved::{Found, Projected, Saved, SavedLayer, SavedLowRank, Thin},
    stack::Stack,
};
use crate::{
    add::sum,
    dropout, frozen,
    gpu_product::{
        Operand, Window,
        cuda::{add_bias, multiply, multiply_into, product, product_onto, put, side_by_side, take_rows},
    },
};
use halfbyte_autograd::{Result, Var};
use halfbyte_tensor::{DType, Tensor};

/// The outputs of all layers, and their projections.
pub(super) fn forward(x: &Tensor, layers: &[Layer<'_, '_>]) -> Result<(Vec<Tensor>, Projected)> {
    let stack = Stack::new(layers.iter().map(|it| it.lora.map(|it| it.a.value().rows())));
    let h = (stack.width > 0).then(|| project(x, layers, &stack)).transpose()?;
    let own: Result<Vec<_>> = layers.iter().map(|it| frozen::own_way(x, it.w)).collect();
    let own = own?;
    let saved = layers.iter().zip(&own).filter(|(it, own)| it.lora.is_some() && own.is_none());
    let saved: usize = saved.map(|(it, _)| it.w.dims().0).sum();
    // Copying the input costs as much as one more pass over an output of its width.
    let beside = h.as_ref().filter(|_| x.cols() <= saved).map(|h| side_by_side(x, h)).transpose()?;
    let mut ys = Vec::new();
    for (i, (layer, own)) in layers.iter().zip(own).enumerate() {
        // The projections of the layer, and its B, whose product is its update.
        let factors = |lora: &LowRank<'_>, h| -> Result<_> {
            let (first, rank) = stack.place(i);
            Ok((Operand::new(h).columns(first, rank), scaled(lora.b.value(), lora.scaling, x.dtype())?))
        };
        let update = layer.lora.as_ref().zip(h.as_ref());
        let mut y = match (own, update, &beside) {
            (None, Some((lora, _)), Some(x)) => one_product((x, layer), lora, stack.width, stack.place(i).0)?,
            // The update first: what is smaller than a result's rounding is lost if it is added to that result.
            (None, Some((lora, h)), None) => {
                let (h, b) = factors(lora, h)?;
                let mut y = product(1.0, h, Operand::new(&b).t(), x.dtype())?;
                let w = frozen::decoded(layer.w, x.dtype())?;
                multiply(1.0, Operand::new(x), Operand::new(&w).t(), 1.0, &mut y)?;
                on_top(y, layer)?.into_unique()
            }
            (None, None, _) => multiplied(x, &frozen::decoded(layer.w, x.dtype())?, layer)?,
            (Some(y), update, _) => {
                let mut y = y.into_dtype(x.dtype()).into_unique();
                if let Some((lora, h)) = update {
                    let (h, b) = factors(lora, h)?;
                    multiply(1.0, h, Operand::new(&b).t(), 1.0, &mut y)?;
                }
                on_top(y, layer)?.into_unique()
            }
        };
        add_bias(&mut y, layer.bias.map(Var::value))?;
        ys.push(y);
    }
    Ok((ys, Projected::Together(h)))
}

/// `drop(x) Aᵀ` of all layers, side by side: one product, unless masks differ.
fn project(x: &Tensor, layers: &[Layer<'_, '_>], stack: &Stack) -> Result<Tensor> {
    let updates = || layers.iter().enumerate().filter_map(|(i, it)| Some((i, it.lora?)));
    if updates().all(|(_, it)| it.dropout.is_off()) {
        let factors: Vec<_> = layers.iter().map(|it| it.lora.map(|it| it.a.value())).collect();
        let a = stack.stacked(&factors, x.dtype())?;
        return Ok(product(1.0, Operand::new(x), Operand::new(&a).t(), x.dtype())?);
    }
    let mut h = stack.columns_like(x, updates().count());
    for (i, lora) in updates() {
        let (first, rank) = stack.place(i);
        let (dropped, a) = (dropout::apply(x, lora.dropout)?, lora.a.value().to_dtype(x.dtype()));
        let into = Window::whole(&mut h).columns(first, rank);
        multiply_into(1.0, Operand::new(&dropped), Operand::new(&a).t(), 0.0, into)?;
    }
    Ok(h)
}

/// `x wᵀ`, added to what the layer is added to.
fn multiplied(x: &Tensor, w: &Tensor, layer: &Layer<'_, '_>) -> Result<Tensor> {
    let (left, right) = (Operand::new(x), Operand::new(w).t());
    Ok(match layer.onto {
        Some(onto) => product_onto(left, right, onto.value())?,
        None => product(1.0, left, right, x.dtype())?,
    })
}

/// What a format computed in its own way, added to what the layer is added to.
fn on_top(y: Tensor, layer: &Layer<'_, '_>) -> Result<Tensor> {
    layer.onto.map_or(Ok(y.clone()), |onto| sum(onto.value(), &y, 1.0))
}

/// `[x | h] [W | 0 sB 0]ᵀ`, for `x` with the projections beside it and the B of one of the layers at its place among them.
fn one_product(
    (x, layer): (&Tensor, &Layer<'_, '_>),
    lora: &LowRank<'_>,
    width: usize,
    first: usize,
) -> Result<Tensor> {
    let (w, (n, k)) = (layer.w, layer.w.dims());
    let mut both = x.scratch_like(&[n, k + width], x.dtype());
    frozen::decode_into(w, Window::whole(&mut both).columns(0, k))?;
    put(lora.scaling, lora.b.value(), first, Window::whole(&mut both).columns(k, width))?;
    multiplied(x, &both, layer)
}

/// `scale * t` in `dtype`.
fn scaled(t: &Tensor, scale: f32, dtype: DType) -> Result<Tensor> {
    let mut out = t.scratch_like(t.shape(), dtype);
    put(scale, t, 0, Window::whole(&mut out))?;
    Ok(out)
}

/// The gradients of A and B of every layer, and that of the input if it is wanted.
pub(super) fn backward(
    saved: &Saved<'_>,
    x: Option<&Tensor>,
    dys: &[Option<Tensor>],
    (wanted, k): (bool, usize),
) -> Result<Found> {
    let Projected::Together(h) = &saved.projected else { unreachable!("projected by this half") };
    let stack = Stack::of(&saved.layers);
    let live = || saved.layers.iter().zip(dys).enumerate().filter_map(|(i, (it, dy))| Some((i, it, dy.as_ref()?)));
    let mut thin: Vec<Thin> = saved.layers.iter().map(|_| Thin::default()).collect();
    for (i, layer, dy) in live() {
        let Some((low_rank, h)) = layer.low_rank.as_ref().filter(|it| it.want_db).zip(h.as_ref()) else { continue };
        let (first, rank) = stack.place(i);
        let h = Operand::new(h).columns(first, rank);
        thin[i].db = Some(product(low_rank.scaling, Operand::new(dy).t(), h, DType::F32)?);
    }
    let updated = live().filter(|(_, it, _)| it.low_rank.as_ref().is_some_and(|it| it.b.is_some()));
    let updated: Vec<(usize, &SavedLowRank, &Tensor)> =
        updated.filter_map(|(i, it, dy)| Some((i, it.low_rank.as_ref()?, dy))).collect();
    let dh = updated.first().map(|(_, _, dy)| towards_a(&stack, &updated, dy)).transpose()?;
    if let Some((x, dh)) = x.zip(dh.as_ref()) {
        gradients_of_a(&stack, &updated, (x, dh), &mut thin)?;
    }
    let live: Vec<_> = live().collect();
    let dx = wanted.then(|| input_gradient(&stack, &live, dh.as_ref(), k)).transpose()?;
    Ok(Found { dx, thin })
}

/// `dh = s dy B` of all layers side by side; zero for those without a gradient.
fn towards_a(stack: &Stack, updated: &[(usize, &SavedLowRank, &Tensor)], like: &Tensor) -> Result<Tensor> {
    let mut dh = stack.columns_like(like, updated.len());
    for (i, low_rank, dy) in updated {
        let Some(b) = &low_rank.b else { continue };
        let ((first, rank), b) = (stack.place(*i), scaled(b, low_rank.scaling, dy.dtype())?);
        let into = Window::whole(&mut dh).columns(first, rank);
        multiply_into(1.0, Operand::new(dy), Operand::new(&b), 0.0, into)?;
    }
    Ok(dh)
}

/// `dA = dhᵀ drop(x)`: one product for all layers, unless masks differ.
fn gradients_of_a(
    stack: &Stack,
    updated: &[(usize, &SavedLowRank, &Tensor)],
    (x, dh): (&Tensor, &Tensor),
    thin: &mut [Thin],
) -> Result<()> {
    let together = updated.len() > 1 && updated.iter().all(|(_, it, _)| it.want_da && it.dropout.is_off());
    let all = together.then(|| product(1.0, Operand::new(dh).t(), Operand::new(x), DType::F32)).transpose()?;
    for (i, low_rank, _) in updated.iter().filter(|it| it.1.want_da) {
        let (first, rank) = stack.place(*i);
        thin[*i].da = Some(match &all {
            Some(all) => take_rows(all, first, rank)?,
            None => {
                let dropped = dropout::apply(x, low_rank.dropout)?;
                product(1.0, Operand::new(dh).columns(first, rank).t(), Operand::new(&dropped), DType::F32)?
            }
        });
    }
    Ok(())
}

/// The sum over layers of `dy W + mask(dh A)`. What has no mask rides along with the narrowest layer's product, if that is no
/// wider than the input.
fn input_gradient(
    stack: &Stack,
    live: &[(usize, &SavedLayer<'_>, &Tensor)],
    dh: Option<&Tensor>,
    k: usize,
) -> Result<Tensor> {
    let dtype = live[0].2.dtype();
    let mut factors: Vec<Option<&Tensor>> = Vec::new();
    let mut masked = Vec::new();
    for (i, layer, _) in live {
        factors.resize(factors.len().max(i + 1), None);
        match &layer.low_rank {
            Some(it) if it.dropout.is_off() => factors[*i] = it.a.as_ref(),
            Some(it) => masked.push((*i, it)),
            None => {}
        }
    }
    let riding = dh.filter(|_| factors.iter().any(Option::is_some));
    let narrowest = live.iter().map(|(i, it, _)| (it.w.dims().0, *i)).min();
    let host = narrowest.filter(|it| riding.is_some() && it.0 <= k).map(|it| it.1);
    let mut dx: Option<Tensor> = None;
    let mut add = |left: &Tensor, right: &Tensor| -> Result<()> {
        match &mut dx {
            Some(sum) => multiply(1.0, Operand::new(left), Operand::new(right), 1.0, sum)?,
            None => dx = Some(product(1.0, Operand::new(left), Operand::new(right), dtype)?),
        }
        Ok(())
    };
    for (i, layer, dy) in live {
        match riding.filter(|_| host == Some(*i)) {
            Some(dh) => {
                let n = layer.w.dims().0;
                let mut both = dy.scratch_like(&[n + stack.width, k], dtype);
                frozen::decode_into(layer.w, Window::whole(&mut both).rows(0, n))?;
                stack.put_rows(&factors, Window::whole(&mut both).rows(n, stack.width))?;
                add(&side_by_side(dy, dh)?, &both)?;
            }
            None => add(dy, &frozen::decoded(layer.w, dtype)?)?,
        }
    }
    if let (Some(dh), None) = (riding, host) {
        add(dh, &stack.stacked(&factors, dtype)?)?;
    }
    let mut dx = dx.expect("a layer with a gradient was there");
    for (i, low_rank) in masked {
        let Some((dh, a)) = dh.zip(low_rank.a.as_ref()) else { continue };
        let ((first, rank), a) = (stack.place(i), a.to_dtype(dtype));
        let mut part = product(1.0, Operand::new(dh).columns(first, rank), Operand::new(&a), dtype)?;
        dropout::apply_in_place(&mut part, low_rank.dropout)?;
        dx.add_assign(&part);
    }
    Ok(dx)
}
