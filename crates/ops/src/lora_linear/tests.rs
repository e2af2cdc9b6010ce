use super::{Layer, LowRank, last_lora_linears, lora_linear, lora_linears};
use crate::{
    Dropout, FrozenMatrix, dropout,
    frozen_linear::{frozen_linear, test_support::*},
    rms_norm::rms_norm,
};
use halfbyte_autograd::{Grads, Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, gradcheck, noise, noise_in};
use std::{cell::Cell, rc::Rc};

const SCALING: f32 = 1.75;

struct Case {
    x: Param,
    a: Param,
    b: Param,
    bias: Param,
    dy: Tensor,
    dropout: Dropout,
}

impl Case {
    fn new((m, k, n, r): (usize, usize, usize, usize), dtype: DType, p: f32) -> Case {
        Case {
            x: Param::new("x", noise(&[m, k], dtype, 1)),
            a: Param::new("a", noise_in(&[r, k], DType::F32, 2, -0.4, 0.4)),
            b: Param::new("b", noise_in(&[n, r], DType::F32, 3, -0.4, 0.4)),
            bias: Param::new("bias", noise(&[n], DType::F32, 4)),
            dy: noise(&[m, n], dtype, 5),
            dropout: Dropout { p, seed: 11, site: 12 },
        }
    }

    fn run(&self, w: &dyn FrozenMatrix) -> (Tensor, Grads) {
        let tape = Tape::recording();
        let (a, b) = (tape.param(&self.a), tape.param(&self.b));
        let lora = LowRank { a: &a, b: &b, scaling: SCALING, dropout: self.dropout };
        let y = lora_linear(&tape, &tape.param(&self.x), w, Some(&tape.param(&self.bias)), lora).unwrap();
        let loss = with_gradient(&tape, &y, &self.dy);
        (y.into_value(), tape.backward(loss).unwrap())
    }
}

/// `base + s * (x Aᵀ) Bᵀ` and its gradients, in f64 from operands as the products see them.
#[test]
fn forward_and_gradients_agree_with_f64_in_every_dtype() {
    for (dtype, p) in FLOATS.into_iter().flat_map(|d| [(d, 0.0), (d, 0.3)]) {
        for (m, k, n, r) in [(1, 5, 3, 1), (9, 66, 35, 4), (40, 130, 70, 8)] {
            let case = Case::new((m, k, n, r), dtype, p);
            let w = FourBit::random(n, k, 6);
            let (y, grads) = case.run(&w);
            assert_eq!(y.dtype(), dtype);

            let s = f64::from(SCALING);
            let [xs, ws, av, bv, ds] =
                [&case.x.value(), &w.dense(), &case.a.value(), &case.b.value(), &case.dy].map(|t| as_operand(t, dtype));
            let dropped = as_operand(&dropout::apply(&case.x.value(), case.dropout).unwrap(), dtype);
            let mask: Vec<f64> = rounded(
                &dropout::apply(&Tensor::from_vec(&[m, k], vec![1.0f32; m * k]), case.dropout).unwrap(),
                DType::F32,
            );
            let h = product(&dropped, &transposed(&av, r, k), (m, k, r));
            let update = product(&h, &transposed(&bv, n, r), (m, r, n));
            let bias = rounded(&case.bias.value(), DType::F32);
            let base = product(&xs, &transposed(&ws, n, k), (m, k, n));
            let expected: Vec<f64> = (0..m * n).map(|i| base[i] + bias[i % n] + s * update[i]).collect();
            // What is rounded on the way: the base's output, h (its error spreads over r products), the sum.
            let largest = |v: &[f64]| v.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            let spread = |v: &[f64], other: &[f64]| 1.0 + s * r as f64 * largest(v) * largest(other);
            let (unit, sum) = (tolerance(dtype, 0), tolerance(DType::F32, k.max(n).max(m)));
            let allowed = |spread: f64| (2.0 * unit + sum) * spread;
            assert_close("y", &y.to_f32_vec(), &expected, allowed(spread(&h, &bv)));

            let dh: Vec<f64> = product(&ds, &bv, (m, n, r)).iter().map(|v| s * v).collect();
            let from_update = product(&dh, &av, (m, r, k));
            let from_base = product(&ds, &ws, (m, n, k));
            let dx: Vec<f64> = (0..m * k).map(|i| from_base[i] + mask[i] * from_update[i]).collect();
            assert_close("dx", &grads.get(&case.x).unwrap().to_f32_vec(), &dx, allowed(2.0 * spread(&dh, &av)));
            let da = product(&transposed(&dh, m, r), &dropped, (r, m, k));
            assert_close("da", grads.get(&case.a).unwrap().data(), &da, allowed(m as f64 * largest(&dh) * 3.0));
            let db: Vec<f64> = product(&transposed(&ds, m, n), &h, (n, m, r)).iter().map(|v| s * v).collect();
            assert_close("db", grads.get(&case.b).unwrap().data(), &db, allowed(m as f64 * largest(&h) * 2.0));
            let dbias = product(&vec![1.0; m], &rounded(&case.dy, dtype), (1, m, n));
            assert_close("dbias", grads.get(&case.bias).unwrap().data(), &dbias, sum);
        }
    }
}

