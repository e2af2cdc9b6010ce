//! Learning-rate schedules.

use halfbyte_paged_optim::{Decay, LrSchedule, Schedule};
use proptest::prelude::*;

fn schedule(kind: Schedule, warmup_steps: u64, total_steps: u64) -> LrSchedule {
    LrSchedule { kind, base_lr: 2.0, warmup_steps, total_steps }
}

/// Those that fall from the warm-up's end to the last step and never rise.
const FALLING: [Schedule; 7] = [
    Schedule::Constant,
    Schedule::Linear,
    Schedule::COSINE,
    Schedule::Cosine { num_cycles: 0.5, min_lr_rate: 0.25 },
    Schedule::Polynomial { power: 2.0, lr_end: 0.5 },
    Schedule::InverseSqrt { timescale: None },
    Schedule::WarmupStableDecay { num_decay_steps: 7, min_lr_ratio: 0.25, decay_type: Decay::OneMinusSqrt },
];

/// Those of the rest.
const RISING_AGAIN: [Schedule; 2] =
    [Schedule::CosineWithRestarts { num_cycles: 3.0 }, Schedule::Cosine { num_cycles: 1.25, min_lr_rate: 0.0 }];

/// The rates of twelve steps, four of them warm-up, of a base rate of 2, as `get_scheduler` of transformers 5.23 gives them.
#[test]
fn values_of_transformers() {
    let decay = |decay_type, min_lr_ratio| Schedule::WarmupStableDecay { num_decay_steps: 5, min_lr_ratio, decay_type };
    let up = [0.0, 0.25, 0.5, 0.75, 1.0];
    let from_floor = [0.1, 0.325, 0.55, 0.775, 1.0];
    #[rustfmt::skip]
    let known: [(Schedule, [f64; 5], [f64; 7]); 13] = [
        (Schedule::Constant, up, [1.0; 7]),
        (Schedule::Linear, up, [0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (Schedule::COSINE, up, [0.961939766255643, 0.853553390593274, 0.691341716182545, 0.5, 0.308658283817455, 0.146446609406726, 0.038060233744357]),
        (Schedule::Cosine { num_cycles: 1.25, min_lr_rate: 0.0 }, up, [0.777785116509801, 0.308658283817455, 0.009607359798385, 0.146446609406726, 0.597545161008064, 0.961939766255643, 0.915734806151273]),
        (Schedule::Cosine { num_cycles: 0.5, min_lr_rate: 0.1 }, up, [0.965745789630079, 0.868198051533946, 0.72220754456429, 0.55, 0.37779245543571, 0.231801948466054, 0.134254210369921]),
        (Schedule::CosineWithRestarts { num_cycles: 3.0 }, up, [0.691341716182545, 0.146446609406726, 0.961939766255643, 0.5, 0.038060233744357, 0.853553390593274, 0.308658283817455]),
        (Schedule::Polynomial { power: 1.0, lr_end: 1e-7 }, up, [0.87500000625, 0.7500000125, 0.62500001875, 0.500000025, 0.37500003125, 0.2500000375, 0.12500004375]),
        (Schedule::Polynomial { power: 2.0, lr_end: 0.2 }, up, [0.7890625, 0.60625, 0.4515625, 0.325, 0.2265625, 0.15625, 0.1140625]),
        (Schedule::InverseSqrt { timescale: None }, up, [0.894427190999916, 0.816496580927726, 0.755928946018454, 0.5f64.sqrt(), 0.666666666666667, 0.632455532033676, 0.603022689155527]),
        (Schedule::InverseSqrt { timescale: Some(9) }, up, [0.948683298050514, 0.904534033733291, 0.866025403784439, 0.832050294337844, 0.801783725737273, 0.774596669241483, 0.75]),
        (decay(Decay::Cosine, 0.1), from_floor, [1.0, 1.0, 1.0, 0.914057647468726, 0.689057647468726, 0.410942352531274, 0.185942352531274]),
        (decay(Decay::OneMinusSqrt, 0.0), up, [1.0, 1.0, 1.0, 0.552786404500042, 0.367544467966324, 0.225403330758517, 0.105572809000084]),
        (decay(Decay::Linear, 0.0), up, [1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]),
    ];
    for (kind, rise, fall) in known {
        let of = schedule(kind, 4, 12);
        for (step, want) in rise.iter().chain(&fall).enumerate() {
            let rate = of.lr(step as u64) / 2.0;
            assert!((rate - want).abs() < 1e-14, "{kind:?}: step {step} has {rate}, expected {want}");
        }
    }
}

#[test]
fn the_ends_of_schedules_are_those_of_transformers() {
    let restarts = schedule(Schedule::CosineWithRestarts { num_cycles: 3.0 }, 4, 12);
    assert!(restarts.lr(11) > 0.0);
    assert_eq!([restarts.lr(12), restarts.lr(99)], [0.0; 2], "past the end no cycle begins");
    // Without a warm-up to take it from, the scale is of ten thousand steps.
    assert_eq!(schedule(Schedule::InverseSqrt { timescale: None }, 0, 100_000).lr(30_000), 1.0);
    let nothing = LrSchedule { base_lr: 0.0, ..schedule(Schedule::Polynomial { power: 2.0, lr_end: 0.5 }, 2, 12) };
    assert_eq!(nothing.lr(7), 0.0, "of a rate of zero all is zero");
}

#[test]
fn names_are_those_of_transformers() {
    let json = |kind: &Schedule| serde_json::to_string(kind).expect("serialises");
    assert_eq!(json(&Schedule::Linear), "\"linear\"");
    assert_eq!(
        json(&Schedule::CosineWithRestarts { num_cycles: 3.0 }),
        "{\"cosine_with_restarts\":{\"num_cycles\":3.0}}"
    );
    for kind in FALLING.iter().chain(&RISING_AGAIN) {
        assert_eq!(serde_json::from_str::<Schedule>(&json(kind)).expect("parses"), *kind);
    }
    assert_eq!(serde_json::from_str::<Schedule>("\"constant_with_warmup\"").expect("parses"), Schedule::Constant);
}

proptest! {
    #[test]
    fn rises_then_falls_within_bounds(kind in prop::sample::select(&FALLING), warmup in 0u64..30, run in 1u64..60) {
        let s = schedule(kind, warmup, warmup + run);
        let rates: Vec<f64> = (0..warmup + run + 5).map(|i| s.lr(i)).collect();
        let (up, down) = rates.split_at(warmup as usize);
        prop_assert!(rates.iter().all(|r| (0.0..=2.0).contains(r)));
        prop_assert!(up.is_sorted_by(|a, b| a < b), "strictly rising");
        prop_assert!(down.is_sorted_by(|a, b| a >= b), "never rising");
        let floor = if let Schedule::WarmupStableDecay { .. } = kind { 0.5 } else { 0.0 };
        prop_assert!(up.first().is_none_or(|&r| r == floor), "the first warm-up step has rate zero, but for one");
        prop_assert_eq!(down[0], 2.0);
        let end = match kind {
            Schedule::Constant => 2.0,
            Schedule::Linear => 0.0,
            Schedule::Cosine { min_lr_rate, .. } => 2.0 * min_lr_rate,
            Schedule::Polynomial { lr_end, .. } => lr_end,
            Schedule::WarmupStableDecay { .. } => 0.5,
            _ => down[run as usize],
        };
        prop_assert!((down[run as usize] - end).abs() < 1e-12);
        prop_assert!(down[run as usize - 1] > 0.0, "the last step still learns");
    }

    #[test]
    fn any_numbers_give_a_rate(
        kind in prop::sample::select([FALLING.as_slice(), &RISING_AGAIN].concat()),
        warmup: u64, total: u64, step: u64
    ) {
        prop_assert!((0.0..=2.0).contains(&schedule(kind, warmup, total).lr(step)));
    }
}
