use super::{Head, Shaping, cpu, cross_entropy, logits, rows, softmax::losses};
use crate::{FrozenMatrix, IGNORE, Targets, frozen_linear::test_support::*};
use halfbyte_autograd::{Param, Result, Tape, Var};
use halfbyte_matmul::Source;
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, gradcheck, noise, noise_in, noise_vec};

fn targets(rows: usize, vocab: usize) -> Vec<u32> {
    (0..rows).map(|i| if i % 4 == 1 { IGNORE } else { ((i * i * 31 + 5) % vocab) as u32 }).collect()
}

/// Loss, dh and dW of the plain sum, naively.
fn oracle(h: &[f64], w: &[f64], targets: &[u32], (shaping, c): (Shaping, usize)) -> (f64, Vec<f64>, Vec<f64>) {
    let (rows, vocab) = (targets.len(), w.len() / c);
    let (factor, cap) = (f64::from(shaping.factor), shaping.cap.map(f64::from));
    let mut l = product(h, &transposed(w, vocab, c), (rows, c, vocab));
    l.iter_mut().for_each(|it| *it = cap.map_or(factor * *it, |cap| cap * (factor * *it / cap).tanh()));
    let (mut loss, mut dl) = (0.0, vec![0.0; rows * vocab]);
    for (i, t) in targets.iter().enumerate().filter(|(_, t)| **t != IGNORE) {
        let row = &l[i * vocab..][..vocab];
        let sum: f64 = row.iter().map(|v| v.exp()).sum();
        loss += sum.ln() - row[*t as usize];
        for (j, v) in row.iter().enumerate() {
            let slope = factor * cap.map_or(1.0, |cap| 1.0 - (v / cap).powi(2));
            dl[i * vocab + j] = slope * (v.exp() / sum - f64::from(u8::from(j == *t as usize)));
        }
    }
    (loss, product(&dl, w, (rows, vocab, c)), product(&transposed(&dl, rows, vocab), h, (vocab, rows, c)))
}

