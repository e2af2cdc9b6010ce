//! What is refused, in which words, and that nothing has changed then.

use halfbyte_paged_optim::{AdamW, AdamWConfig, Budget, ParamSpec, ParamStep, Result, StateFormat};

use crate::training::{Training, specs};

fn refusal(result: Result<AdamW>) -> String {
    result.expect_err("must be refused").to_string()
}

#[test]
fn settings_out_of_range() {
    let ok = AdamWConfig::default();
    for (config, words) in [
        (AdamWConfig { beta1: 1.0, ..ok }, "beta1 is 1"),
        (AdamWConfig { beta2: -0.1, ..ok }, "beta2 is -0.1"),
        (AdamWConfig { eps: f64::NAN, ..ok }, "eps is NaN"),
        (AdamWConfig { weight_decay: -1.0, ..ok }, "weight_decay is -1"),
    ] {
        let error = refusal(AdamW::new(config, &specs(&[3]), Budget::default()));
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn budgets_that_cannot_work() {
    let budget = |resident, page_bytes| Budget { resident_bytes: resident, page_bytes, ..Budget::default() };
    for (budget, words) in [
        (budget(None, 0), "page_bytes is 0"),
        (budget(None, 12), "page_bytes is 12: expected a positive multiple of 8"),
        (budget(Some(63), 64), "resident_bytes is 63: expected at least page_bytes"),
        (Budget { spill_dir: "no/such/folder".into(), ..budget(Some(64), 64) }, "spill file in no/such/folder"),
    ] {
        let error = refusal(AdamW::new(AdamWConfig::default(), &specs(&[100]), budget));
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_name_used_twice() {
    let spec = ParamSpec { name: "w".into(), len: 2, decay: true, state: StateFormat::F32 };
    let error = refusal(AdamW::new(AdamWConfig::default(), &[spec.clone(), spec], Budget::default()));
    assert!(error.contains("\"w\" is registered twice"), "{error}");
}

#[test]
fn a_state_beyond_the_address_space() {
    let specs = specs(&[usize::MAX, 1]);
    let error = refusal(AdamW::new(AdamWConfig::default(), &specs, Budget::default()));
    assert!(error.contains("state size"), "{error}");
}

#[test]
fn a_wrong_step_is_named_and_changes_nothing() {
    let mut training = Training::new(&[4, 5], Budget::default()).run(1);
    let (values, state) = (training.bits(), training.adamw.export().expect("exports"));
    let long = [1.0; 6];
    for (lens, words) in [
        (&[4][..], "the step has 1 parameters, the optimizer was made for 2"),
        (&[4, 6], "gradient of parameter \"p1\" has 6 elements, expected 5"),
    ] {
        let steps = training.values.iter_mut().zip(lens);
        let mut steps: Vec<_> = steps.map(|(value, &n)| ParamStep { value, grad: &long[..n] }).collect();
        let error = training.adamw.step(0.1, &mut steps).expect_err("must be refused").to_string();
        assert!(error.contains(words), "{error}");
    }
    for lr in [-0.1, f64::NAN, f64::INFINITY] {
        let mut steps: Vec<_> =
            training.values.iter_mut().zip([4, 5]).map(|(value, n)| ParamStep { value, grad: &long[..n] }).collect();
        let error = training.adamw.step(lr, &mut steps).expect_err("must be refused").to_string();
        assert!(error.contains("learning rate"), "{error}");
    }
    assert_eq!(training.bits(), values);
    assert_eq!(training.adamw.export().expect("whole"), state);
}

#[test]
fn nan_stays_where_it_came_in() {
    let mut adamw = AdamW::new(AdamWConfig::default(), &specs(&[3]), Budget::default()).expect("valid");
    let mut value = [1.0f32; 3];
    for grad in [[0.5, f32::NAN, 0.5], [0.5; 3]] {
        adamw.step(0.1, &mut [ParamStep { value: &mut value, grad: &grad }]).expect("steps");
    }
    assert!(value[1].is_nan() && value[0] < 1.0 && value[2] == value[0]);
}

#[test]
fn decay_applies_only_where_it_is_on() {
    let config = AdamWConfig { weight_decay: 0.5, ..AdamWConfig::default() };
    let mut adamw = AdamW::new(config, &specs(&[1, 1]), Budget::default()).expect("valid");
    let (mut on, mut off) = ([2.0f32], [2.0f32]);
    let grad = [0.0];
    let mut steps = [ParamStep { value: &mut on, grad: &grad }, ParamStep { value: &mut off, grad: &grad }];
    adamw.step(0.1, &mut steps).expect("steps");
    assert_eq!((on, off), ([2.0 * 0.95], [2.0]));
}
