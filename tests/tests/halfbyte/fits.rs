//! Commands that train nothing: what they hold is planned before a weight is read, and what there is no room for is refused.

use crate::plan::{headers_of, headers_of_65_billion, near};
use e2e::{Family, Finetune, Outcome, TinyModel, Work, run, run_within};
use std::{ffi::OsString, fs, path::Path};

fn args(command: &str, model: &Path, flags: &[(&str, &Path)], more: &str) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec![command.into(), "--model".into(), model.into()];
    args.extend(flags.iter().flat_map(|(flag, path)| [OsString::from(flag), OsString::from(path)]));
    args.extend(more.split_whitespace().map(OsString::from));
    args
}

#[test]
#[cfg(target_os = "linux")]
fn what_does_not_fit_is_refused_before_a_weight_is_read() {
    let work = Work::new();
    let adapter = work.finetune().done();
    let (large, rows, out) = (work.path("65b"), work.rows(), work.path("out"));
    headers_of_65_billion(&large);
    let commands = [
        ("this evaluation", args("eval", &large, &[("--data", &rows)], "")),
        ("this evaluation", args("eval", &large, &[("--data", &rows), ("--adapter", &adapter)], "--quant none")),
        ("this text", args("generate", &large, &[], "--prompt cat --quant nf4")),
        ("this text", args("chat", &large, &[], "--quant int8")),
        ("this merge", args("merge", &large, &[("--adapter", &adapter), ("--output", &out)], "")),
        ("this quantising", args("quantize", &large, &[("--output", &out)], "")),
    ];
    for (what, args) in commands {
        let outcome = run_within(2_000_000, args).user_error(&["MiB of memory are free", what, "needs about"]);
        assert_eq!(outcome.stderr.matches("error: ").count(), 1, "{outcome}");
        // The rows and the error, beside what the adapter's base is unlike.
        let others = outcome.stderr.lines().filter(|it| !it.starts_with("warning: ")).count();
        assert!(others < 3, "one sentence: {outcome}");
    }
    assert!(!out.exists());
}

/// A text of this model's takes 64 MiB of keys and values in the end, thirty-two of them 2 GiB.
#[test]
#[cfg(target_os = "linux")]
fn so_many_texts_are_continued_together_as_there_is_memory_for() {
    let work = Work::new();
    let (large, lines) = (work.path("large"), work.path("lines.txt"));
    headers_of(&large, [1024, 2048, 8, 1000], [8, 8], 2048);
    fs::write(&lines, "the\n".repeat(40)).unwrap();
    let ask = |flags: &str| {
        let flags = format!("-v --quant nf4 --max-new-tokens 2000 {flags}");
        run_within(1_600_000, args("generate", &large, &[("--prompts", &lines)], &flags))
    };
    let too_many = ["continuing these texts", "--per-device-eval-batch-size 1 would need", "and fit"];
    ask("--batch-size 32").user_error(&too_many);
    // All weights are 0, and so is the first token of all that are equal, which ends the text.
    let outcome = ask("").success();
    let together = outcome.stderr.lines().find_map(|it| it.split_once(" texts are continued together"));
    let together = together.and_then(|it| it.0.rsplit(' ').next()).and_then(|it| it.parse::<usize>().ok());
    assert!(together.is_some_and(|it| (2..32).contains(&it)), "{outcome}");
    assert_eq!(outcome.stdout, "\n".repeat(40));
}

#[test]
#[cfg(target_os = "linux")]
fn a_way_that_fits_is_named() {
    let work = Work::new();
    let (large, out) = (work.path("65b"), work.path("out"));
    headers_of_65_billion(&large);
    // Matrices of 360 MB, one at a time.
    let quantize = args("quantize", &large, &[("--output", &out)], "");
    run_within(4_000_000, quantize).user_error(&["leaving --output out", "and fit"]);
}

/// What the command told of itself. Which experts tokens go to is not known before, so that with experts the plan is of the worst case,
/// `most` times what was held.
#[track_caller]
fn as_planned(what: &str, most: f64, outcome: Outcome) {
    let outcome = outcome.success();
    let line = outcome.stderr.lines().find_map(|it| it.split_once("held tensors of "));
    let (held, planned) = line.and_then(|it| it.1.split_once(" bytes, planned ")).expect("it says what it held");
    let number = |text: &str| text.replace(',', "").trim().parse::<f64>().expect("bytes") / f64::from(1 << 20);
    let (planned, held) = (number(planned), number(held));
    if planned > held {
        assert!(planned < most * held, "{what}: planned {planned} MiB, held {held} MiB");
    } else {
        near(what, planned, held);
    }
}

#[test]
fn a_plan_is_what_tensors_hold_of_commands_that_train_nothing() {
    let kinds = [
        (TinyModel::llama(), "nf4"),
        (TinyModel { tied: false, ..TinyModel::llama() }, "int8"),
        (TinyModel::gpt_neo(), "none"),
        (TinyModel::of(Family::Gemma2), "nf4"),
        (TinyModel::of(Family::GptOss), "nf4"),
        (TinyModel::of(Family::Qwen3Moe), "fp4"),
        (TinyModel::of(Family::Gpt2), "none"),
        (TinyModel::of(Family::GptJ), "nf4"),
    ];
    for (model, quant) in kinds {
        let (work, what) = (Work::new(), format!("{:?}, {quant}", model.family));
        let most = if matches!(model.family, Family::GptOss | Family::Qwen3Moe) { 1.15 } else { 1.05 };
        let (base, rows) = (work.model(&model), work.rows());
        let run_of = Finetune::new(&base, &rows, &work.path("run")).flags("--max-steps 1 --method lora --quant none");
        let adapter = run_of.done();
        let beside: &[(&str, &Path)] = &[("--adapter", &adapter)];
        let flags = format!("-v --quant {quant}");
        let more = format!("{flags} --prompt cat --max-new-tokens 40");
        as_planned(&format!("generate, {what}"), most, run(args("generate", &base, beside, &more)));
        let lines = work.path("lines.txt");
        fs::write(&lines, "the cat sat\n".repeat(9)).unwrap();
        let many = [("--adapter", adapter.as_path()), ("--prompts", &lines)];
        let more = format!("{flags} --batch-size 3 --max-new-tokens 40");
        let together = format!("{flags} --batch-size 9 --max-new-tokens 40");
        as_planned(&format!("texts together, {what}"), most, run(args("generate", &base, &many, &together)));
        // Here all end together, and not beside those that take their places.
        as_planned(&format!("texts, {what}"), 1.5, run(args("generate", &base, &many, &more)));
        let measured = [("--adapter", adapter.as_path()), ("--data", &rows)];
        as_planned(&format!("eval, {what}"), most, run(args("eval", &base, &measured, &flags)));
        let written = [("--adapter", adapter.as_path()), ("--output", &work.path("merged"))];
        as_planned(&format!("merge, {what}"), most, run(args("merge", &base, &written, &format!("{flags} --force"))));
        fs::remove_dir_all(work.path("merged")).unwrap();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn quantising_holds_one_matrix_and_what_it_writes() {
    let work = Work::new();
    let (base, out) = (work.model(&TinyModel::llama()), work.path("out"));
    let with = run(args("quantize", &base, &[("--output", &out)], "-v")).success();
    assert!(with.stderr.contains("this quantising held"), "{with}");
}
