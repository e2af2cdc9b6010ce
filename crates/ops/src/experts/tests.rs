use super::{Balance, Choice, Routes, from_experts, pieces, route, to_experts, weigh};
use crate::{
    add::scale,
    frozen_linear::test_support::{FLOATS, with_gradient},
};
use halfbyte_autograd::{Param, Result, Tape, Var};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{gradcheck, noise};

const TOKENS: usize = 7;
const EXPERTS: usize = 5;

fn choice(normalised: bool) -> Choice {
    Choice { each: 2, normalised }
}

/// Each expert multiplies by a number of its own.
fn mixture(
    tape: &Tape<'_>,
    [x, logits]: [&Var; 2],
    choice: Choice,
    balance: Option<&std::sync::Arc<Balance>>,
) -> Result<Var> {
    let (routes, weights) = route(tape, logits, choice, balance)?;
    let xs = to_experts(tape, x, &routes)?;
    let one = |((e, x), w): ((usize, &Var), &Var)| weigh(tape, &scale(tape, x, e as f32 + 0.5)?, w);
    let ys: Vec<Var> = routes.busy().zip(&xs).zip(&weights).map(one).collect::<Result<_>>()?;
    from_experts(tape, &ys, &routes, &[])
}

/// Probabilities of a row, and its experts from the likeliest on.
fn judged(row: &[f32]) -> (Vec<f64>, Vec<usize>) {
    let all: Vec<f64> = row.iter().map(|it| f64::from(*it).exp()).collect();
    let sum: f64 = all.iter().sum();
    let p: Vec<f64> = all.iter().map(|it| it / sum).collect();
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
    (p, order)
}

#[test]
fn every_token_gets_its_experts_by_their_weights() {
    for (dtype, normalised) in FLOATS.into_iter().flat_map(|it| [(it, false), (it, true)]) {
        let (x, logits) = (noise(&[TOKENS, 3], dtype, 1), noise(&[TOKENS, EXPERTS], dtype, 2));
        let vars = [&x, &logits].map(|it| Var::constant(it.clone()));
        let y = mixture(&Tape::disabled(), [&vars[0], &vars[1]], choice(normalised), None).unwrap().into_value();
        assert_eq!((y.shape(), y.dtype()), (x.shape(), dtype));
        let (x, logits, y) = (x.to_f32_vec(), logits.to_f32_vec(), y.to_f32_vec());
        for token in 0..TOKENS {
            let (p, order) = judged(&logits[token * EXPERTS..][..EXPERTS]);
            let sum = if normalised { p[order[0]] + p[order[1]] } else { 1.0 };
            let factor: f64 = order[..2].iter().map(|e| p[*e] / sum * (*e as f64 + 0.5)).sum();
            for c in 0..3 {
                let (got, wanted) = (f64::from(y[token * 3 + c]), factor * f64::from(x[token * 3 + c]));
                let allowed = if dtype == DType::F32 { 1e-6 } else { 0.03 };
                assert!((got - wanted).abs() <= allowed * (1.0 + wanted.abs()), "{got} {wanted}");
            }
        }
    }
}

#[test]
fn gradients_reach_the_tokens_and_through_the_weights_the_router() {
    for normalised in [false, true] {
        let params = [Param::new("x", noise(&[TOKENS, 3], DType::F32, 1)), Param::new("l", spread(&[TOKENS, EXPERTS]))];
        gradcheck(&params, |tape, p| mixture(tape, [&tape.param(&p[0]), &tape.param(&p[1])], choice(normalised), None));
    }
}

/// Logits of which none is near another of its row, so that a small step changes no choice.
fn spread(shape: &[usize]) -> Tensor {
    let values = (0..shape[0] * shape[1]).map(|i| ((i * 7 + i / shape[1] * 3) % shape[1]) as f32 * 0.4);
    Tensor::from_vec(shape, values.collect())
}

/// As transformers computes it over several layers.
fn balance_of(layers: &[Vec<f32>]) -> f64 {
    let (mut f, mut p, mut rows) = ([0.0; EXPERTS], [0.0; EXPERTS], 0.0);
    for row in layers.iter().flat_map(|it| it.chunks(EXPERTS)) {
        let (own, order) = judged(row);
        order[..2].iter().for_each(|e| f[*e] += 1.0);
        p.iter_mut().zip(own).for_each(|(p, own)| *p += own);
        rows += 1.0;
    }
    EXPERTS as f64 * f.iter().zip(p).map(|(f, p)| f / rows * p / rows).sum::<f64>()
}