#[test]
fn loss_and_gradients_agree_with_f64_in_every_dtype() {
    let capped = Shaping { factor: 0.4, cap: Some(1.5) };
    let both = |it| [(it, Shaping::default()), (it, capped)];
    for (dtype, shaping) in FLOATS.into_iter().flat_map(both) {
        for (rows, c, vocab) in [(1, 3, 2), (7, 5, 33), (30, 40, 301)] {
            let h = Param::new("h", noise(&[rows, c], dtype, 1));
            let w = Param::new("w", noise_in(&[vocab, c], DType::F32, 2, -0.5, 0.5));
            let targets = targets(rows, vocab);
            let tape = Tape::recording();
            let loss = cross_entropy(
                &tape,
                &tape.param(&h),
                Head::trainable(&tape.param(&w)).shaped(shaping),
                &Targets::new(targets.clone()),
                5.0,
            )
            .unwrap();
            let (hs, ws) = (as_operand(&h.value(), dtype), as_operand(&w.value(), dtype));
            let (expected, dh, dw) = oracle(&hs, &ws, &targets, (shaping, c));
            assert_eq!((loss.value().dtype(), loss.value().shape()), (DType::F32, &[1][..]));
            assert_close("loss", loss.value().data(), &[expected / 5.0], tolerance(DType::F32, c + rows));

            let grads = tape.backward(loss).unwrap();
            // The products see dlogits (at most 1 in size) rounded to bf16 if the activations are.
            let allowed = 2.0 * tolerance(dtype, c.max(rows));
            let fifth = |v: Vec<f64>| v.iter().map(|v| v / 5.0).collect::<Vec<f64>>();
            let dh = fifth(dh);
            assert_eq!(grads.get(&h).unwrap().dtype(), dtype);
            assert_close("dh", &grads.get(&h).unwrap().to_f32_vec(), &dh, allowed);
            assert_close("dw", grads.get(&w).unwrap().data(), &fifth(dw), allowed);

            let frozen = Plain::new(w.value());
            let tape = Tape::recording();
            let loss = cross_entropy(
                &tape,
                &tape.param(&h),
                Head::frozen(&frozen).shaped(shaping),
                &Targets::new(targets.clone()),
                5.0,
            )
            .unwrap();
            let again = tape.backward(loss).unwrap();
            assert_eq!(again.len(), 1, "a frozen head has no gradient");
            // Weights are rounded before they are divided by their sum, which changes no relative error.
            assert_close("dh", &again.get(&h).unwrap().to_f32_vec(), &dh, allowed);
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    let h = Param::new("h", noise(&[5, 4], DType::F32, 1));
    let w = Param::new("w", noise(&[9, 4], DType::F32, 2));
    for shaping in [Shaping::default(), Shaping { factor: 0.7, cap: Some(2.0) }] {
        gradcheck(&[h.clone(), w.clone()], |tape, p| {
            let w = tape.param(&p[1]);
            let head = Head::trainable(&w).shaped(shaping);
            cross_entropy(tape, &tape.param(&p[0]), head, &Targets::new(vec![8, IGNORE, 0, 3, 3]), 4.0)
        });
    }
}

#[test]
fn a_bias_joins_the_logits_and_has_a_gradient() {
    let param = |name, shape: &[usize], seed| Param::new(name, noise(shape, DType::F32, seed));
    let (h, w, b) = (param("h", &[5, 4], 1), param("w", &[9, 4], 2), param("b", &[9], 3));
    let frozen = Plain::leaked(w.value());
    let targets = Targets::new(vec![8, IGNORE, 0, 3, 3]);
    gradcheck(&[h.clone(), w.clone(), b.clone()], |tape, p| {
        let [h, w, b] = [0, 1, 2].map(|it| tape.param(&p[it]));
        cross_entropy(tape, &h, Head::trainable(&w).biased(Some(&b)), &targets, 4.0)
    });
    gradcheck(&[h.clone(), b.clone()], |tape, p| {
        let b = tape.param(&p[1]);
        cross_entropy(tape, &tape.param(&p[0]), Head::frozen(frozen).biased(Some(&b)), &targets, 4.0)
    });
    // As a column of the matrix, beside a channel that is 1; in strips and in rows.
    let beside = |left: &Tensor, right: &dyn Fn(usize) -> f32| {
        let rows = left.to_f32_vec().chunks(4).enumerate().flat_map(|(i, row)| [row, &[right(i)]].concat()).collect();
        Tensor::from_vec::<f32>(&[left.rows(), 5], rows)
    };
    let bias = b.value().to_f32_vec();
    let (wide_h, wide_w) = (beside(&h.value(), &|_| 1.0), Var::constant(beside(&w.value(), &|i| bias[i])));
    let constant = [&w, &b].map(|it| Var::constant(it.value()));
    let loss = |tape: &Tape<'static>, h: &Var, head: Head<'_, 'static>| {
        f64::from(cross_entropy(tape, h, head, &targets, 4.0).unwrap().value().data::<f32>()[0])
    };
    let expected = loss(&Tape::disabled(), &Var::constant(wide_h.clone()), Head::trainable(&wide_w));
    for head in [Head::frozen(frozen), Head::trainable(&constant[0])] {
        let head = head.biased(Some(&constant[1]));
        let got = loss(&Tape::disabled(), &Var::constant(h.value()), head);
        assert!((got - expected).abs() < 1e-6 * expected, "{got}, expected {expected}");
        let got = logits(&h.value(), head).unwrap().to_f32_vec();
        let all = logits(&wide_h, Head::trainable(&wide_w)).unwrap().to_f32_vec();
        assert_close("logits", &got, &all.iter().map(|it| f64::from(*it)).collect::<Vec<_>>(), 1e-5);
    }
    let capped = Shaping { factor: 1.0, cap: Some(1.5) };
    let both = Head::frozen(frozen).biased(Some(&constant[1])).shaped(capped);
    let refused = cross_entropy(&Tape::disabled(), &Var::constant(h.value()), both, &targets, 1.0).unwrap_err();
    assert!(refused.to_string().contains("a head with both"), "{refused}");
}

#[test]
fn gradients_through_a_frozen_head_agree_with_differences() {
    let w = Plain::leaked(noise(&[9, 4], DType::F32, 2));
    gradcheck(&[Param::new("h", noise(&[5, 4], DType::F32, 1))], |tape, p| {
        cross_entropy(tape, &tape.param(&p[0]), Head::frozen(w), &Targets::new(vec![8, IGNORE, 0, 3, 3]), 4.0)
    });
}

#[test]
fn pieces_change_nothing_but_rounding_and_cover_everything() {
    let (rows, c, vocab) = (23, 6, 50);
    let (h, w) = (noise(&[rows, c], DType::F32, 1), Var::constant(noise(&[vocab, c], DType::F32, 2)));
    let targets = targets(rows, vocab);
    let counted: Vec<usize> = (0..rows).filter(|i| targets[*i] != IGNORE).collect();
    let run = |want_dw, at_once| {
        let head = Head::trainable(&w);
        let targets = &Targets::new(targets.clone());
        let job =
            cpu::Job { h: &h, head: &head, targets, denominator: 2.0, want_dh: true, want_dw, want_db: false, at_once };
        let found = job.run().unwrap();
        (
            found.loss.data::<f32>()[0],
            found.dh.unwrap().to_f32_vec(),
            found.dw.map(|it| it.to_f32_vec()).unwrap_or_default(),
        )
    };
    let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let all = cpu::AtOnce { whole_rows: 1000, strip: (1000, 1000) };
    let whole = run(true, all);
    let close = |(loss, dh, dw): (f32, Vec<f32>, Vec<f32>)| {
        assert_close("loss", &[loss], &[f64::from(whole.0)], 1e-6);
        assert_close("dh", &dh, &wide(&whole.1), 1e-5);
        assert_close("dw", &dw, &wide(&whole.2[..dw.len()]), 1e-5);
    };
    for whole_rows in [1, 4, 5, counted.len()] {
        close(run(true, cpu::AtOnce { whole_rows, ..all }));
    }
    for strip in [(1000, 1000), (1, 50), (4, 7), (5, 1), (counted.len(), 49)] {
        close(run(false, cpu::AtOnce { strip, ..all }));
    }
    for i in (0..rows).filter(|i| targets[*i] == IGNORE) {
        assert_eq!(whole.1[i * c..][..c], [0.0; 6], "row {i} does not count");
    }
}

/// Logits that grow from strip to strip shrink the sums each time; ones of minus infinity weigh nothing.
#[test]
fn strips_of_growing_and_of_infinite_logits_sum_like_the_whole() {
    let (vocab, c) = (12, 2);
    let column = |j: usize| if j < 4 { f32::NEG_INFINITY } else { 30.0 * j as f32 };
    let w: Vec<f32> = (0..vocab).flat_map(|j| [column(j), if j == 11 { 1.0 } else { 0.25 }]).collect();
    let (h, w) = (Tensor::from_vec(&[1, c], vec![1.0f32, 0.0]), Var::constant(Tensor::from_vec(&[vocab, c], w)));
    for width in [1, 2, 3, 4, 12] {
        let at_once = cpu::AtOnce { whole_rows: 1, strip: (1, width) };
        let (head, targets) = (Head::trainable(&w), &Targets::new(vec![10]));
        let job = cpu::Job {
            h: &h,
            head: &head,
            targets,
            denominator: 1.0,
            want_dh: true,
            want_dw: false,
            want_db: false,
            at_once,
        };
        let found = job.run().unwrap();
        let loss = found.loss.data::<f32>()[0];
        assert!((loss - 30.0).abs() < 1e-5, "{width}: {loss}");
        // Column 11 has all the weight, so dh is its row less that of the target.
        let second = found.dh.unwrap().to_f32_vec()[1];
        assert!((second - 0.75).abs() < 1e-6, "{width}: {second}");
    }
}

/// A target that is all but certain has a gradient far below bf16's steps near 1.
#[test]
fn a_confident_row_keeps_its_small_gradient_in_bf16() {
    let w = Plain::new(Tensor::from_vec(&[3, 2], vec![4.0f32, 0.0, -2.0, 1.0, -2.0, 1.0]));
    let h = Param::new("h", Tensor::from_vec(&[1, 2], vec![1.0f32, 0.0]).to_dtype(DType::Bf16));
    let tape = Tape::recording();
    let loss = cross_entropy(&tape, &tape.param(&h), Head::frozen(&w), &Targets::new(vec![0]), 1.0).unwrap();
    let got = tape.backward(loss).unwrap().get(&h).unwrap().to_f32_vec();
    let others = 2.0 * (-6f64).exp() / (1.0 + 2.0 * (-6f64).exp());
    assert_close("dh", &got, &[-6.0 * others, others], 2f64.powi(-7) * 6.0 * others);
}

#[test]
fn what_is_held_at_once_stays_small() {
    for vocab in [1, 4096, 49_152, 50_257, 128_256, 1 << 24] {
        let rows = cpu::AtOnce::new(vocab).whole_rows;
        assert!(rows >= 1 && (rows == 1 || rows * vocab * 4 <= 32 << 20), "{rows} rows of {vocab}");
    }
}

#[test]
fn a_frozen_head_is_read_for_gradients_only_if_somebody_wants_them() {
    let h = Param::new("h", noise(&[3, 4], DType::F32, 1));
    let run = |tape: Tape<'static>, constant: bool| {
        let w = Plain::leaked(noise(&[9, 4], DType::F32, 2));
        let h = if constant { Var::constant(h.value()) } else { tape.param(&h) };
        let loss = cross_entropy(&tape, &h, Head::frozen(w), &Targets::new(vec![1, 2, 3]), 3.0).unwrap();
        (w.reads(), loss.requires_grad())
    };
    assert_eq!(run(Tape::recording(), false), (2, true));
    assert_eq!(run(Tape::recording(), true), (1, false));
    assert_eq!(run(Tape::disabled(), false), (1, false));
}

