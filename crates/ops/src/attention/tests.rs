use super::{AttentionShape, attend_cached, attention, attention_with_sinks};
use crate::{Layout, frozen_linear::test_support::*, kv_pages::tests::paged};
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{Gradcheck, assert_close, noise};

fn shape((heads, kv_heads): (usize, usize), head_dim: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape { heads, kv_heads, head_dim, scale, window: None, cap: None }
}

fn layout(lengths: &[usize]) -> Layout {
    Layout::new(lengths).unwrap()
}

fn params(s: &AttentionShape, rows: usize, dtype: DType) -> [Param; 3] {
    let of = |name: &str, heads, seed| Param::new(name, noise(&[rows, heads * s.head_dim], dtype, seed));
    [of("q", s.heads, 1), of("k", s.kv_heads, 2), of("v", s.kv_heads, 3)]
}

/// `y`, `dq`, `dk` and `dv` by way of the whole matrix of probabilities, in f64; and for each element the sum of the
/// magnitudes of the terms that have a probability or a slope as a factor.
fn oracle(s: &AttentionShape, [q, k, v, dy]: [&[f64]; 4], lengths: &[usize]) -> [[Vec<f64>; 4]; 2] {
    let (d, scale) = (s.head_dim, f64::from(s.scale));
    let zeros = || [vec![0.0; q.len()], vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; k.len()]];
    let (mut out, mut sizes) = (zeros(), zeros());
    let layout = layout(lengths);
    let rows = |h: usize| layout.segments().iter().flat_map(move |it| (0..it.count).map(move |i| (it.first, h, i)));
    for (first_row, h, i) in (0..s.heads).flat_map(rows) {
        let at = ((first_row + i) * s.heads + h) * d;
        let key = |j: usize| ((first_row + j) * s.kv_heads + h / (s.heads / s.kv_heads)) * d;
        let first = s.window.map_or(0, |w| (i + 1).saturating_sub(w));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cap = s.cap.map(f64::from);
        let scores = (first..=i).map(|j| scale * dot(&q[at..at + d], &k[key(j)..][..d]));
        let scores: Vec<f64> = scores.map(|it| cap.map_or(it, |cap| cap * (it / cap).tanh())).collect();
        let bend = |n: usize| cap.map_or(1.0, |cap| 1.0 - (scores[n] / cap).powi(2));
        let e: Vec<f64> = scores.iter().map(|it| it.exp()).collect();
        let total: f64 = e.iter().sum();
        let dp: Vec<f64> = (first..=i).map(|j| dot(&dy[at..at + d], &v[key(j)..][..d])).collect();
        let along: f64 = e.iter().zip(&dp).map(|(e, dp)| e / total * dp).sum();
        for (n, j) in (first..=i).enumerate() {
            let p = e[n] / total;
            let slope = scale * p * (dp[n] - along) * bend(n);
            for c in 0..d {
                let (query, key) = (at + c, key(j) + c);
                let terms =
                    [(query, p * v[key]), (query, slope * k[key]), (key, slope * q[query]), (key, p * dy[query])];
                for (i, (place, term)) in terms.into_iter().enumerate() {
                    out[i][place] += term;
                    sizes[i][place] += term.abs();
                }
            }
        }
    }
    [out, sizes]
}

fn run(s: &AttentionShape, dtype: DType, lengths: &[usize]) -> [Vec<f32>; 4] {
    let layout = layout(lengths);
    let rows = layout.tokens();
    let (p, dy) = (params(s, rows, dtype), noise(&[rows, s.heads * s.head_dim], dtype, 4));
    let tape = Tape::recording();
    let [q, k, v] = [0, 1, 2].map(|i| tape.param(&p[i]));
    let y = attention(&tape, [&q, &k, &v], *s, &layout).unwrap();
    assert_eq!((y.value().shape(), y.value().dtype()), (dy.shape(), dtype));
    let loss = with_gradient(&tape, &y, &dy);
    let grads = tape.backward(loss).unwrap();
    let [dq, dk, dv] = p.map(|it| grads.get(&it).unwrap().to_f32_vec());
    [y.value().to_f32_vec(), dq, dk, dv]
}

