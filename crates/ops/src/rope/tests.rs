use super::{Pairs, RopeScaling, RopeSpec, RopeTable, rope};
use crate::{Layout, frozen_linear::test_support::*};
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, gradcheck, noise};

fn spec(head_dim: usize, scaling: RopeScaling) -> RopeSpec {
    RopeSpec { theta: 10000.0, channels: head_dim, max_position: 16, scaling, pairs: Pairs::Halves }
}

fn yarn(factor: f64) -> RopeScaling {
    RopeScaling::Yarn {
        factor,
        original_max_position: 32,
        attention_factor: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    }
}

#[track_caller]
fn assert_frequencies(spec: &RopeSpec, length: usize, expected: &[f64], factor: f64) {
    let (got, got_factor) = spec.frequencies(length).unwrap();
    assert_eq!(got.len(), expected.len());
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        // The power and its reciprocal are f32.
        assert!((f64::from(*g) / e - 1.0).abs() < 3.0 * 2f64.powi(-24), "frequency {i}: {g}, expected {e}");
    }
    assert!((f64::from(got_factor) / factor - 1.0).abs() < 2f64.powi(-24), "factor {got_factor}, expected {factor}");
}

// 10000^(-2i/8) for i in 0..4.
const PLAIN: [f64; 4] = [1.0, 0.1, 0.01, 0.001];

#[test]
fn default_and_linear_frequencies() {
    assert_frequencies(&spec(8, RopeScaling::None), 100, &PLAIN, 1.0);
    let linear = RopeScaling::Linear { factor: 4.0 };
    assert_frequencies(&spec(8, linear), 100, &[0.25, 0.025, 0.0025, 0.00025], 1.0);
}

#[test]
fn dynamic_frequencies_depend_on_lengths_beyond_the_maximum_only() {
    let dynamic = spec(8, RopeScaling::Dynamic { factor: 2.0 });
    assert!(dynamic.serves(40, 40) && !dynamic.serves(41, 40) && dynamic.table_length(40) == 40);
    assert_frequencies(&dynamic, 7, &PLAIN, 1.0);
    assert_frequencies(&dynamic, 16, &PLAIN, 1.0);
    // 2 * 40 / 16 - 1 = 4; the base grows by 4^(8/6), so frequency i shrinks by 4^(i/3).
    let thirds = [1.0, 0.1 / 4f64.powf(1.0 / 3.0), 0.01 / 4f64.powf(2.0 / 3.0), 0.001 / 4.0];
    assert_frequencies(&dynamic, 40, &thirds, 1.0);
}

#[test]
fn longrope_divides_by_other_numbers_beyond_the_original_length() {
    let (short, long) = (vec![1.0, 2.0, 4.0, 5.0], vec![2.0, 4.0, 8.0, 10.0]);
    let long = spec(8, RopeScaling::LongRope { short, long, original_max_position: 12, attention_factor: 1.25 });
    assert_frequencies(&long, 12, &[1.0, 0.05, 0.0025, 0.0002], 1.25);
    assert_frequencies(&long, 13, &[0.5, 0.025, 0.00125, 0.0001], 1.25);
    assert_eq!([3, 9, 12, 13].map(|it| long.table_length(it)), [4, 12, 12, 16]);
    assert!(long.serves(12, 3) && !long.serves(16, 12) && long.serves(16, 13) && !long.serves(16, 17));
}