#[test]
fn a_four_bit_head_equals_its_decoded_values() {
    let w = FourBit::random(70, 32, 3);
    let dense = Var::constant(w.dense());
    let h = noise(&[6, 32], DType::Bf16, 1);
    assert_eq!(
        logits(&h, Head::frozen(&w)).unwrap().data::<f32>(),
        logits(&h, Head::trainable(&dense)).unwrap().data::<f32>()
    );
    let loss = |head: Head<'_, '_>| {
        let loss = cross_entropy(
            &Tape::disabled(),
            &Var::constant(h.clone()),
            head,
            &Targets::new(vec![1, 2, 69, 0, 5, 5]),
            6.0,
        );
        loss.unwrap().value().data::<f32>()[0]
    };
    assert_eq!(loss(Head::frozen(&w)), loss(Head::trainable(&dense)));
}

#[test]
fn logits_agree_with_f64_and_are_f32() {
    for dtype in FLOATS {
        let (h, w) = (noise(&[3, 20], dtype, 1), noise(&[31, 20], DType::F32, 2));
        let expected = product(&as_operand(&h, dtype), &transposed(&as_operand(&w, dtype), 31, 20), (3, 20, 31));
        let got = logits(&h, Head::trainable(&Var::constant(w))).unwrap();
        assert_close("logits", got.data(), &expected, tolerance(DType::F32, 20));
    }
    let sevens = Sevens(Plain::new(noise(&[2, 3], DType::F32, 2)));
    assert_eq!(logits(&noise(&[1, 3], DType::F32, 1), Head::frozen(&sevens)).unwrap().data::<f32>(), [7.0, 7.0]);
}