/// In f32, scores are off by `d` roundings of 4 each, scaled, and probabilities relatively by as much; gradients see that
/// times `|dy v|`, about `4 sqrt(d)` at most. A 16-bit `y` shifts `D = rowsum(dy y)` by `2 sqrt(d)` roundings, which a
/// scale of `1 / sqrt(d)` and keys or queries below 2 turn into 4 in dq, and a few more in the sums over queries of dk.
/// In bf16 each probability and each slope is rounded by half a unit before it is multiplied.
fn check(s: &AttentionShape, dtype: DType, lengths: &[usize]) {
    let one = match dtype {
        DType::Bf16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 0.0,
    };
    let d = s.head_dim as f64;
    let exact = 2f64.powi(-24) * (4.0 * d * f64::from(s.scale) + 8.0) * (1.0 + d.sqrt()) * 4.0;
    let got = run(s, dtype, lengths);
    let rows = lengths.iter().sum();
    let inputs = params(s, rows, dtype).map(|it| rounded(&it.value(), dtype));
    let dy = rounded(&noise(&[rows, s.heads * s.head_dim], dtype, 4), dtype);
    let [expected, sizes] = oracle(s, [&inputs[0], &inputs[1], &inputs[2], &dy], lengths);
    let shift = one * 4.0 * f64::from(s.scale) * d.sqrt();
    let tolerances = [one + exact, one + shift + exact, one + 2.0 * shift + exact, one + exact];
    for (i, name) in ["y", "dq", "dk", "dv"].iter().enumerate() {
        let factors = if dtype == DType::Bf16 { one / 2.0 } else { 0.0 };
        for (at, ((got, expected), size)) in got[i].iter().zip(&expected[i]).zip(&sizes[i]).enumerate() {
            let what = format!("{name} of {s:?} in {dtype}, element {at}");
            assert_close(&what, &[*got], &[*expected], tolerances[i] + factors * size);
        }
    }
}

#[test]
fn values_and_gradients_agree_with_f64_over_ragged_shapes() {
    let cases = [
        (shape((1, 1), 1), vec![1]),
        (shape((2, 1), 4), vec![3, 3]),
        (shape((3, 3), 8), vec![64]),
        (shape((3, 1), 16), vec![65]),
        (shape((4, 2), 5), vec![70, 1, 33]),
        (shape((9, 3), 64), vec![129, 200]),
    ];
    for (s, lengths) in cases {
        check(&s, DType::F32, &lengths);
    }
}

#[test]
fn sixteen_bit_values_and_gradients_agree_with_f64() {
    for dtype in [DType::Bf16, DType::F16] {
        check(&shape((6, 2), 32), dtype, &[100, 77]);
        check(&AttentionShape { window: Some(9), ..shape((2, 2), 64) }, dtype, &[70]);
    }
}

#[test]
fn windows_smaller_and_larger_than_a_block_hide_older_keys() {
    for window in [1, 2, 7, 63, 64, 65, 100, 500] {
        check(&AttentionShape { window: Some(window), ..shape((2, 1), 8) }, DType::F32, &[150]);
    }
}

#[test]
fn capped_scores_and_their_gradients_agree_with_f64() {
    check(&AttentionShape { cap: Some(2.0), ..shape((4, 2), 16) }, DType::F32, &[70, 1, 33]);
    check(&AttentionShape { cap: Some(1.0), window: Some(9), ..shape((2, 1), 8) }, DType::F32, &[150]);
    for dtype in [DType::Bf16, DType::F16] {
        check(&AttentionShape { cap: Some(3.0), ..shape((2, 1), 32) }, dtype, &[70]);
    }
}

#[test]
fn gpt_neo_takes_scores_without_a_scale() {
    check(&AttentionShape { scale: 1.0, window: Some(5), ..shape((2, 2), 8) }, DType::F32, &[20, 13]);
}

#[test]
fn gradients_agree_with_differences() {
    for cap in [None, Some(1.0)] {
        gradients_by_differences(AttentionShape { window: Some(3), cap, ..shape((4, 2), 2) });
    }
}

fn gradients_by_differences(s: AttentionShape) {
    let p = params(&s, 9, DType::F32);
    let rows = |t: &Tape<'_>, p: &[Param]| -> [Var; 3] { [0, 1, 2].map(|i| t.param(&p[i])) };
    let check = Gradcheck { tolerance: 2e-2, ..Gradcheck::default() };
    check.run(&p, |t, p| {
        let [q, k, v] = rows(t, p);
        attention(t, [&q, &k, &v], s, &layout(&[5, 4]))
    });
}