#[test]
fn a_part_of_every_head_is_rotated_and_the_rest_stays() {
    for dtype in FLOATS {
        let (layout, x) = (Layout::resumed(&[(3, 2, &[]), (2, 5, &[])]).unwrap(), noise(&[5, 24], dtype, 1));
        let table = RopeTable::new(&spec(8, RopeScaling::None), 16).unwrap();
        let part = |of: &Tensor, head: usize, range: std::ops::Range<usize>| -> Vec<f32> {
            of.to_f32_vec().chunks(24).flat_map(|row| row[head * 12..][range.clone()].to_vec()).collect()
        };
        let run =
            |x: &Tensor, d: usize| rope(&Tape::disabled(), &Var::constant(x.clone()), &table, &layout, d).unwrap();
        let y = run(&x, 12);
        for head in 0..2 {
            assert_eq!(part(y.value(), head, 8..12), part(&x, head, 8..12));
            let alone = Tensor::from_vec(&[5, 8], part(&x, head, 0..8)).to_dtype(dtype);
            assert_eq!(part(y.value(), head, 0..8), run(&alone, 8).value().to_f32_vec());
        }
    }
    let x = Param::new("x", noise(&[2, 12], DType::F32, 1));
    let table = RopeTable::new(&spec(4, RopeScaling::None), 4).unwrap();
    gradcheck(&[x], |tape, p| rope(tape, &tape.param(&p[0]), &table, &Layout::new(&[2]).unwrap(), 6));
}

#[test]
fn neighbours_turn_as_halves_do_that_are_dealt_out() {
    // Channel i of a half is every other channel.
    let dealt = |x: &[f32], d: usize, part: usize| -> Vec<f32> {
        let place = |i: usize| if i >= part { i } else { i % 2 * (part / 2) + i / 2 };
        x.chunks(d)
            .flat_map(|head| {
                let mut out = vec![0.0; d];
                (0..d).for_each(|i| out[place(i)] = head[i]);
                out
            })
            .collect()
    };
    for dtype in FLOATS {
        let (layout, x) = (Layout::resumed(&[(3, 2, &[]), (2, 5, &[])]).unwrap(), noise(&[5, 24], dtype, 1));
        let run = |x: &Tensor, pairs| {
            let table = RopeTable::new(&RopeSpec { pairs, ..spec(8, RopeScaling::None) }, 16).unwrap();
            rope(&Tape::disabled(), &Var::constant(x.clone()), &table, &layout, 12).unwrap().value().to_f32_vec()
        };
        let halves = Tensor::from_vec(&[5, 24], dealt(&x.to_f32_vec(), 12, 8)).to_dtype(dtype);
        assert_eq!(dealt(&run(&x, Pairs::Neighbours), 12, 8), run(&halves, Pairs::Halves), "{dtype}");
    }
    let table = RopeTable::new(&RopeSpec { pairs: Pairs::Neighbours, ..spec(4, RopeScaling::None) }, 4).unwrap();
    gradcheck(&[Param::new("x", noise(&[2, 12], DType::F32, 1))], |tape, p| {
        rope(tape, &tape.param(&p[0]), &table, &Layout::new(&[2]).unwrap(), 6)
    });
}

#[test]
fn llama3_keeps_short_waves_divides_long_ones_and_blends_between() {
    let llama3 =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position: 128 };
    // Wavelengths 6.28, 62.8, 628 and 6283 against 128 / 4 = 32 and 128 / 1: kept, blended, divided, divided.
    let kept = (128.0 / 62.831_853_071_795_86 - 1.0) / 3.0;
    let blended = (1.0 - kept) * 0.1 / 8.0 + kept * 0.1;
    assert_frequencies(&spec(8, llama3), 1, &[1.0, blended, 0.00125, 0.000125], 1.0);
}

