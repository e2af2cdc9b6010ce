//! Learning-rate schedules.

use halfbyte_paged_optim::{LrSchedule, Schedule};
use proptest::prelude::*;

fn schedule(kind: Schedule, warmup_steps: u64, total_steps: u64) -> LrSchedule {
    LrSchedule { kind, base_lr: 2.0, warmup_steps, total_steps }
}

/// Values of transformers' formulas, worked out by hand: four warm-up steps of twelve.
#[test]
fn values_by_hand() {
    let lr = |kind, step| schedule(kind, 4, 12).lr(step) / 2.0;
    for kind in Schedule::ALL {
        assert_eq!([0, 1, 2, 3, 4].map(|s| lr(kind, s)), [0.0, 0.25, 0.5, 0.75, 1.0]);
    }
    assert_eq!([5, 8, 11, 12].map(|s| lr(Schedule::Linear, s)), [0.875, 0.5, 0.125, 0.0]);
    assert_eq!([5, 11, 12, 99].map(|s| lr(Schedule::Constant, s)), [1.0; 4]);
    let cosine = [6, 8, 10, 12].map(|s| lr(Schedule::Cosine, s));
    let want = [0.853_553_390_593_273_7, 0.5, 0.146_446_609_406_726_3, 0.0];
    assert!(cosine.iter().zip(want).all(|(c, w)| (c - w).abs() < 1e-15), "{cosine:?}");
}

#[test]
fn names_are_those_of_transformers() {
    for kind in Schedule::ALL {
        assert_eq!(kind.name().parse(), Ok(kind));
        assert_eq!(serde_json::to_string(&kind).expect("serialises"), format!("{:?}", kind.to_string()));
    }
    assert_eq!("constant_with_warmup".parse(), Ok(Schedule::Constant));
    assert_eq!(serde_json::from_str::<Schedule>("\"constant_with_warmup\"").expect("parses"), Schedule::Constant);
    let error = "step".parse::<Schedule>().expect_err("no such schedule").to_string();
    assert!(error.contains("\"step\"") && error.contains("cosine"), "{error}");
}

proptest! {
    #[test]
    fn rises_then_falls_within_bounds(kind in prop::sample::select(&Schedule::ALL), warmup in 0u64..30, run in 1u64..60) {
        let s = schedule(kind, warmup, warmup + run);
        let rates: Vec<f64> = (0..warmup + run + 5).map(|i| s.lr(i)).collect();
        let (up, down) = rates.split_at(warmup as usize);
        prop_assert!(rates.iter().all(|r| (0.0..=2.0).contains(r)));
        prop_assert!(up.is_sorted_by(|a, b| a < b), "strictly rising");
        prop_assert!(down.is_sorted_by(|a, b| a >= b), "never rising");
        prop_assert!(up.first().is_none_or(|&r| r == 0.0), "the first warm-up step has rate zero");
        prop_assert_eq!(down[0], 2.0);
        let end = if kind == Schedule::Constant { 2.0 } else { 0.0 };
        prop_assert!(down[run as usize..].iter().all(|&r| r == end));
        prop_assert!(kind == Schedule::Constant || down[run as usize - 1] > 0.0, "the last step still learns");
    }

    #[test]
    fn any_numbers_give_a_rate(kind in prop::sample::select(&Schedule::ALL), warmup: u64, total: u64, step: u64) {
        prop_assert!((0.0..=2.0).contains(&schedule(kind, warmup, total).lr(step)));
    }
}