#[test]
fn a_sink_takes_its_share_of_every_softmax() {
    let (s, time) = (AttentionShape { window: Some(3), ..shape((4, 2), 2) }, 9);
    let p = params(&s, time, DType::F32);
    let sinks = Tensor::from_vec(&[4], vec![-1.5, 0.0, 0.7, 30.0]);
    let layout = layout(&[time]);
    let on = |t: &Tape<'_>, p: &[Param], sinks| {
        let [q, k, v] = [0, 1, 2].map(|i| t.param(&p[i]));
        attention_with_sinks(t, [&q, &k, &v], (s, sinks), &layout)
    };
    let y = on(&Tape::disabled(), &p, Some(&sinks)).unwrap().value().to_f32_vec();
    let [q, k, v] = [0, 1, 2].map(|i| p[i].value().to_f32_vec());
    for (at, got) in y.iter().enumerate() {
        let (i, h, c) = (at / 8, at / 2 % 4, at % 2);
        let dot = |j: usize| (0..2).map(|c| q[i * 8 + h * 2 + c] * k[j * 4 + h / 2 * 2 + c]).sum::<f32>();
        let e: Vec<f64> = ((i + 1).saturating_sub(3)..=i).map(|j| f64::from(s.scale * dot(j)).exp()).collect();
        let total = e.iter().sum::<f64>() + f64::from(sinks.data::<f32>()[h]).exp();
        let first = (i + 1).saturating_sub(3);
        let values = e.iter().enumerate().map(|(n, e)| e * f64::from(v[(first + n) * 4 + h / 2 * 2 + c]));
        let expected = values.sum::<f64>() / total;
        assert!((f64::from(*got) - expected).abs() < 1e-6, "element {at}: {got}, expected {expected}");
    }
    let check = Gradcheck { tolerance: 2e-2, ..Gradcheck::default() };
    check.run(&p, |t, p| on(t, p, Some(&sinks)));
    // From a cache, by a few queries and by many.
    let [q, k, v] = [0, 1, 2].map(|i| p[i].value());
    for count in [1, 6] {
        let new = Tensor::from_vec(&[count, 8], q.to_f32_vec()[(time - count) * 8..].to_vec());
        let ((pages, layer), later) = paged([&k, &v], &[(count, time - count, 0)], s.window);
        let got = attend_cached(&new, (&pages, layer), (s, Some(&sinks)), &later).unwrap().to_f32_vec();
        let expected = &y[(time - count) * 8..];
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?}, expected {expected:?}");
    }
    let wrong = on(&Tape::disabled(), &p, Some(&Tensor::zeros(&[3], DType::F32))).unwrap_err().to_string();
    assert!(wrong.contains("sinks of shape (4)"), "{wrong}");
}

#[test]
fn only_the_gradients_that_are_wanted_are_computed() {
    let s = shape((4, 2), 8);
    let all = run(&s, DType::F32, &[70]);
    let dy = noise(&[70, 32], DType::F32, 4);
    for wanted in 0..3 {
        let p = params(&s, 70, DType::F32);
        let tape = Tape::recording();
        let vars: Vec<Var> =
            (0..3).map(|i| if i == wanted { tape.param(&p[i]) } else { Var::constant(p[i].value()) }).collect();
        let y = attention(&tape, [&vars[0], &vars[1], &vars[2]], s, &layout(&[70])).unwrap();
        let loss = with_gradient(&tape, &y, &dy);
        let grads = tape.backward(loss).unwrap();
        assert_eq!(grads.len(), 1);
        assert_eq!(grads.get(&p[wanted]).unwrap().to_f32_vec(), all[wanted + 1]);
    }
}