#[test]
fn a_scaled_loss_scales_the_gradients() {
    for dtype in FLOATS {
        let h = Param::new("h", noise(&[3, 4], dtype, 1));
        let w = Param::new("w", noise(&[9, 4], DType::F32, 2));
        let run = |scale: f32| {
            let tape = Tape::recording();
            let head = tape.param(&w);
            let loss = cross_entropy(&tape, &tape.param(&h), Head::trainable(&head), &Targets::new(vec![1, 2, 3]), 3.0)
                .unwrap();
            let grads = tape.backward_scaled(loss, scale).unwrap();
            [&h, &w].map(|p| grads.get(p).unwrap().to_f32_vec())
        };
        let (once, half) = (run(1.0), run(0.5));
        for (once, half) in once.iter().zip(&half) {
            let halved: Vec<f32> = once.iter().map(|v| v * 0.5).collect();
            assert_eq!(half, &halved, "{dtype}: halving is exact");
        }
    }
}

/// 2^-26 is below the smallest subnormal f16, so a gradient kept in f16 would be lost before loss scaling.
#[test]
fn f16_gradients_survive_a_large_denominator_if_the_loss_is_scaled() {
    let h = Param::new("h", noise(&[3, 4], DType::F16, 1));
    let w = Var::constant(noise(&[9, 4], DType::F32, 2));
    let run = |denominator: f32, scale: f32| {
        let tape = Tape::recording();
        let loss =
            cross_entropy(&tape, &tape.param(&h), Head::trainable(&w), &Targets::new(vec![1, 2, 3]), denominator)
                .unwrap();
        tape.backward_scaled(loss, scale).unwrap().get(&h).unwrap().to_f32_vec()
    };
    assert_eq!(run(2f32.powi(26), 2f32.powi(26)), run(1.0, 1.0));
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let run = || {
        let h = Param::new("h", noise(&[60, 40], DType::Bf16, 1));
        let w = Param::new("w", noise(&[1500, 40], DType::F32, 2));
        let tape = Tape::recording();
        let head = tape.param(&w);
        let loss = cross_entropy(&tape, &tape.param(&h), Head::trainable(&head), &Targets::new(targets(60, 1500)), 7.0)
            .unwrap();
        let value = loss.value().data::<f32>()[0];
        let grads = tape.backward(loss).unwrap();
        (value, [&h, &w].map(|p| grads.get(p).unwrap().to_f32_vec()))
    };
    assert_eq!(on_threads(1, run), on_threads(3, run));
}

