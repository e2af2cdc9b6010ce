//! `--packing on`: other batches, the same losses and gradients.

use crate::resume::{end, lines, signal, start, wait_for};
use e2e::{Family, Finetune, ROWS, Tensors, TinyModel, Work, write_jsonl};
use std::{fs, path::PathBuf};

/// A whole epoch in one step, of all weights, so that every gradient is there; the first moment after it is a tenth of
/// the clipped gradient.
pub(crate) fn one_step(work: &Work, model: &TinyModel, name: &str) -> Finetune {
    Finetune::new(&work.model(model), &work.rows(), &work.path(name))
        .without(&["--method", "--quant", "--rank", "--lora-alpha", "--target-modules"])
        .flags("--method full --max-steps 1 --save-steps 1 --gradient-checkpointing off")
        .flags("--per-device-train-batch-size 8")
}

/// The gradients of a run's only step, all by name.
fn gradients(run: &Finetune) -> Tensors {
    let mut state = Tensors::read(&run.folder().join("checkpoint-1/training_state.safetensors"));
    state.0.retain(|name, _| name.starts_with("exp_avg."));
    assert!(!state.0.is_empty());
    state
}

/// Expects equal losses and gradients, relatively to the largest element of each tensor, but for the order of sums.
#[track_caller]
pub(crate) fn same_step(what: &str, a: &Finetune, b: &Finetune) {
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs();
    for key in ["loss", "grad_norm"] {
        let (x, y) = (a.metrics()[0][key].as_f64().unwrap(), b.metrics()[0][key].as_f64().unwrap());
        assert!(near(x, y), "{what}: {key} {x} and {y}");
    }
    let (a, b) = (gradients(a), gradients(b));
    assert!(a.0.keys().eq(b.0.keys()));
    for ((name, (_, x)), (_, y)) in a.0.iter().zip(b.0.values()) {
        let largest = y.iter().fold(0.0f32, |most, it| most.max(it.abs()));
        let apart = x.iter().zip(y).fold(0.0f32, |most, (x, y)| most.max((x - y).abs()));
        assert!(largest > 0.0 && apart <= 1e-6 * largest, "{what}: {name} is {apart} apart, of {largest}");
    }
}

#[test]
fn packed_and_single_rows_give_the_same_loss_and_gradients() {
    let biased = TinyModel { attention_bias: true, tied: false, ..TinyModel::llama() };
    let others = [
        Family::SmolLm3,
        Family::Granite,
        Family::Olmo2,
        Family::Gemma2,
        Family::Gemma3,
        Family::Phi3,
        Family::Mixtral,
        Family::GptNeoX,
        Family::Gpt2,
        Family::GptJ,
    ]
    .map(TinyModel::of);
    for model in [TinyModel::llama(), biased, TinyModel::gpt_neo()].into_iter().chain(others) {
        let work = Work::new();
        let together = one_step(&work, &model, "together");
        together.done();
        let alone =
            one_step(&work, &model, "alone").flags("--per-device-train-batch-size 1 --gradient-accumulation-steps 8");
        alone.done();
        let packed = one_step(&work, &model, "packed").flags("--packing on");
        let said = packed.run().success().stderr;
        assert!(said.contains("packed: 8 examples in 4 rows of at most 16 tokens"), "{said}");
        let in_parts = one_step(&work, &model, "in parts")
            .flags("--packing on --per-device-train-batch-size 3 --gradient-accumulation-steps 2");
        in_parts.done();
        let what = format!("{:?}", model.family);
        same_step(&format!("{what}, eight rows in a batch"), &together, &alone);
        same_step(&format!("{what}, packed"), &packed, &alone);
        same_step(&format!("{what}, packed and accumulated"), &in_parts, &alone);
    }
}

/// Longer than the window of local attention and than a row, so that what came before would show.
#[test]
fn adapters_have_the_same_gradients_packed() {
    for model in [TinyModel::llama(), TinyModel::gpt_neo(), TinyModel::of(Family::GptOss)] {
        let work = Work::new();
        let base = work.model(&model);
        // An adapter whose B is not zero has a gradient in A, too.
        let first = Finetune::new(&base, &work.rows(), &work.path("first")).done();
        let run = |name: &str| {
            Finetune::new(&base, &work.rows(), &work.path(name))
                .path("--init-adapter", &first)
                .flags("--max-steps 1 --save-steps 1 --per-device-train-batch-size 8 --max-length 24")
        };
        let (single, packed) = (run("single"), run("packed").flags("--packing true"));
        single.done();
        packed.done();
        same_step(&format!("{:?}", model.family), &packed, &single);
    }
}

/// Rows of two to ten words, more than an epoch can take in a few steps.
fn many_rows(work: &Work) -> PathBuf {
    let path = work.path("many.jsonl");
    let words: Vec<&str> = ROWS.iter().flat_map(|it| it.split(' ')).collect();
    let rows: Vec<String> = (0..40).map(|row| words[row..row + 2 + row * 5 % 9].join(" ")).collect();
    write_jsonl(&path, &rows.iter().map(|it| Some(it.as_str())).collect::<Vec<_>>());
    path
}

