//! The GPU's half. A frozen weight is decoded into a workspace anyway, so a layer's B lies beside it there, and the projections lie
//! beside the input: `y = [x | h] [W | sB]ᵀ` is one product, with no second pass over y. In the same way
//! `dx = [dy | dh] [W ; A]`. Where the rows of x or dy have room for that, the few columns are put there; else all is copied side by side,
//! which must be smaller than the pass that it saves, as the shapes say.

use super::{
    Layer, LowRank, few,
    saved::{Found, Projected, Saved, SavedLayer, SavedLowRank, Thin},
    stack::Stack,
    thin::cuda::{self as thin, Shared, ThinProducts},
};
use crate::{
    add::sum,
    dropout, frozen,
    gpu_product::{
        Operand, Window,
        cuda::{Aside, add_bias, multiply, multiply_into, product, product_onto, put, put_with, side_by_side},
    },
};
use halfbyte_autograd::{GradientPlace, Result, Var};
use halfbyte_tensor::{DType, Place, Tensor};

/// The outputs of all layers, and their projections.
pub(super) fn forward(x: &Tensor, layers: &[Layer<'_, '_>]) -> Result<(Vec<Tensor>, Projected)> {
    if few::fit(x, layers) {
        return few::forward(x, layers);
    }
    let (stack, h) = projections(x, layers)?;
    let own: Result<Vec<_>> = layers.iter().map(|it| it.w.forward(x).transpose()).collect();
    let own = own?;
    let saved = layers.iter().zip(&own).filter(|(it, own)| it.lora.is_some() && own.is_none());
    let saved: usize = saved.map(|(it, _)| it.w.dims().0).sum();
    // Copying the input costs as much as one more pass over an output of its width. In 16 bits it is done in any case: what the library adds
    // to a product (beta) meets a sum that is rounded already, which would lose an update that is smaller than that.
    let pays = saved > 0 && (x.cols() <= saved || x.dtype() != DType::F32);
    let beside = h.as_ref().filter(|_| pays).map(|h| Beside::of(x, h)).transpose()?;
    // The first of the products that read both sees to it that they are beside each other.
    let mut aside = beside.as_ref().and_then(Beside::aside);
    let mut ys = Vec::new();
    for (i, (layer, own)) in layers.iter().zip(own).enumerate() {
        // The projections of the layer, and its B, whose product is its update.
        let factors = |lora: &LowRank<'_>, h| -> Result<_> {
            let (first, rank) = stack.place(i);
            Ok((Operand::new(h).columns(first, rank), scaled(lora.b.value(), lora.scaling, x.dtype())?))
        };
        let update = layer.lora.as_ref().zip(h.as_ref());
        let mut y = match (own, update, &beside) {
            (None, Some((lora, _)), Some(it)) => {
                one_product((it, x, layer), lora, (stack.width, stack.place(i).0), aside.take())?
            }
            (None, Some((lora, h)), None) => {
                let (h, b) = factors(lora, h)?;
                let mut y = product(1.0, h, Operand::new(&b).t(), x.dtype())?;
                let w = frozen::decoded_beside(layer.w, x, (0, 0))?;
                multiply(1.0, Operand::new(x), Operand::new(&w).t(), 1.0, &mut y)?;
                on_top(y, layer)?.into_unique()
            }
            (None, None, _) => multiplied(Operand::new(x), &frozen::decoded_beside(layer.w, x, (0, 0))?, layer)?,
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

/// [`forward`] where nobody reads the outputs: the projections, which the backward pass wants.
pub(super) fn unread(x: &Tensor, layers: &[Layer<'_, '_>]) -> Result<(Vec<Tensor>, Projected)> {
    // A product of few rows projects in its own order, in the same launch.
    if few::fit(x, layers) {
        return few::forward(x, layers);
    }
    let (_, h) = projections(x, layers)?;
    Ok((layers.iter().map(|it| it.unread(x)).collect(), Projected::Together(h)))
}

/// Where each layer's projections stand among those of all, and these.
fn projections(x: &Tensor, layers: &[Layer<'_, '_>]) -> Result<(Stack, Option<Tensor>)> {
    let stack = Stack::new(layers.iter().map(|it| it.lora.map(|it| it.a.value().rows())));
    let h = (stack.width > 0).then(|| project(x, layers, &stack)).transpose()?;
    Ok((stack, h))
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
fn multiplied(x: Operand<'_>, w: &Tensor, layer: &Layer<'_, '_>) -> Result<Tensor> {
    let right = Operand::new(w).t();
    Ok(match layer.onto {
        Some(onto) => product_onto(x, right, onto.value())?,
        None => product(1.0, x, right, w.dtype())?,
    })
}

/// What a format computed in its own way, added to what the layer is added to.
fn on_top(y: Tensor, layer: &Layer<'_, '_>) -> Result<Tensor> {
    layer.onto.map_or(Ok(y.clone()), |onto| sum(onto.value(), &y, 1.0))
}

/// `[x | h] [W | 0 sB 0]ᵀ`, for `x` with the projections beside it and the B of one of the layers at its place among them.
fn one_product(
    (beside, x, layer): (&Beside<'_>, &Tensor, &Layer<'_, '_>),
    lora: &LowRank<'_>,
    (width, first): (usize, usize),
    aside: Option<Aside<'_>>,
) -> Result<Tensor> {
    let k = x.cols();
    let mut both = frozen::decoded_beside(layer.w, x, (0, width))?;
    put_with(lora.scaling, lora.b.value(), first, Window::whole(&mut both).columns(k, width), aside)?;
    multiplied(beside.operand(), &both, layer)
}

/// Two matrices of as many rows as one operand.
enum Beside<'a> {
    /// The second belongs into the room of the first one's rows.
    There(&'a Tensor, &'a Tensor),
    /// Both were copied.
    Copied(Tensor),
}

impl<'a> Beside<'a> {
    /// The second beside the first: in its rows if they have room, else copied.
    fn of(first: &'a Tensor, second: &'a Tensor) -> Result<Beside<'a>> {
        if first.room() < second.cols() {
            return Ok(Beside::Copied(side_by_side(&first.dense(), second)?));
        }
        Ok(Beside::There(first, second))
    }

    /// What has yet to be put into its room before the operand is read.
    fn aside(&self) -> Option<Aside<'a>> {
        match self {
            Beside::There(first, second) => Some(Aside::new(first, second)),
            Beside::Copied(_) => None,
        }
    }

    fn operand(&self) -> Operand<'_> {
        match self {
            Beside::There(first, second) => Operand::with_room(first, second.cols()),
            Beside::Copied(both) => Operand::new(both),
        }
    }
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
    x: Option<Tensor>,
    dys: &[Option<Tensor>],
    wanted: Option<(&GradientPlace, usize)>,
) -> Result<Found> {
    let Projected::Together(h) = &saved.projected else { unreachable!("projected by this half") };
    let stack = Stack::of(&saved.layers);
    let live = || saved.layers.iter().zip(dys).enumerate().filter_map(|(i, (it, dy))| Some((i, it, dy.as_ref()?)));
    let mut thin: Vec<Thin> = saved.layers.iter().map(|_| Thin::default()).collect();
    let updated = live().filter(|(_, it, _)| it.low_rank.as_ref().is_some_and(|it| it.b.is_some()));
    let updated: Vec<(usize, &SavedLowRank, &Tensor)> =
        updated.filter_map(|(i, it, dy)| Some((i, it.low_rank.as_ref()?, dy))).collect();
    // `dh = s dy B` of all layers side by side; zero for those without a gradient.
    let mut dh = updated.first().map(|(_, _, dy)| stack.columns_like(dy, updated.len()));
    let with_updates: Vec<_> = live().filter_map(|(i, it, dy)| Some((i, it.low_rank.as_ref()?, dy))).collect();
    for some in together(&with_updates) {
        let found = thin_products(some, &stack, dh.as_mut(), h.as_ref())?;
        some.iter().zip(found).for_each(|((i, ..), db)| thin[*i].db = db);
    }
    // Nobody reads the input after that, so that the gradient that takes as much memory need not lie beside it.
    if let Some((x, dh)) = x.zip(dh.as_ref()) {
        gradients_of_a(&stack, &updated, (&x, dh), &mut thin)?;
    }
    let live: Vec<_> = live().collect();
    let dx = wanted.map(|it| input_gradient(&stack, &live, dh.as_ref(), it)).transpose()?;
    Ok(Found { dx, thin })
}