/// Bits, not closeness: a sequence's numbers come from its own rows alone, whatever lies beside it.
#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    for (dtype, window) in [(DType::F32, None), (DType::Bf16, Some(20))] {
        let s = AttentionShape { window, ..shape((4, 2), 16) };
        let lengths = [70, 3, 133];
        let (together, total) = (run(&s, dtype, &lengths), lengths.iter().sum::<usize>());
        let inputs = params(&s, total, dtype).map(|it| it.value());
        let dy = noise(&[total, 64], dtype, 4);
        for segment in layout(&lengths).segments() {
            let part = |t: &Tensor| {
                let cols = t.cols();
                let rows = &t.to_f32_vec()[segment.first * cols..][..segment.count * cols];
                Tensor::from_vec(&[segment.count, cols], rows.to_vec()).to_dtype(dtype)
            };
            let p: Vec<Param> = inputs.iter().map(|it| Param::new("p", part(it))).collect();
            let tape = Tape::recording();
            let [q, k, v] = [0, 1, 2].map(|i| tape.param(&p[i]));
            let y = attention(&tape, [&q, &k, &v], s, &layout(&[segment.count])).unwrap();
            let loss = with_gradient(&tape, &y, &part(&dy));
            let grads = tape.backward(loss).unwrap();
            let alone = [0, 1, 2].map(|i| grads.get(&p[i]).unwrap().to_f32_vec());
            for (all, one, cols) in [
                (&together[0], &y.value().to_f32_vec(), 64),
                (&together[1], &alone[0], 64),
                (&together[2], &alone[1], 32),
                (&together[3], &alone[2], 32),
            ] {
                assert_eq!(all[segment.first * cols..][..segment.count * cols], one[..], "{segment:?} in {dtype}");
            }
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let s = AttentionShape { scale: 1000.0, ..shape((1, 1), 4) };
    let got = run(&s, DType::F32, &[130]);
    assert!(got.iter().flatten().all(|it| it.is_finite()));
    // So steep a softmax picks the value of the best key.
    let [q, k, v] = params(&s, 130, DType::F32).map(|it| it.value().to_f32_vec());
    let score = |i: usize, j: usize| -> f32 { (0..4).map(|c| q[i * 4 + c] * k[j * 4 + c]).sum() };
    let best = (0..130).max_by(|a, b| score(129, *a).total_cmp(&score(129, *b))).unwrap();
    assert_close("y", &got[0][129 * 4..], &[0, 1, 2, 3].map(|c| f64::from(v[best * 4 + c])), 1e-6);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for dtype in [DType::F32, DType::Bf16] {
        let s = AttentionShape { window: Some(90), ..shape((6, 2), 16) };
        let once = || run(&s, dtype, &[150, 149, 20]);
        assert_eq!(on_threads(1, once), on_threads(2, once));
    }
}

#[test]
fn the_cache_gives_the_same_rows_however_they_come() {
    for (dtype, window) in [(DType::F32, None), (DType::F32, Some(10)), (DType::Bf16, Some(70)), (DType::F16, None)] {
        let s = AttentionShape { window, cap: window.map(|_| 1.5), ..shape((6, 2), 16) };
        let [q, k, v] = params(&s, 150, dtype).map(|it| it.value());
        let of = |t: &Tensor| Var::constant(t.clone());
        let whole = attention(&Tape::disabled(), [&of(&q), &of(&k), &of(&v)], s, &layout(&[150])).unwrap();
        let whole = rounded(whole.value(), DType::F32);
        // A prompt by blocks, then single tokens, then a few at once.
        let mut start = 0;
        for time in [70, 1, 1, 4, 5, 66, 1, 1, 1] {
            let rows = q.to_f32_vec()[start * 96..(start + time) * 96].to_vec();
            let new = Tensor::from_vec(&[time, 96], rows).to_dtype(dtype);
            let ((pages, layer), layout) = paged([&k, &v], &[(time, start, 0)], s.window);
            let y = attend_cached(&new, (&pages, layer), (s, None), &layout).unwrap();
            assert_eq!((y.shape(), y.dtype()), (&[time, 96][..], dtype));
            assert_close("y", &y.to_f32_vec(), &whole[start * 96..(start + time) * 96], tolerance(dtype, 16));
            start += time;
        }
        assert_eq!(start, 150);
    }
}