fn packed(work: &Work) -> Finetune {
    work.finetune()
        .path("--data", many_rows(work))
        .flags("--packing on --lora-dropout 0.1 --save-steps 3 --max-steps 20")
}

#[test]
fn a_packed_run_that_is_killed_goes_on_bit_for_bit() {
    let work = Work::new();
    let long = packed(&work).flags("--max-steps 100000");
    let mut child = start(&long);
    let folder = work.path("run");
    wait_for(&mut child, || folder.join("checkpoint-9").exists());
    signal(&child, "KILL");
    assert_eq!(end(child).code, None, "the signal ended it");
    let total = lines(&folder.join("metrics.jsonl")) + 7;
    long.clone().flags(&format!("--resume --max-steps {total}")).done();
    let whole = long.clone().flags(&format!("--max-steps {total}")).output(&work.path("whole"));
    whole.done();
    assert!(whole.adapter_bytes() == long.adapter_bytes(), "the adapters differ");
    assert_eq!(whole.losses(), long.losses());
}

#[test]
fn a_packed_run_pauses_at_every_step_and_in_the_middle_of_accumulated_epochs() {
    let work = Work::new();
    let run =
        |name: &str| packed(&work).flags("--gradient-accumulation-steps 2 --max-steps 9").output(&work.path(name));
    let whole = run("whole");
    let said = whole.run().success().stderr;
    // 40 rows of 6 words on average, in rows of 16: 15 rows, 8 batches, 4 steps.
    assert!(said.contains("9 steps, ") && said.contains("epochs of 4;"), "{said}");
    let epochs: Vec<f64> = whole.metrics().iter().map(|it| it["epoch"].as_f64().unwrap()).collect();
    assert_eq!(epochs, [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25]);
    let parts = run("parts");
    for stop in 1..=9 {
        let resume = if stop == 1 { "" } else { "--resume" };
        parts.clone().flags(&format!("--save-steps 1 --max-steps {stop} {resume}")).done();
    }
    assert!(whole.adapter_bytes() == parts.adapter_bytes(), "the adapters differ");
    assert_eq!(whole.losses(), parts.losses());
}

#[test]
fn packing_is_part_of_what_a_checkpoint_is_of() {
    let work = Work::new();
    let single = work.finetune().flags("--save-steps 2 --max-steps 2");
    single.done();
    single.clone().flags("--resume --max-steps 4 --packing on").run().user_error(&[
        "packing was",
        "off",
        "is now",
        "on",
    ]);
    // A checkpoint from before there was packing.
    let state = single.folder().join("checkpoint-2/trainer_state.json");
    let text = fs::read_to_string(&state).unwrap();
    let older = text.replace("    \"packing\": \"off\",\n", "");
    assert!(older.len() < text.len(), "{text}");
    fs::write(&state, older).unwrap();
    single.clone().flags("--resume --max-steps 4").done();
    let whole = single.clone().flags("--max-steps 4").output(&work.path("whole"));
    whole.done();
    assert!(whole.adapter_bytes() == single.adapter_bytes());
}

#[test]
fn on_and_true_and_the_bare_flag_mean_the_same() {
    let work = Work::new();
    let run = |name: &str, flag: &str| {
        packed(&work).without(&["--packing"]).flags(flag).output(&work.path(name)).flags("--max-steps 2")
    };
    let bytes = |run: Finetune| {
        run.done();
        run.adapter_bytes()
    };
    let on = bytes(run("on", "--packing on"));
    assert!(bytes(run("true", "--packing true")) == on && bytes(run("bare", "--packing")) == on);
    assert!(bytes(run("false", "--packing false")) == bytes(run("off", "--packing off")));
    assert!(bytes(run("none", "")) != on, "off is the default");
    let file = work.path("run.toml");
    for (key, name) in [("packing = true", "a"), ("packing = \"on\"", "b"), ("packing = \"true\"", "c")] {
        fs::write(&file, key).unwrap();
        assert!(bytes(run(name, "").path("--config", &file)) == on, "{key}");
    }
    fs::write(&file, "packing = \"perhaps\"").unwrap();
    run("d", "").path("--config", &file).run().user_error(&["run.toml", "line 1", "perhaps", "\"on\""]);
}

#[test]
fn the_plan_says_what_an_epoch_is_and_what_packing_would_gain() {
    let work = Work::new();
    let run = packed(&work).without(&["--max-steps", "--packing"]).flags("--num-train-epochs 1.5 --save-steps 0");
    let said = run.run().success().stderr;
    for part in [
        "30 steps, 1.50 epochs of 20; an epoch takes each of 40 examples once",
        "--packing on would make of 40 rows 15: 8 steps an epoch instead of 20, each with 2.5 x the tokens, and an epoch about 1.5 x as fast",
    ] {
        assert!(said.contains(part), "`{part}`: {said}");
    }
    assert_eq!(run.losses().len(), 30);
    let run = run.flags("--packing on --drop-last").output(&work.path("packed"));
    let said = run.run().success().stderr;
    for part in ["11 steps, 1.57 epochs of 7", "but for the last 1 of its rows", "in 15 rows of at most 16 tokens, "] {
        assert!(said.contains(part), "`{part}`: {said}");
    }
}
