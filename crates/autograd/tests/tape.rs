//! What the tape promises: order, sums, checkpoints, and an error instead of a silent stop.
use halfbyte_autograd::{Error, Param, Result, Tape, Var};
use halfbyte_tensor::Tensor;
use std::cell::Cell;

fn vector(values: &[f32]) -> Tensor {
    Tensor::from_vec(&[values.len()], values.to_vec())
}

fn map(x: &Tensor, f: impl Fn(f32) -> f32) -> Tensor {
    Tensor::from_vec(x.shape(), x.data::<f32>().iter().map(|v| f(*v)).collect())
}

/// y = x * w, elementwise.
fn mul(tape: &Tape<'_>, x: &Var, w: &Var) -> Var {
    let zip = |a: &Tensor, b: &Tensor| {
        Tensor::from_vec(a.shape(), a.data::<f32>().iter().zip(b.data::<f32>()).map(|(a, b)| a * b).collect())
    };
    let (xs, ws) = (x.value().clone(), w.value().clone());
    tape.record("mul", [x, w], zip(&xs, &ws), move |dy, [dx, dw]| {
        Ok([dx.then(|| zip(&dy, &ws)), dw.then(|| zip(&dy, &xs))])
    })
}

fn sum(tape: &Tape<'_>, x: &Var) -> Var {
    let shape = x.value().clone();
    let y = Tensor::scalar(x.value().data::<f32>().iter().sum());
    tape.record("sum", [x], y, move |dy, _| Ok([Some(map(&shape, |_| dy.data::<f32>()[0]))]))
}

#[test]
fn a_parameter_used_twice_gets_the_sum() {
    let p = Param::new("p", vector(&[2.0, 3.0]));
    let tape = Tape::recording();
    let (a, b) = (tape.param(&p), tape.param(&p));
    let loss = sum(&tape, &mul(&tape, &a, &b));
    let grads = tape.backward(loss).unwrap();
    assert_eq!(grads.get(&p).unwrap().data::<f32>(), [4.0, 6.0]);
}

fn three_layers<'m>(tape: &Tape<'m>, params: &'m [Param], x: &Var, checkpointed: bool) -> Result<Var> {
    let mut h = x.clone();
    for p in params {
        let layer = move |tape: &Tape<'m>, x: &Var| {
            let w = tape.param(p);
            Ok(mul(tape, &mul(tape, x, &w), &w))
        };
        h = if checkpointed { tape.checkpoint(&h, layer)? } else { layer(tape, &h)? };
    }
    Ok(sum(tape, &h))
}

#[test]
fn checkpoints_change_no_bit_and_reach_the_first_layers_parameters() {
    let params: Vec<Param> =
        (1..4).map(|i| Param::new(format!("p{i}"), vector(&[0.3 * i as f32, 1.7, -0.2]))).collect();
    let run = |checkpointed| {
        let tape = Tape::recording();
        let x = Var::constant(vector(&[1.0, 2.0, 3.0]));
        let loss = three_layers(&tape, &params, &x, checkpointed).unwrap();
        (tape.names().len(), tape.backward(loss).unwrap())
    };
    let ((n_plain, plain), (n_checkpointed, checkpointed)) = (run(false), run(true));
    assert!(n_plain > n_checkpointed && n_checkpointed == 4);
    for p in &params {
        assert_eq!(plain.get(p).unwrap().data::<f32>(), checkpointed.get(p).unwrap().data::<f32>(), "{}", p.name());
    }
}

#[test]
fn a_frozen_graph_records_nothing_and_cannot_be_trained() {
    let tape = Tape::recording();
    let x = Var::constant(vector(&[1.0]));
    let y = sum(&tape, &mul(&tape, &x, &x));
    assert!(!y.requires_grad() && tape.names().is_empty());
    assert_eq!(tape.backward(y).unwrap_err(), Error::NothingTrains);
}

#[test]
fn a_parameter_that_the_loss_does_not_see_is_named() {
    let (p, q) = (Param::new("seen", vector(&[1.0])), Param::new("unseen", vector(&[1.0])));
    let tape = Tape::recording();
    let used = tape.param(&p);
    let _dangling = mul(&tape, &tape.param(&q), &used);
    let loss = sum(&tape, &used);
    assert_eq!(tape.backward(loss).unwrap_err(), Error::MissingGradient { names: vec!["unseen".into()] });
}