#[test]
fn gradients_agree_with_differences_with_and_without_dropout() {
    for p in [0.0, 0.4] {
        let w = Plain::leaked(noise(&[5, 7], DType::F32, 9));
        let case = Case::new((4, 7, 5, 3), DType::F32, p);
        gradcheck(&[case.x, case.a, case.b, case.bias], |tape, params| {
            let [x, a, b, bias] = [0, 1, 2, 3].map(|i: usize| tape.param(&params[i]));
            let lora = LowRank { a: &a, b: &b, scaling: SCALING, dropout: case.dropout };
            lora_linear(tape, &x, w, Some(&bias), lora)
        });
    }
}

#[test]
fn what_nobody_reads_of_a_checkpoint_is_left_out_and_changes_no_gradient() {
    for (dtype, p) in FLOATS.into_iter().flat_map(|d| [(d, 0.0), (d, 0.3)]) {
        let case: &'static Case = Box::leak(Box::new(Case::new((40, 32, 32, 4), dtype, p)));
        let w: &'static FourBit = Box::leak(Box::new(FourBit::random(32, 32, 6)));
        let onto =
            move |tape: &Tape<'_>, x: &Var| rms_norm(tape, x, &Var::constant(noise(&[32], dtype, 7)), 1e-5).unwrap();
        let run = |checkpointed: bool| {
            let (tape, runs) = (Tape::recording(), Rc::new(Cell::new(0)));
            let counted = runs.clone();
            let f = move |tape: &Tape<'_>, x: &Var| {
                let (a, b) = (tape.param(&case.a), tape.param(&case.b));
                let lora = LowRank { a: &a, b: &b, scaling: SCALING, dropout: case.dropout };
                let onto = onto(tape, x);
                let layer = Layer { w, bias: Some(&tape.param(&case.bias)), lora: Some(lora), onto: Some(&onto) };
                let [y] = last_lora_linears(tape, x, [layer])?;
                // A value that is read, and then one that is not: in its place is what it would be added to.
                let is_left_out = y.value().to_f32_vec() == onto.value().to_f32_vec();
                assert_eq!(is_left_out, counted.get() == 1);
                counted.set(counted.get() + 1);
                Ok(y)
            };
            let x = tape.param(&case.x);
            let y = if checkpointed { tape.checkpoint(&x, f) } else { f(&tape, &x) };
            let y = y.unwrap();
            let loss = with_gradient(&tape, &y, &case.dy);
            let grads = tape.backward(loss).unwrap();
            assert_eq!(runs.get(), if checkpointed { 2 } else { 1 });
            [&case.x, &case.a, &case.b, &case.bias].map(|it| grads.get(it).unwrap().to_f32_vec())
        };
        assert_eq!(run(true), run(false), "{dtype} with dropout {p}");
    }
}

/// Three layers over one input: one plain, two with updates of their own.
struct Group {
    x: Param,
    a: [Param; 2],
    b: [Param; 2],
    bias: Param,
    w: [FourBit; 3],
    dropout: [Dropout; 2],
}

impl Group {
    const DIMS: (usize, usize, [usize; 3], usize) = (30, 66, [20, 35, 7], 4);