#[test]
fn yarn_ramps_over_channels_and_raises_the_scores() {
    // dim(32) = 8 ln(32 / 201.06) / 18.42 < 0, so the ramp starts at 0; dim(1) = 8 ln(5.093) / 18.42 = 0.71, up to 1.
    let expected = [1.0, 0.1 / 4.0, 0.01 / 4.0, 0.001 / 4.0];
    assert_frequencies(&spec(8, yarn(4.0)), 1, &expected, 0.1 * 4f64.ln() + 1.0);
    assert_frequencies(&spec(8, yarn(1.0)), 1, &PLAIN, 1.0);

    // A larger original length: dim(32) = 8 ln(4096 / 201.06) / 18.42 = 1.309 and dim(1) = 8 ln(651.9) / 18.42 = 2.814,
    // so the ramp runs from 1 to 3, or without truncation from 1.309 to 2.814.
    let longer = |truncated| match yarn(4.0) {
        RopeScaling::Yarn { factor, beta_fast, beta_slow, .. } => RopeScaling::Yarn {
            factor,
            original_max_position: 4096,
            attention_factor: Some(0.5),
            beta_fast,
            beta_slow,
            mscale: None,
            mscale_all_dim: None,
            truncate: truncated,
        },
        _ => unreachable!("yarn is yarn"),
    };
    let half = 0.5 * (0.01 / 4.0) + 0.5 * 0.01;
    assert_frequencies(&spec(8, longer(true)), 1, &[1.0, 0.1, half, 0.001 / 4.0], 0.5);
    let channel = |r: f64| 8.0 * (4096.0 / (r * std::f64::consts::TAU)).ln() / (2.0 * 10000f64.ln());
    let ramp = (2.0 - channel(32.0)) / (channel(1.0) - channel(32.0));
    let between = ramp * (0.01 / 4.0) + (1.0 - ramp) * 0.01;
    assert_frequencies(&spec(8, longer(false)), 1, &[1.0, 0.1, between, 0.001 / 4.0], 0.5);
}

#[test]
fn yarn_takes_its_attention_factor_from_mscale_ratios() {
    let RopeScaling::Yarn { factor, original_max_position, beta_fast, beta_slow, truncate, .. } = yarn(40.0) else {
        unreachable!("yarn is yarn")
    };
    let with = |mscale, mscale_all_dim| {
        let attention_factor = None;
        let scaling = RopeScaling::Yarn {
            factor,
            original_max_position,
            attention_factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            truncate,
        };
        spec(8, scaling).frequencies(1).unwrap().1
    };
    let grown = |scale: f64| 0.1 * scale * 40f64.ln() + 1.0;
    assert_eq!(with(Some(1.0), Some(0.5)), (grown(1.0) / grown(0.5)) as f32);
    assert_eq!(with(Some(1.0), None), grown(1.0) as f32);
}

/// A row at each position.
fn at(positions: &[u32]) -> Layout {
    Layout::resumed(&positions.iter().map(|it| (1, *it as usize, &[][..])).collect::<Vec<_>>()).unwrap()
}

/// The rotation in f64 from the table's own spec without scaling.
fn oracle(x: &[f64], positions: &[u32], head_dim: usize, direction: f64) -> Vec<f64> {
    let (half, cols) = (head_dim / 2, x.len() / positions.len());
    let mut y = vec![0.0; x.len()];
    for (row, position) in positions.iter().enumerate() {
        for head in (0..cols).step_by(head_dim) {
            for i in 0..half {
                let angle = f64::from(*position) * 10000f64.powf(-2.0 * i as f64 / head_dim as f64);
                let (sin, cos) = (direction * angle).sin_cos();
                let (a, b) = (row * cols + head + i, row * cols + head + half + i);
                y[a] = x[a] * cos - x[b] * sin;
                y[b] = x[b] * cos + x[a] * sin;
            }
        }
    }
    y
}