#[test]
fn extreme_logits_neither_overflow_nor_hide_a_nan() {
    let run = |row: &[f32], target: usize| {
        let mut gradient = row.to_vec();
        let loss = losses(&mut gradient, &[target], Some(Shaping::default()))[0];
        assert_eq!(losses(&mut row.to_vec(), &[target], None)[0].to_bits(), loss.to_bits());
        (loss, gradient)
    };
    let mut row = vec![-1e30f32; 40];
    row[3] = 1e30;
    let (loss, gradient) = run(&row, 3);
    assert_eq!((loss, gradient), (0.0, vec![0.0; 40]));
    row[3] = f32::NEG_INFINITY;
    row[20] = 5.0;
    assert_eq!(run(&row, 20).0, 0.0);
    assert_eq!(run(&row, 3).0, f64::INFINITY);
    for bad in [f32::NAN, f32::INFINITY] {
        for at in [0, 17, 39] {
            row[at] = bad;
            assert!(run(&row, 5).0.is_nan());
            row[at] = 0.0;
        }
    }
}

#[test]
fn a_wide_row_loses_no_precision() {
    let n = 50_257;
    let row: Vec<f32> = noise_vec(n, 3).iter().map(|v| 4.0 * v).collect();
    let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
    let expected: Vec<f64> =
        row.iter().enumerate().map(|(i, v)| f64::from(*v).exp() / sum - f64::from(u8::from(i == 77))).collect();
    let mut gradient = row.clone();
    let loss = losses(&mut gradient, &[77], Some(Shaping::default()))[0];
    assert!((loss - (sum.ln() - f64::from(row[77]))).abs() < 1e-6, "{loss}");
    for (i, (g, e)) in gradient.iter().zip(&expected).enumerate() {
        assert!((f64::from(*g) - e).abs() <= 1e-6 * e.abs(), "{i}: {g}, expected {e}");
    }
}