#[test]
fn accumulated_passes_equal_one_pass_of_twice_the_loss() {
    let p = Param::new("p", vector(&[2.0, 3.0]));
    let pass = |scale| {
        let tape = Tape::recording();
        let loss = sum(&tape, &mul(&tape, &tape.param(&p), &Var::constant(vector(&[5.0, 7.0]))));
        tape.backward_scaled(loss, scale).unwrap()
    };
    let mut twice = pass(1.0);
    twice.merge(pass(1.0));
    assert_eq!(twice.get(&p).unwrap().data::<f32>(), pass(2.0).get(&p).unwrap().data::<f32>());
}

#[test]
fn an_update_is_seen_by_every_handle() {
    let p = Param::new("p", vector(&[1.0]));
    let held = p.value();
    p.clone().update(|t| t.data_mut::<f32>()[0] = 9.0);
    assert_eq!((p.value().data::<f32>()[0], held.data::<f32>()[0]), (9.0, 1.0));
}

/// y1 = 2 x, y2 = 3 x in one op, whose backward counts the gradients it got.
#[test]
fn an_op_with_two_outputs_runs_backward_once_with_the_gradients_there_are() {
    let p = Param::new("p", vector(&[1.0, 2.0]));
    for (used, slope) in [([true, true], 5.0), ([true, false], 2.0), ([false, true], 3.0)] {
        let tape = Tape::recording();
        let x = tape.param(&p);
        let ys = vec![map(x.value(), |v| 2.0 * v), map(x.value(), |v| 3.0 * v)];
        let ys = tape.record_many("twice", &[&x], ys, move |dys, needs| {
            assert_eq!(dys.iter().map(Option::is_some).collect::<Vec<_>>(), used);
            assert_eq!(needs, [true]);
            let mut dx = vector(&[0.0, 0.0]);
            for (dy, slope) in dys.iter().zip([2.0, 3.0]) {
                dy.iter().for_each(|dy| dx.add_assign(&map(dy, |v| slope * v)));
            }
            Ok(vec![Some(dx)])
        });
        let losses: Vec<Var> = ys.iter().zip(used).filter(|it| it.1).map(|it| sum(&tape, it.0)).collect();
        let loss = losses.iter().skip(1).fold(losses[0].clone(), |total, one| {
            let value = vector(&[total.value().data::<f32>()[0] + one.value().data::<f32>()[0]]);
            tape.record("plus", [&total, one], value, |dy, _| Ok([Some(dy.clone()), Some(dy)]))
        });
        assert_eq!(tape.backward(loss).unwrap().get(&p).unwrap().data::<f32>(), [slope; 2], "{used:?}");
    }
}

/// y = 2 x, whose backward adds to what is there: from the op after it, or in a checkpoint, or nothing at all.
#[test]
fn an_op_that_adds_gets_what_later_ops_gave_and_answers_with_the_sum() {
    fn twice(tape: &Tape<'_>, x: &Var, expected: Option<f32>) -> Var {
        tape.record_onto("twice", [x], map(x.value(), |v| 2.0 * v), move |dy, [needed], there| {
            assert_eq!((needed, there.as_ref().map(|it| it.data::<f32>()[0])), (true, expected));
            let dx = map(&dy, |v| 2.0 * v);
            Ok([Some(there.map_or(dx.clone(), |mut it| {
                it.add_assign(&dx);
                it
            }))])
        })
    }
    let p = Param::new("p", vector(&[1.0, 2.0]));
    let residual = |tape: &Tape<'_>, x: &Var| mul(tape, &twice(tape, x, Some(2.0)), x);
    let gradient = |f: &dyn Fn(&Tape<'static>, &Var) -> Var| {
        let tape = Tape::recording();
        let x = tape.param(&p);
        let loss = sum(&tape, &f(&tape, &x));
        drop(x);
        tape.backward(loss).unwrap().get(&p).unwrap().data::<f32>()[0]
    };
    // 2 x² has the gradient 4 x.
    assert_eq!(gradient(&|tape, x| residual(tape, x)), 4.0);
    assert_eq!(gradient(&|tape, x| tape.checkpoint(x, move |tape, x| Ok(residual(tape, x))).unwrap()), 4.0);
    assert_eq!(gradient(&|tape, x| twice(tape, x, None)), 2.0);
}