#[test]
fn rotations_and_gradients_agree_with_f64_in_every_dtype() {
    for dtype in FLOATS {
        for (rows, heads, d) in [(1, 1, 2), (5, 3, 8), (70, 2, 64)] {
            let table = RopeTable::new(&spec(d, RopeScaling::None), 200).unwrap();
            let positions: Vec<u32> = (0..rows as u32).map(|i| (i * 37) % 200).collect();
            let x = Param::new("x", noise(&[rows, heads * d], dtype, 1));
            let dy = noise(&[rows, heads * d], dtype, 2);
            let tape = Tape::recording();
            let y = rope(&tape, &tape.param(&x), &table, &at(&positions), d).unwrap();
            assert_eq!((y.value().shape(), y.value().dtype()), (x.value().shape(), dtype));
            // Roundings of cosine, product and sum; an angle of 200 in f32 is off by 200 * 2^-24, times |x| = 2.
            let tolerance = 4.0 * tolerance(dtype, 0) + 1600.0 * 2f64.powi(-24);
            let expected = oracle(&rounded(&x.value(), dtype), &positions, d, 1.0);
            assert_close("y", &y.value().to_f32_vec(), &expected, tolerance);
            let loss = with_gradient(&tape, &y, &dy);
            let grads = tape.backward(loss).unwrap();
            let expected = oracle(&rounded(&dy, dtype), &positions, d, -1.0);
            assert_close("dx", &grads.get(&x).unwrap().to_f32_vec(), &expected, tolerance);
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    let table = RopeTable::new(&spec(4, yarn(4.0)), 40).unwrap();
    gradcheck(&[Param::new("x", noise(&[3, 8], DType::F32, 1))], |tape, p| {
        rope(tape, &tape.param(&p[0]), &table, &at(&[0, 7, 39]), 4)
    });
}

#[test]
fn dot_products_depend_on_distances_only() {
    let table = RopeTable::new(&spec(8, RopeScaling::None), 64).unwrap();
    let (q, k) = (Var::constant(noise(&[1, 8], DType::F32, 1)), Var::constant(noise(&[1, 8], DType::F32, 2)));
    let score = |i: u32, j: u32| -> f32 {
        let turned = |x, p| rope(&Tape::disabled(), x, &table, &at(&[p]), 8).unwrap().value().to_f32_vec();
        turned(&q, i).iter().zip(&turned(&k, j)).map(|(a, b)| a * b).sum()
    };
    assert!((score(9, 4) - score(50, 45)).abs() < 1e-4);
    assert!((score(9, 4) - score(50, 44)).abs() > 1e-3);
}

#[test]
fn what_makes_no_rotation_is_refused() {
    let table = RopeTable::new(&spec(8, RopeScaling::None), 4).unwrap();
    let refused = |x: Tensor, positions: &[u32], d| {
        rope(&Tape::disabled(), &Var::constant(x), &table, &at(positions), d).unwrap_err().to_string()
    };
    let x = noise(&[1, 16], DType::F32, 1);
    assert_eq!(refused(x.clone(), &[4], 8), "rope: position 4 lies beyond a table of 4 positions");
    assert_eq!(
        refused(x.clone(), &[1, 2], 8),
        "rope: expected shape (2, heads * 8), one row a position, got shape [1, 16]"
    );
    assert_eq!(refused(x, &[1], 4), "rope: expected heads of 8 channels or more, as the table rotates, got 4");
    let halves = noise(&[1, 20], DType::F32, 1);
    assert!(refused(halves, &[1], 8).contains("shape (1, heads * 8)"), "two heads and a half");
    assert!(refused(noise(&[1, 0], DType::F32, 1), &[1], 8).contains("shape (1, heads * 8)"), "no head");
    assert_eq!(table.bytes(), 4 * 2 * 4 * 4, "cosines and sines of four positions and pairs");
    let turned = |pairs, d| {
        let table = RopeTable::new(&RopeSpec { pairs, ..spec(8, RopeScaling::None) }, 4).unwrap();
        rope(&Tape::disabled(), &Var::constant(noise(&[1, 2 * d], DType::F32, 1)), &table, &at(&[1]), d).is_ok()
    };
    assert!(turned(Pairs::Halves, 9) && turned(Pairs::Neighbours, 10), "one channel is left as it is");
    assert!(!turned(Pairs::Neighbours, 9), "of nine channels one has no neighbour");
    let table = |spec: &RopeSpec| RopeTable::new(spec, 4).unwrap_err().to_string();
    assert_eq!(
        table(&spec(7, RopeScaling::None)),
        "rope: the channels that are rotated must be even and positive, got 7"
    );
    assert!(table(&spec(0, RopeScaling::None)).contains("must be even and positive, got 0"));
    for theta in [f64::NAN, f64::INFINITY, 1.0] {
        let named = format!("rope_theta must be a number above 1, got {theta}");
        assert!(table(&RopeSpec { theta, ..spec(8, RopeScaling::None) }).contains(&named));
    }
    assert_eq!(
        table(&spec(8, RopeScaling::Linear { factor: 0.0 })),
        "rope: the factor of rope scaling must be a positive number, got 0"
    );
}

#[test]
fn what_makes_no_ramp_is_refused() {
    let refused = |spec: &RopeSpec| RopeTable::new(spec, 4).err().map(|it| it.to_string()).unwrap_or_default();
    let dynamic = RopeScaling::Dynamic { factor: 2.0 };
    assert!(refused(&spec(2, dynamic.clone())).contains("dynamic scaling needs more than 2 channels"));
    assert_eq!(refused(&spec(4, dynamic)), "");
    let llama3 = |low_freq_factor, high_freq_factor| {
        let (factor, original_max_position) = (8.0, 128);
        refused(&spec(8, RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position }))
    };
    assert_eq!(llama3(1.0, 4.0), "");
    for (low, high) in [(4.0, 4.0), (5.0, 4.0), (f64::NAN, 4.0)] {
        assert!(llama3(low, high).contains("low_freq_factor must be below high_freq_factor"), "{low} {high}");
    }
    let longrope = |short: [f64; 3], long: &[f64]| {
        let (short, long) = (short.to_vec(), long.to_vec());
        refused(&spec(6, RopeScaling::LongRope { short, long, original_max_position: 8, attention_factor: 1.0 }))
    };
    assert_eq!(longrope([1.0; 3], &[2.0; 3]), "");
    let wanted = "longrope needs 3 positive numbers";
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(longrope([1.0, bad, 1.0], &[2.0; 3]).contains(wanted), "{bad} in short_factor");
        assert!(longrope([1.0; 3], &[2.0, 2.0, bad]).contains(wanted), "{bad} in long_factor");
    }
    assert!(longrope([1.0; 3], &[2.0; 4]).contains(wanted) && longrope([1.0; 3], &[2.0; 2]).contains(wanted));
    assert!(refused(&spec(8, RopeScaling::Linear { factor: f64::INFINITY })).contains("must be a positive number"));
}