#[test]
fn targets_that_cannot_be_are_refused() {
    let tape = Tape::disabled();
    let (h, w) = (Var::constant(noise(&[2, 4], DType::F32, 1)), Var::constant(noise(&[9, 4], DType::F32, 2)));
    let run = |targets: &[u32], denominator: f32| {
        cross_entropy(&tape, &h, Head::trainable(&w), &Targets::new(targets.to_vec()), denominator)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(run(&[1, 9], 1.0), "cross_entropy: target 9 of row 1 is outside the vocabulary of 9");
    assert!(run(&[IGNORE; 2], 1.0).starts_with("cross_entropy: no target counts"));
    assert_eq!(run(&[1], 1.0), "cross_entropy: expected 2 targets, one for each row, got shape [1]");
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(run(&[1, 2], bad).contains("the denominator must be positive and finite"));
    }
    let narrow = Var::constant(Tensor::from_vec(&[2, 3], vec![0.0f32; 6]));
    assert!(cross_entropy(&tape, &narrow, Head::trainable(&w), &Targets::new(vec![1, 2]), 1.0).is_err());
}

/// A weight that computes its products itself, as LLM.int8 does: other ones than those with its values, twice as large.
#[derive(Debug)]
struct Own(Plain);

impl FrozenMatrix for Own {
    fn dims(&self) -> (usize, usize) {
        self.0.dims()
    }
    fn source<'a>(&'a self) -> Box<dyn Source + 'a> {
        self.0.source()
    }
    fn forward(&self, x: &Tensor) -> Option<Result<Tensor>> {
        let (rows, (n, k)) = (x.rows(), self.dims());
        let values = |it: &Tensor| it.to_f32_vec().iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
        let y = product(&values(x), &transposed(&values(&self.0.weight), n, k), (rows, k, n));
        Some(Ok(Tensor::from_vec(&[rows, n], y.iter().map(|v| 2.0 * *v as f32).collect())))
    }
    fn bytes(&self) -> usize {
        self.0.bytes()
    }
    fn format(&self) -> String {
        self.0.format()
    }
}

#[test]
fn a_head_that_multiplies_in_its_own_way_is_shaped_and_biased_as_others_are() {
    let (rows, c, vocab) = (7, 5, 33);
    let h = Param::new("h", noise(&[rows, c], DType::F32, 1));
    let weight = noise(&[vocab, c], DType::F32, 2);
    let twice = weight.data::<f32>().iter().map(|v| 2.0 * v).collect();
    let (plain, own) = (Plain::new(Tensor::from_vec(&[vocab, c], twice)), Own(Plain::new(weight)));
    // Gradients go through its values.
    let half = |all: &[f32]| all.iter().map(|v| f64::from(*v) / 2.0).collect::<Vec<_>>();
    let bias = Var::constant(noise(&[vocab], DType::F32, 3));
    let found = |head: Head<'_, '_>| {
        let tape = Tape::recording();
        let loss = cross_entropy(&tape, &tape.param(&h), head, &Targets::new(targets(rows, vocab)), 5.0).unwrap();
        let value = f64::from(loss.value().data::<f32>()[0]);
        (value, tape.backward(loss).unwrap().get(&h).unwrap().to_f32_vec())
    };
    for (factor, cap) in [(0.4, None), (0.4, Some(1.5)), (1.0, Some(1.5))] {
        let shaping = Shaping { factor, cap };
        let (expected, dh) = found(Head::frozen(&plain).shaped(shaping));
        let (loss, own_dh) = found(Head::frozen(&own).shaped(shaping));
        assert_close("loss", &[loss as f32], &[expected], 1e-5);
        assert_close("dh", &own_dh, &half(&dh), 1e-5);
    }
    let (expected, dh) = found(Head::frozen(&plain).biased(Some(&bias)));
    let (loss, own_dh) = found(Head::frozen(&own).biased(Some(&bias)));
    assert_close("loss", &[loss as f32], &[expected], 1e-5);
    assert_close("dh", &own_dh, &half(&dh), 1e-5);
}