    fn new(dtype: DType, p: [f32; 2]) -> Group {
        let (m, k, n, r) = Group::DIMS;
        let matrix = |name: &str, shape: &[usize], seed| Param::new(name, noise_in(shape, DType::F32, seed, -0.4, 0.4));
        Group {
            x: Param::new("x", noise(&[m, k], dtype, 1)),
            a: [matrix("a1", &[r, k], 2), matrix("a2", &[r, k], 3)],
            b: [matrix("b1", &[n[1], r], 4), matrix("b2", &[n[2], r], 5)],
            bias: matrix("bias", &[n[0]], 6),
            w: [7, 8, 9].map(|seed| FourBit::random(n[seed as usize - 7], k, seed)),
            dropout: p.map(|p| Dropout { p, seed: 11, site: (100.0 * p) as u64 }),
        }
    }

    /// The outputs and the gradients when each output `i` has a gradient if `used[i]`.
    fn run(&self, together: bool, used: [bool; 3]) -> (Vec<Vec<f32>>, Grads) {
        let tape = Tape::recording();
        let (x, bias) = (tape.param(&self.x), tape.param(&self.bias));
        let (a, b) = (self.a.each_ref().map(|it| tape.param(it)), self.b.each_ref().map(|it| tape.param(it)));
        let lora = |i: usize| LowRank { a: &a[i], b: &b[i], scaling: SCALING, dropout: self.dropout[i] };
        let layers = [
            Layer { w: &self.w[0], bias: Some(&bias), lora: None, onto: None },
            Layer { w: &self.w[1], bias: None, lora: Some(lora(0)), onto: None },
            Layer { w: &self.w[2], bias: None, lora: Some(lora(1)), onto: None },
        ];
        let ys = if together {
            lora_linears(&tape, &x, layers).unwrap()
        } else {
            let alone = |layer| lora_linears(&tape, &x, [layer]).unwrap().into_iter().next().unwrap();
            layers.map(alone)
        };
        let values = ys.iter().map(|it| it.value().to_f32_vec()).collect();
        let dys: Vec<Tensor> = ys.iter().map(|y| noise(y.value().shape(), y.value().dtype(), 5)).collect();
        let parents: Vec<&Var> = ys.iter().zip(used).filter(|it| it.1).map(|it| it.0).collect();
        let dys: Vec<Option<Tensor>> = dys.into_iter().zip(used).filter(|it| it.1).map(|it| Some(it.0)).collect();
        let loss = tape.record_many("loss", &parents, vec![Tensor::scalar(0.0)], move |_, _| Ok(dys)).remove(0);
        // A parameter that nothing depends on is an error of the whole, so each gets a gradient of zero.
        let all = [&x, &bias, &a[0], &a[1], &b[0], &b[1]];
        let zeros: Vec<_> = all.iter().map(|it| Some(Tensor::zeros(it.value().shape(), it.value().dtype()))).collect();
        let parents: Vec<&Var> = all.into_iter().chain([&loss]).collect();
        let more =
            move |mut dys: Vec<Option<Tensor>>, _: &[bool]| Ok(zeros.into_iter().chain([dys.remove(0)]).collect());
        let loss = tape.record_many("zeros", &parents, vec![Tensor::scalar(0.0)], more).remove(0);
        (values, tape.backward(loss).unwrap())
    }
}

/// Packing once and summing in one product must change nothing but the rounding of partial sums of dx.
#[test]
fn layers_of_one_input_give_the_same_together_as_alone() {
    for (dtype, p) in FLOATS.into_iter().flat_map(|d| [(d, [0.0; 2]), (d, [0.3, 0.0]), (d, [0.3, 0.5])]) {
        for used in [[true; 3], [true, false, true], [false, true, false], [true, false, false]] {
            let group = Group::new(dtype, p);
            let ((ys, grads), (expected, alone)) = (group.run(true, used), group.run(false, used));
            assert_eq!(ys, expected);
            for param in group.a.iter().chain(&group.b).chain([&group.bias]) {
                let (got, alone) = (grads.get(param).unwrap(), alone.get(param).unwrap());
                assert_eq!(got.to_f32_vec(), alone.to_f32_vec(), "{dtype} {p:?} {used:?} {}", param.name());
            }
            let alone: Vec<f64> = alone.get(&group.x).unwrap().to_f32_vec().into_iter().map(f64::from).collect();
            let largest = alone.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
            let allowed = 6.0 * tolerance(dtype, 0) * largest + tolerance(DType::F32, 100);
            assert_close("dx", &grads.get(&group.x).unwrap().to_f32_vec(), &alone, allowed);
        }
    }
}