/// A layer's number, its update and the gradient of its results.
type Live<'a> = (usize, &'a SavedLowRank, &'a Tensor);

/// Layers whose thin products are one launch, and those that have each their own, in their order.
fn together<'a, 'b>(live: &'b [Live<'a>]) -> Vec<&'b [Live<'a>]> {
    let all_fit = live.iter().all(|(_, it, dy)| thin::fit(dy, it.rank) && (it.b.is_some() || it.want_db));
    live.chunks(if all_fit { thin::TOGETHER } else { 1 }).collect()
}

/// `s dy B` to the layers' columns of `dh`, where they have B, and `dB = s dyᵀ h`, where it is wanted: in one pass over `dy` where that can be.
fn thin_products(
    layers: &[Live<'_>],
    stack: &Stack,
    mut dh: Option<&mut Tensor>,
    h: Option<&Tensor>,
) -> Result<Vec<Option<Tensor>>> {
    let (i, low_rank, dy) = layers[0];
    let h = h.filter(|_| layers.iter().any(|it| it.1.want_db));
    if low_rank.b.is_none() && h.is_none() {
        return Ok(vec![None]);
    }
    if let (Place::Gpu(gpu), true) = (dy.place(), thin::fit(dy, low_rank.rank)) {
        let all = layers.iter().map(|(i, it, dy)| ThinProducts {
            dy,
            b: it.b.as_ref().filter(|_| dh.is_some()),
            wants_db: it.want_db && h.is_some(),
            place: stack.place(*i),
            scaling: it.scaling,
        });
        let all: Vec<_> = all.collect();
        return Ok(thin::gradients(gpu, &all, Shared { h, dh, width: stack.width })?);
    }
    let ((first, rank), scaling) = (stack.place(i), low_rank.scaling);
    if let Some((b, dh)) = low_rank.b.as_ref().zip(dh.as_mut()) {
        let b = scaled(b, scaling, dy.dtype())?;
        let into = Window::whole(dh).columns(first, rank);
        multiply_into(1.0, Operand::new(dy), Operand::new(&b), 0.0, into)?;
    }
    let db = |h| product(scaling, Operand::new(dy).t(), Operand::new(h).columns(first, rank), DType::F32);
    Ok(vec![h.map(db).transpose()?])
}

/// `dA = dhᵀ drop(x)`: one product for all layers, unless masks differ.
fn gradients_of_a(
    stack: &Stack,
    updated: &[(usize, &SavedLowRank, &Tensor)],
    (x, dh): (&Tensor, &Tensor),
    thin: &mut [Thin],
) -> Result<()> {
    let together = updated.len() > 1 && updated.iter().all(|(_, it, _)| it.want_da && it.dropout.is_off());
    let wanted = || updated.iter().filter(|it| it.1.want_da);
    if together {
        let all = product(1.0, Operand::new(dh).t(), Operand::new(x), DType::F32)?;
        let places: Vec<_> = wanted().map(|it| stack.place(it.0)).collect();
        wanted().zip(all.into_pieces(&places)?).for_each(|((i, ..), da)| thin[*i].da = Some(da));
        return Ok(());
    }
    for (i, low_rank, _) in wanted() {
        let (first, rank) = stack.place(*i);
        let dropped = dropout::apply(x, low_rank.dropout)?;
        let (left, right) = (Operand::new(dh).columns(first, rank).t(), Operand::new(&dropped));
        thin[*i].da = Some(product(1.0, left, right, DType::F32)?);
    }
    Ok(())
}

/// The largest workspace, in bytes, in which matrices of one input are multiplied with their gradients as one, and the most rows that those
/// gradients have then. Beyond, the memory in one piece would count for more than what it saves.
const LARGEST_WORKSPACE: usize = 192 << 20;
const MOST_ROWS: usize = 1 << 14;

/// Whether the gradients of these layers' results, beside each other, are to be one operand of `dx = [dy .. dy | dh] [W ; .. W ; A]`: that
/// is a product for several, and its sum is rounded once. In two bytes a number, in which gradients of whole pieces can be written beside
/// each other; and of matrices that have to be decoded anyway.
pub(super) fn take_gradients_as_one(x: &Var, layers: &[Layer<'_, '_>]) -> bool {
    let (all, size): (usize, usize) = (layers.iter().map(|it| it.w.dims().0).sum(), x.value().dtype().size());
    layers.len() > 1
        && x.requires_grad()
        && size == 2
        && layers.iter().all(|it| frozen::is_coded(it.w) && it.w.dims().0.is_multiple_of(8))
        && all * x.value().cols() * size <= LARGEST_WORKSPACE
        && x.value().rows() <= MOST_ROWS
}

/// The sum over layers of `dy W + mask(dh A)`, of so many columns, at its place. What has no mask rides along with the narrowest layer's product, if that is no
/// wider than the input.
fn input_gradient(
    stack: &Stack,
    live: &[(usize, &SavedLayer<'_>, &Tensor)],
    dh: Option<&Tensor>,
    (place, k): (&GradientPlace, usize),
) -> Result<Tensor> {
    let (like, dtype) = (live[0].2, live[0].2.dtype());
    let product = |left: Operand<'_>, right: Operand<'_>| -> Result<Tensor> {
        let mut dx = place.scratch_of(like, &[like.rows(), k]);
        multiply(1.0, left, right, 0.0, &mut dx)?;
        Ok(dx)
    };
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
    let width = riding.map_or(0, |_| stack.width);
    let dys: Vec<&Tensor> = live.iter().map(|it| it.2).collect();
    let beside = |last: &Tensor| width <= last.room() && dys.windows(2).all(|it| it[0].is_beside(it[1]));
    if let [_, .., last] = dys[..]
        && beside(last)
    {
        let ws: Vec<_> = live.iter().map(|it| it.1.w).collect();
        let mut all = frozen::decoded_below(&ws, last, width)?;
        if let Some(dh) = riding {
            let rows = all.rows() - width;
            stack.put_rows(&factors, Window::whole(&mut all).rows(rows, width), Some(Aside::new(last, dh)))?;
        }
        let dx = product(Operand::across(&dys, width), Operand::new(&all))?;
        return with_masked(dx, stack, &masked, dh);
    }
    // Where there is room nothing is copied; else the narrowest costs least.
    let roomy = live.iter().find(|(.., dy)| dy.room() >= stack.width).map(|it| it.0);
    let narrowest = live.iter().map(|(i, it, _)| (it.w.dims().0, *i)).min();
    let host = roomy.or(narrowest.filter(|it| it.0 <= k).map(|it| it.1)).filter(|_| riding.is_some());
    let mut dx: Option<Tensor> = None;
    let mut add = |left: Operand<'_>, right: &Tensor| -> Result<()> {
        match &mut dx {
            Some(sum) => multiply(1.0, left, Operand::new(right), 1.0, sum)?,
            None => dx = Some(product(left, Operand::new(right))?),
        }
        Ok(())
    };
    for (i, layer, dy) in live {
        match riding.filter(|_| host == Some(*i)).map(|dh| Beside::of(dy, dh)).transpose()? {
            Some(beside) => {
                let n = layer.w.dims().0;
                let mut both = frozen::decoded_beside(layer.w, dy, (stack.width, 0))?;
                stack.put_rows(&factors, Window::whole(&mut both).rows(n, stack.width), beside.aside())?;
                add(beside.operand(), &both)?;
            }
            None => add(Operand::new(dy), &frozen::decoded_beside(layer.w, dy, (0, 0))?)?,
        }
    }
    if let (Some(dh), None) = (riding, host) {
        add(Operand::new(dh), &stack.stacked(&factors, dtype)?)?;
    }
    with_masked(dx.expect("a layer with a gradient was there"), stack, &masked, dh)
}

/// The gradient of the input with `mask(dh A)` of the layers that have a mask.
fn with_masked(
    mut dx: Tensor,
    stack: &Stack,
    masked: &[(usize, &SavedLowRank)],
    dh: Option<&Tensor>,
) -> Result<Tensor> {
    for (i, low_rank) in masked {
        let Some((dh, a)) = dh.zip(low_rank.a.as_ref()) else { continue };
        let ((first, rank), a) = (stack.place(*i), a.to_dtype(dx.dtype()));
        let mut part = product(1.0, Operand::new(dh).columns(first, rank), Operand::new(&a), dx.dtype())?;
        dropout::apply_in_place(&mut part, low_rank.dropout)?;
        dx.add_assign(&part);
    }
    Ok(dx)
}