#[test]
fn a_balance_is_that_of_all_layers_and_its_slope_goes_through_each_router() {
    let layers = [spread(&[TOKENS, EXPERTS]), noise(&[TOKENS, EXPERTS], DType::F32, 3)];
    let params: Vec<Param> = layers.iter().map(|it| Param::new("l", it.clone())).collect();
    let x = Var::constant(noise(&[TOKENS, 3], DType::F32, 1));
    let loss = |tape: &Tape<'_>, factor: f32| {
        let balance = Balance::new(EXPERTS);
        let mut sum = 0.0;
        let mut y = x.clone();
        for p in &params {
            y = mixture(tape, [&y, &tape.param(p)], choice(true), Some(&balance)).unwrap();
            sum += y.value().data::<f32>().iter().sum::<f32>();
        }
        let ones = Tensor::from_vec(y.value().shape(), vec![1e-6f32; y.value().len()]);
        let loss = with_gradient(tape, &y, &ones);
        let before = loss.value().data::<f32>()[0];
        let after = balance.join(tape, &loss, factor).unwrap();
        assert!(sum.is_finite());
        (f64::from(after.value().data::<f32>()[0] - before), after)
    };
    let wanted = balance_of(&layers.each_ref().map(Tensor::to_f32_vec));
    assert!((loss(&Tape::disabled(), 0.5).0 - 0.5 * wanted).abs() < 1e-5, "{wanted}");
    let tape = Tape::recording();
    let (_, after) = loss(&tape, 0.5);
    // As it is where losses are scaled, or one of several.
    let grads = tape.backward_scaled(after, 3.0).unwrap();
    for (layer, p) in params.iter().enumerate() {
        let found = grads.get(p).unwrap().to_f32_vec();
        for (i, got) in found.iter().enumerate() {
            let at = |delta: f32| {
                let mut moved = layers.each_ref().map(Tensor::to_f32_vec);
                moved[layer][i] += delta;
                balance_of(&moved)
            };
            let numeric = 1.5 * (at(1e-3) - at(-1e-3)) / 2e-3;
            assert!((f64::from(*got) - numeric).abs() < 1.5e-4, "{layer} {i}: {got} {numeric}");
        }
    }
}

#[test]
fn what_is_recomputed_is_counted_once() {
    let balance = Balance::new(EXPERTS);
    let logits = Param::new("l", spread(&[TOKENS, EXPERTS]));
    let x = Var::constant(noise(&[TOKENS, 3], DType::F32, 1));
    let run = |checkpointing: bool, balance: &std::sync::Arc<Balance>| {
        let tape = Tape::recording();
        let own = balance.clone();
        let p = logits.clone();
        let block = move |tape: &Tape<'_>, x: &Var| mixture(tape, [x, &tape.param(&p)], choice(true), Some(&own));
        let y = if checkpointing { tape.checkpoint(&x, block) } else { block(&tape, &x) }.unwrap();
        let loss = with_gradient(&tape, &y, &noise(&[TOKENS, 3], DType::F32, 4));
        let loss = balance.join(&tape, &loss, 0.7).unwrap();
        let value = loss.value().data::<f32>()[0];
        (value, tape.backward(loss).unwrap().get(&logits).unwrap().to_f32_vec())
    };
    assert_eq!(run(true, &balance), run(false, &Balance::new(EXPERTS)));
}

#[test]
fn experts_without_tokens_have_no_part_and_idle_weights_no_gradient() {
    let logits = Tensor::from_vec(&[2, 4], vec![0.0f32, 3.0, 0.0, 2.0, 0.0, 2.0, 0.0, 3.0]);
    let (routes, weights) = route(&Tape::disabled(), &Var::constant(logits), choice(true), None).unwrap();
    assert_eq!((routes.busy().collect::<Vec<_>>(), weights.len()), (vec![1, 3], 2));
    assert_eq!((routes.range(1), routes.range(3), routes.range(2)), (0..2, 2..4, 2..2));
    let (x, idle) = (Param::new("x", noise(&[2, 3], DType::F32, 1)), Param::new("idle", noise(&[4, 3], DType::F32, 2)));
    let tape = Tape::recording();
    let xs = to_experts(&tape, &tape.param(&x), &routes).unwrap();
    let y = from_experts(&tape, &xs, &routes, &[tape.param(&idle)]).unwrap();
    let loss = with_gradient(&tape, &y, &noise(&[2, 3], DType::F32, 3));
    let grads = tape.backward(loss).unwrap();
    assert_eq!(grads.get(&idle).unwrap().to_f32_vec(), [0.0; 12]);
    let doubled: Vec<f32> = noise(&[2, 3], DType::F32, 3).to_f32_vec().iter().map(|it| 2.0 * it).collect();
    assert_eq!(grads.get(&x).unwrap().to_f32_vec(), doubled);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let [x, l] =
                [Param::new("x", noise(&[61, 37], DType::F32, 1)), Param::new("l", noise(&[61, 9], DType::F32, 2))];
            let tape = Tape::recording();
            let choice = Choice { each: 3, normalised: true };
            let y = mixture(&tape, [&tape.param(&x), &tape.param(&l)], choice, None).unwrap();
            let (value, loss) = (y.value().to_f32_vec(), with_gradient(&tape, &y, &noise(&[61, 37], DType::F32, 3)));
            let grads = tape.backward(loss).unwrap();
            (value, grads.get(&x).unwrap().to_f32_vec(), grads.get(&l).unwrap().to_f32_vec())
        })
    };
    assert_eq!(run(1), run(5));
}