#[test]
fn a_fresh_adapter_changes_no_bit_of_the_base_and_gives_a_no_gradient() {
    for dtype in FLOATS {
        let case = Case::new((6, 40, 20, 4), dtype, 0.2);
        case.b.set(Tensor::zeros(&[20, 4], DType::F32));
        let w = FourBit::random(20, 40, 6);
        let (y, grads) = case.run(&w);
        let tape = Tape::disabled();
        let base = frozen_linear(&tape, &Var::constant(case.x.value()), &w, Some(&tape.param(&case.bias))).unwrap();
        assert_eq!(y.to_f32_vec(), base.value().to_f32_vec());
        assert!(grads.get(&case.a).unwrap().data::<f32>().iter().all(|v| *v == 0.0));
        assert!(grads.get(&case.b).unwrap().data::<f32>().iter().any(|v| *v != 0.0));
    }
}

#[test]
fn a_constant_input_costs_no_product_with_the_base() {
    let case = Case::new((4, 7, 5, 3), DType::F32, 0.0);
    let w = Plain::new(noise(&[5, 7], DType::F32, 9));
    let tape = Tape::recording();
    let (a, b) = (tape.param(&case.a), tape.param(&case.b));
    let lora = LowRank { a: &a, b: &b, scaling: SCALING, dropout: case.dropout };
    let y = lora_linear(&tape, &Var::constant(case.x.value()), &w, None, lora).unwrap();
    let loss = with_gradient(&tape, &y, &case.dy);
    let grads = tape.backward(loss).unwrap();
    assert_eq!((grads.len(), w.reads()), (2, 1));

    let (_, full) = case.run(&w);
    assert_eq!(w.reads(), 3);
    for p in [&case.a, &case.b] {
        assert_eq!(grads.get(p).unwrap().data::<f32>(), full.get(p).unwrap().data::<f32>());
    }
}

#[test]
fn a_format_may_compute_its_own_forward() {
    let case = Case::new((4, 3, 2, 1), DType::F32, 0.0);
    case.b.set(Tensor::zeros(&[2, 1], DType::F32));
    case.bias.set(Tensor::from_vec(&[2], vec![0.5f32, -1.0]));
    let (y, _) = case.run(&Sevens(Plain::new(noise(&[2, 3], DType::F32, 2))));
    assert_eq!(y.data::<f32>(), [7.5, 6.0].repeat(4));
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for dtype in FLOATS {
        let run = || {
            let case = Case::new((130, 200, 90, 8), dtype, 0.3);
            let (y, grads) = case.run(&FourBit::random(90, 200, 6));
            let grads = [&case.x, &case.a, &case.b, &case.bias].map(|p| grads.get(p).unwrap().to_f32_vec());
            (y.to_f32_vec(), grads)
        };
        assert_eq!(on_threads(1, run), on_threads(3, run));
    }
}

#[test]
fn adapters_that_do_not_fit_are_named() {
    let w = Plain::new(noise(&[5, 7], DType::F32, 9));
    let tape = Tape::disabled();
    let x = Var::constant(noise(&[4, 7], DType::F32, 1));
    let run = |a: &[usize], b: &[usize], p: f32| {
        let (a, b) = (Var::constant(noise(a, DType::F32, 1)), Var::constant(noise(b, DType::F32, 1)));
        let lora = LowRank { a: &a, b: &b, scaling: 1.0, dropout: Dropout { p, seed: 0, site: 0 } };
        lora_linear(&tape, &x, &w, None, lora).unwrap_err().to_string()
    };
    assert_eq!(run(&[2, 6], &[5, 2], 0.0), "lora_linear: expected A of shape (rank, 7), got shape [2, 6]");
    assert_eq!(run(&[2, 7], &[5, 3], 0.0), "lora_linear: expected B of shape (5, 2), got shape [5, 3]");
    assert_eq!(run(&[2, 7], &[5, 2], 1.0), "lora_linear: a dropout probability lies in [0, 1), got 1");
}