/// Several sequences in one cache, each with its own past, give what each gives alone.
#[test]
fn a_cache_of_several_sequences_serves_each_as_if_alone() {
    for (dtype, window) in [(DType::F32, None), (DType::Bf16, Some(10))] {
        let s = AttentionShape { window, ..shape((6, 2), 16) };
        let [_, k, v] = params(&s, 192, dtype).map(|it| it.value());
        for all in [vec![(1, 63, 0), (1, 0, 64), (3, 20, 128)], vec![(7, 33, 128), (1, 40, 0)]] {
            let ((pages, layer), together) = paged([&k, &v], &all, window);
            let q = noise(&[together.tokens(), 96], dtype, 9);
            let y = attend_cached(&q, (&pages, layer), (s, None), &together).unwrap().to_f32_vec();
            for (segment, one) in together.segments().iter().zip(&all) {
                let rows = q.to_f32_vec()[segment.first * 96..][..segment.count * 96].to_vec();
                let alone = Tensor::from_vec(&[segment.count, 96], rows).to_dtype(dtype);
                let ((pages, layer), layout) = paged([&k, &v], &[*one], window);
                let alone = attend_cached(&alone, (&pages, layer), (s, None), &layout).unwrap();
                let alone: Vec<f64> = alone.to_f32_vec().into_iter().map(f64::from).collect();
                assert_close("y", &y[segment.first * 96..][..alone.len()], &alone, tolerance(dtype, 16));
            }
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let s = shape((4, 2), 8);
    let of = |rows, cols, dtype| Var::constant(noise(&[rows, cols], dtype, 1));
    let (q, k) = (of(6, 32, DType::F32), of(6, 16, DType::F32));
    let refused =
        |k: &Var, s, layout: &Layout| attention(&Tape::disabled(), [&q, k, k], s, layout).unwrap_err().to_string();
    let two = layout(&[3, 3]);
    assert_eq!(
        refused(&of(6, 32, DType::F32), s, &two),
        "attention: expected keys of shape (rows, 16), got shape [6, 32]"
    );
    assert_eq!(refused(&of(6, 16, DType::F16), s, &two), "attention: expected keys in f32 as the queries, got f16");
    assert_eq!(
        refused(&k, s, &layout(&[3, 4])),
        "attention: expected queries of 7 rows, one a token of the layout, got shape [6, 32]"
    );
    assert!(refused(&k, s, &Layout::resumed(&[(6, 2, &[])]).unwrap()).contains("attend_cached takes one that goes on"));
    assert_eq!(
        refused(&k, AttentionShape { kv_heads: 3, ..s }, &two),
        "attention: heads (4) must be a multiple of kv_heads (3)"
    );
    assert_eq!(
        refused(&k, AttentionShape { window: Some(0), ..s }, &two),
        "attention: a window must be at least 1, got 0"
    );
    let seven = noise(&[7, 16], DType::F32, 1);
    let cached = |q: &Tensor, k: &Tensor, s: AttentionShape| {
        let ((pages, layer), layout) = paged([k, k], &[(6, 1, 0)], None);
        attend_cached(q, (&pages, layer), (s, None), &layout).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(cached(q.value(), &seven, s), Ok(()));
    let expected = "attend_cached: expected 6 queries and pages of 16 channels, got 5 queries and 16 channels";
    assert_eq!(cached(of(5, 32, DType::F32).value(), &seven, s), Err(expected.into()));
    assert!(cached(q.value(), &noise(&[7, 8], DType::F32, 1), s).unwrap_err().contains("8 channels"));
    assert!(cached(q.value(), &seven.to_dtype(DType::F16), s).unwrap_err().contains("in f32 as they"));
    // A page that a window hides, and no window.
    let long = noise(&[200, 16], DType::F32, 1);
    let ((pages, layer), layout) = paged([&long, &long], &[(1, 199, 0)], Some(8));
    let one = noise(&[1, 32], DType::F32, 1);
    let asked = |window| {
        let shape = AttentionShape { window, ..s };
        attend_cached(&one, (&pages, layer), (shape, None), &layout).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(asked(Some(8)), Ok(()));
    assert!(asked(None).unwrap_err().contains("a page was forgotten"));
}

#[test]
fn what_needs_no_gradient_is_not_recorded() {
    let (s, tape) = (shape((2, 1), 8), Tape::recording());
    let of = |cols| Var::constant(noise(&[3, cols], DType::F32, 1));
    attention(&tape, [&of(16), &of(8), &of(8)], s, &layout(&[3])).unwrap();
    assert!(tape.names().is_empty());
}

#[test]
fn caps_that_cannot_be_are_refused_and_products_are_counted() {
    let s = shape((4, 2), 8);
    let input = |heads: usize| Var::constant(noise(&[5, heads * 8], DType::F32, 1));
    let run = |cap: f32| {
        let shape = AttentionShape { cap: Some(cap), ..s };
        attention(&Tape::disabled(), [&input(4), &input(2), &input(2)], shape, &layout(&[5])).map(drop)
    };
    assert!(run(0.5).is_ok());
    for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = run(wrong).unwrap_err().to_string();
        assert!(error.contains("a cap must be positive and finite"), "{error}");
    }
    // 1 + 2 + 3 + 4 + 5 and 1 + 2 + 3 pairs, of 4 heads of 8 channels: a product and a sum each.
    assert_eq!(s.flops(&layout(&[5, 3]), 3), 2 * 3 * (15 + 6) * 4 * 8);
}