#[test]
fn a_dry_run_has_as_many_rows_as_a_real_one_and_the_most_at_one_expert() {
    for (tokens, experts, each) in [(7, 5, 2), (3, 1, 1), (4, 8, 8), (5, 3, 1)] {
        let routes = Routes::dry(tokens, experts, each);
        assert_eq!((routes.rows(), routes.range(0).len()), (tokens * each, tokens));
        assert!(routes.busy().all(|e| routes.range(e).len() <= tokens));
    }
}

#[test]
fn large_logits_are_probabilities_too() {
    let logits = Var::constant(Tensor::from_vec(&[1, 3], vec![200.0f32, 199.0, -200.0]));
    let (_, weights) = route(&Tape::disabled(), &logits, choice(false), None).unwrap();
    let weights: Vec<f32> = weights.iter().map(|it| it.value().to_f32_vec()[0]).collect();
    let first = 1.0 / (1.0 + (-1f32).exp());
    assert!(weights.iter().zip([first, 1.0 - first]).all(|(a, b)| (a - b).abs() < 1e-6), "{weights:?}");
}

#[test]
fn weights_that_are_none_are_refused() {
    let x = Var::constant(noise(&[3, 4], DType::F32, 1));
    let refused = |shape: &[usize], dtype| {
        let error = weigh(&Tape::disabled(), &x, &Var::constant(noise(shape, dtype, 2))).unwrap_err();
        error.to_string().contains("f32 weights of shape (3, 1)")
    };
    assert!(refused(&[2, 1], DType::F32) && refused(&[3, 1], DType::Bf16));
}

#[test]
fn more_experts_than_there_are_is_refused() {
    let logits = Var::constant(noise(&[2, 4], DType::F32, 1));
    let refused = |each| {
        let choice = Choice { each, normalised: false };
        route(&Tape::disabled(), &logits, choice, None).unwrap_err().to_string()
    };
    assert_eq!(refused(5), "route: 5 of 4 experts for each token");
    assert!(refused(0).contains("0 of 4"));
}

#[test]
fn pieces_are_those_of_experts_that_have_tokens() {
    let logits = Tensor::from_vec(&[2, 4], vec![0.0f32, 3.0, 0.0, 2.0, 0.0, 2.0, 0.0, 3.0]);
    let (routes, _) = route(&Tape::disabled(), &Var::constant(logits), choice(true), None).unwrap();
    let stack = Param::new("stack", noise(&[16, 3], DType::F32, 1));
    let tape = Tape::recording();
    let parts = pieces(&tape, &tape.param(&stack), &routes, 2).unwrap();
    let rows = |from: usize| stack.value().to_f32_vec()[from * 3..(from + 2) * 3].to_vec();
    // Of experts 1 and 3, two pieces of two rows each.
    let found: Vec<Vec<f32>> = parts.iter().map(|it| it.value().to_f32_vec()).collect();
    assert_eq!(found, [rows(4), rows(6), rows(12), rows(14)]);
    let dy = noise(&[2, 3], DType::F32, 2);
    let loss = with_gradient(&tape, &parts[1], &dy);
    let found = tape.backward(loss).unwrap().get(&stack).unwrap().to_f32_vec();
    let wanted: Vec<f32> =
        (0..48).map(|i| if (18..24).contains(&i) { dy.data::<f32>()[i - 18] } else { 0.0 }).collect();
    assert_eq!(found, wanted);
    assert!(pieces(&Tape::disabled(), &Var::constant(noise(&[6, 3], DType::F32, 1)), &routes, 1).is_err());
}