#[test]
fn each_gradient_is_the_same_whoever_else_wants_one() {
    // More entries than a thread adds up at once.
    let (rows, c, vocab) = (5, 3, 2 * rows::AT_ONCE + 7);
    let h = noise(&[rows, c], DType::F32, 1);
    let (w, b) = (noise(&[vocab, c], DType::F32, 2), noise(&[vocab], DType::F32, 3));
    let targets = targets(rows, vocab);
    // A bias is the weight of a channel that is always 1.
    let joined = |rows: usize, all: &[f32], last: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let row = |at: usize| all[at * c..][..c].iter().map(|v| f64::from(*v)).chain([last(at)]).collect::<Vec<_>>();
        (0..rows).flat_map(row).collect()
    };
    let (hs, ws) = (joined(rows, h.data(), &|_| 1.0), joined(vocab, w.data(), &|at| f64::from(b.data::<f32>()[at])));
    let (_, dh, dw) = oracle(&hs, &ws, &targets, (Shaping::default(), c + 1));
    let third = |all: &[f64], is_wanted: &dyn Fn(usize) -> bool| -> Vec<f64> {
        all.iter().enumerate().filter(|it| is_wanted(it.0 % (c + 1))).map(|it| it.1 / 3.0).collect()
    };
    let expected = [third(&dh, &|it| it < c), third(&dw, &|it| it < c), third(&dw, &|it| it == c)];
    let params = [Param::new("h", h), Param::new("w", w), Param::new("b", b)];
    for wanted in 1..8 {
        let tape = Tape::recording();
        let var =
            |at: usize| if wanted >> at & 1 == 1 { tape.param(&params[at]) } else { Var::constant(params[at].value()) };
        let (h, w, b) = (var(0), var(1), var(2));
        let head = Head::trainable(&w).biased(Some(&b));
        let loss = cross_entropy(&tape, &h, head, &Targets::new(targets.clone()), 3.0).unwrap();
        let grads = tape.backward(loss).unwrap();
        for (at, expected) in expected.iter().enumerate().filter(|it| wanted >> it.0 & 1 == 1) {
            assert_close(&format!("{wanted:b}, {at}"), &grads.get(&params[at]).unwrap().to_f32_vec(), expected, 1e-5);
        }
    }
}

#[test]
fn logits_that_cannot_be_are_refused() {
    let (h, w) = (Var::constant(noise(&[2, 3], DType::F32, 1)), Var::constant(noise(&[4, 3], DType::F32, 2)));
    let loss = |factor: f32, cap: Option<f32>| {
        let head = Head::trainable(&w).shaped(Shaping { factor, cap });
        cross_entropy(&Tape::disabled(), &h, head, &Targets::new(vec![1, 2]), 2.0).map(drop)
    };
    assert!(loss(0.5, None).is_ok() && loss(0.5, Some(30.0)).is_ok());
    for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        for (factor, cap) in [(wrong, None), (1.0, Some(wrong)), (wrong, Some(1.0))] {
            let error = loss(factor, cap).unwrap_err().to_string();
            assert!(error.contains("must be positive and finite"), "{error}");
        }
    }
}