#[test]
fn a_recipe_is_what_is_kept_and_a_plain_value_is_kept_as_it_is() {
    let value = vector(&[1.0, 2.0]);
    let kept_on = |tape: Tape<'_>| tape.recomputed(Var::constant(value.clone()), || Ok(vector(&[1.0, 2.0]))).keep();
    let kept = kept_on(Tape::recording());
    assert!(!value.is_shared(), "nobody holds the value itself");
    assert_eq!(kept.value().unwrap().data::<f32>(), value.data::<f32>());
    assert_eq!(Var::constant(value.clone()).keep().value().unwrap().data::<f32>(), value.data::<f32>());
    let kept = kept_on(Tape::recording().keeping_cheap(true));
    assert!(value.is_shared(), "a tape that keeps cheap values has no use for recipes");
    drop(kept);
}

/// Every row of `x` times the parameter, and `x` added.
fn scaled_rows<'m>(tape: &Tape<'m>, x: &Var, param: &'m Param) -> Result<Var> {
    let w = tape.param(param);
    let (xs, ws) = (x.value().clone(), w.value().clone());
    let by = |of: &Tensor, factor: &dyn Fn(usize) -> f32| {
        let cols = of.cols();
        let values = of.data::<f32>().iter().enumerate().map(|(i, v)| v * factor(i % cols)).collect();
        Tensor::from_vec(of.shape(), values)
    };
    let y = by(&xs, &|i| 1.0 + ws.data::<f32>()[i]);
    Ok(tape.record("scaled_rows", [x, &w], y, move |dy, [dx, dw]| {
        let mut sums = vec![0.0; ws.len()];
        for (i, (d, x)) in dy.data::<f32>().iter().zip(xs.data::<f32>()).enumerate() {
            sums[i % ws.len()] += d * x;
        }
        let of_w = Tensor::from_vec(ws.shape(), sums);
        Ok([dx.then(|| by(&dy, &|i| 1.0 + ws.data::<f32>()[i])), dw.then_some(of_w)])
    }))
}

/// Both parameters' halves, the second in strips of so many rows if it says so, within a checkpoint or not.
fn two_halves<'m>(
    tape: &Tape<'m>,
    (params, computed): (&'m [Param; 2], &'m Cell<usize>),
    x: &Var,
    (height, within): (Option<usize>, bool),
) -> Result<Var> {
    let half = move |tape: &Tape<'m>, x: &Var| match height {
        None => scaled_rows(tape, x, &params[1]),
        Some(height) => tape.checkpoint_in_strips(x, height, move |tape, x, i| {
            computed.set(computed.get() + 1);
            assert_eq!(x.value().rows(), height.min(5 - i * height));
            scaled_rows(tape, x, &params[1])
        }),
    };
    let both = move |tape: &Tape<'m>, x: &Var| half(tape, &scaled_rows(tape, x, &params[0])?);
    if within { tape.checkpoint(x, both) } else { both(tape, x) }
}

#[test]
fn strips_of_rows_give_the_gradients_of_the_whole_and_their_value_is_left_out_when_it_is_not_read() {
    let params = ["p", "q"].map(|it| Param::new(it, vector(&[0.5, -2.0, 1.0])));
    let computed = Cell::new(0);
    let run = |height: Option<usize>, within: bool| {
        let x = Var::constant(Tensor::from_vec(&[5, 3], (0..15).map(|i| i as f32 - 6.0).collect()));
        let tape = Tape::recording();
        let y = two_halves(&tape, (&params, &computed), &x, (height, within)).unwrap();
        let (value, loss) = (y.value().data::<f32>().to_vec(), sum(&tape, &y));
        let grads = tape.backward(loss).unwrap();
        let of = |it: &Param| grads.get(it).unwrap().data::<f32>().to_vec();
        (value, of(&params[0]), of(&params[1]))
    };
    // Small numbers: sums are exact in any order.
    let whole = run(None, false);
    for (height, within, calls) in [(2, false, 6), (2, true, 6), (5, true, 2)] {
        computed.set(0);
        assert_eq!(run(Some(height), within), whole, "strips of {height}");
        assert_eq!(computed.get(), calls, "forward once, and once backward");
    }
}