#[test]
fn llama3_goes_by_both_factors() {
    let llama3 =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 2.0, high_freq_factor: 4.0, original_max_position: 100 };
    // Wavelengths 6.28, 62.8, 628 and 6283 against 100 / 4 = 25 and 100 / 2 = 50: kept, and divided three times.
    assert_frequencies(&spec(8, llama3), 1, &[1.0, 0.0125, 0.00125, 0.000125], 1.0);
}

#[test]
fn a_ramp_of_yarn_ends_at_the_last_channel_and_is_never_none() {
    let yarn = |original_max_position, beta_fast, beta_slow, truncate| {
        let (attention_factor, mscale, mscale_all_dim) = (Some(1.0), None, None);
        spec(
            8,
            RopeScaling::Yarn {
                factor: 4.0,
                original_max_position,
                attention_factor,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                truncate,
            },
        )
    };
    // Both ends at one channel, dim(8) = 8 ln(4096 / 50.27) / 18.42 = 1.91: a step there.
    assert_frequencies(&yarn(4096, 8.0, 8.0, false), 1, &[1.0, 0.1, 0.01 / 4.0, 0.001 / 4.0], 1.0);
    // From 1.5 to dim(1e-7) = 7.7, which is beyond the last of eight channels: frequencies 2 and 3 are a little on the way to it.
    let fast = 32.0 / std::f64::consts::TAU / (1.5 * 2.0 * 10000f64.ln() / 8.0).exp();
    let at = |i: f64| (i - 1.5) / (7.0 - 1.5);
    let between = |i: f64, f: f64| f / 4.0 * at(i) + f * (1.0 - at(i));
    let expected = [1.0, 0.1, between(2.0, 0.01), between(3.0, 0.001)];
    assert_frequencies(&yarn(32, fast, 1e-7, false), 1, &expected, 1.0);
}
