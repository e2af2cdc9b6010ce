//! `--config FILE.toml`: every flag is also a key.

use e2e::{Finetune, Work, run};
use std::fs;

/// A file with the flags of a run as keys, numbers as numbers.
fn toml_of(run: &Finetune) -> String {
    let line = |(key, value): (String, String)| match value.parse::<f64>() {
        Ok(_) => format!("{key} = {value}\n"),
        Err(_) => format!("{key} = {value:?}\n"),
    };
    run.keys().into_iter().map(line).collect()
}

#[test]
fn a_file_does_what_the_flags_do() {
    let work = Work::new();
    let flags = work.finetune().flags("--lora-dropout 0.1 --warmup-steps 2");
    flags.done();
    let (file, other) = (work.path("run.toml"), work.path("other"));
    fs::write(&file, toml_of(&flags.clone().output(&other)) + "no_shuffle = false\n").unwrap();
    run(["finetune".as_ref(), "--config".as_ref(), file.as_os_str()]).success();
    assert_eq!(flags.adapter_bytes(), fs::read(other.join("adapter_model.safetensors")).unwrap());
}

#[test]
fn a_flag_wins_over_the_file() {
    let work = Work::new();
    let file = work.path("run.toml");
    fs::write(&file, "max_steps = 2\nlogging_steps = 1\n").unwrap();
    let short = work.finetune().without(&["--max-steps"]).path("--config", &file);
    short.done();
    assert_eq!(short.losses().len(), 2);
    let long = work.finetune().path("--config", &file).flags("--max-steps 3").output(&work.path("other"));
    long.done();
    assert_eq!(long.losses().len(), 3);
}

#[test]
fn the_resolved_settings_beside_the_result_repeat_the_run() {
    let work = Work::new();
    let first = work.finetune().without(&["--method", "--target-modules"]);
    let folder = first.done();
    let settings = fs::read_to_string(folder.join("config.toml")).unwrap();
    for key in ["method = \"qlora\"", "target_modules = \"all-linear\"", "block_size = 64"] {
        assert!(settings.contains(key), "defaults are written out: `{key}` in {settings}");
    }
    let other = work.path("other");
    let args = [
        "finetune".as_ref(),
        "--config".as_ref(),
        folder.join("config.toml").into_os_string().leak() as &_,
        "--output".as_ref(),
        other.as_os_str(),
    ];
    run(args).success();
    assert_eq!(first.adapter_bytes(), fs::read(other.join("adapter_model.safetensors")).unwrap());
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let work = Work::new();
    let file = work.path("run.toml");
    fs::write(&file, "rank = 4\nlora_aplha = 8\n").unwrap();
    let wrong = work.finetune().path("--config", &file).run();
    wrong.user_error(&["run.toml", "lora_aplha", "line 2", "lora_alpha"]);
}

#[test]
fn a_value_of_the_wrong_kind_is_named_with_its_line() {
    let work = Work::new();
    let file = work.path("run.toml");
    fs::write(&file, "rank = 4\n\nmax_steps = \"many\"\n").unwrap();
    work.finetune().path("--config", &file).run().user_error(&["run.toml", "line 3", "max_steps"]);
}

#[test]
fn a_file_that_is_missing_is_named() {
    let work = Work::new();
    work.finetune().path("--config", work.path("nowhere.toml")).run().user_error(&["nowhere.toml"]);
}

#[test]
fn lists_tables_and_the_other_names_of_flags_are_keys_too() {
    let work = Work::new();
    let with_flags =
        work.finetune().without(&["--per-device-train-batch-size", "--rank", "--lora-alpha", "--learning-rate"]);
    let flags =
        "--batch-size 3 --lora-r 2 --lora_alpha 4 --lr 1e-2 --target-modules q_proj,v_proj --rank-pattern v_proj=1";
    let first = with_flags.clone().flags(flags);
    first.done();
    let file = work.path("run.toml");
    let keys = "batch_size = 3\nlora-r = 2\nlora-alpha = 4\nlr = 1e-2\ntarget_modules = [\"q_proj\", \"v_proj\"]\n[rank_pattern]\nv_proj = 1\n";
    fs::write(&file, keys).unwrap();
    let second = with_flags.without(&["--target-modules"]).path("--config", &file).output(&work.path("other"));
    second.done();
    assert_eq!(first.adapter_bytes(), second.adapter_bytes());
    let overruled = second.flags("--batch-size 2 --overwrite");
    overruled.done();
    assert_ne!(first.adapter_bytes(), overruled.adapter_bytes(), "a flag wins over another name of its key");
}

#[test]
fn a_share_of_the_steps_to_warm_up_is_rounded_up() {
    let work = Work::new();
    let steps = work.finetune().flags("--max-steps 8 --warmup-steps 3");
    let ratio = work.finetune().flags("--max-steps 8 --warmup-ratio 0.3").output(&work.path("other"));
    steps.done();
    ratio.done();
    assert_eq!(steps.adapter_bytes(), ratio.adapter_bytes());
    let written = work.path("third");
    let config = ratio.folder().join("config.toml");
    let args = ["finetune".as_ref(), "--config".as_ref(), config.as_os_str(), "--output".as_ref(), written.as_os_str()];
    run(args).success();
    ratio.clone().flags("--warmup-ratio 1.5 --overwrite").run().user_error(&["--warmup-ratio", "between 0 and 1"]);
    ratio.flags("--warmup-steps 1 --overwrite").run().user_error(&["--warmup-ratio", "--warmup-steps"]);
}
