//! Exit codes, as `halfbyte --help` states them: of every command, whatever can go wrong with it.

use crate::plan::headers_of_65_billion;
use e2e::{Outcome, TinyModel, Work, halfbyte, run_within};
use halfbyte_testkit::LoopbackHub;
use std::{
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// What the user can put right, and what failed.
const USER: i32 = 2;
const FAILURE: i32 = 1;

/// Every command.
const COMMANDS: [&str; 13] = [
    "finetune",
    "generate",
    "chat",
    "data",
    "eval",
    "inspect",
    "merge",
    "quantize",
    "import-config",
    "pull",
    "models",
    "devices",
    "doctor",
];

struct Setup {
    work: Work,
    model: PathBuf,
    rows: PathBuf,
    adapter: PathBuf,
}

impl Setup {
    fn new() -> Setup {
        let work = Work::new();
        let (model, rows, adapter) = (work.model(&TinyModel::llama()), work.rows(), work.finetune().done());
        Setup { work, model, rows, adapter }
    }

    /// A whole command on this model, by its name.
    fn args(&self, command: &str, model: &Path) -> Vec<OsString> {
        let out = self.work.path(&format!("out of {command}"));
        let flags: Vec<(&str, &Path)> = match command {
            "finetune" => vec![("--data", &self.rows), ("--output", &out)],
            "eval" => vec![("--data", &self.rows), ("--adapter", &self.adapter)],
            "data" => vec![("--data", &self.rows)],
            "merge" => vec![("--adapter", &self.adapter), ("--output", &out)],
            "quantize" => vec![("--output", &out)],
            _ => Vec::new(),
        };
        let more = match command {
            "finetune" => "--max-steps 1 --max-length 16 --rank 16 --quant nf4 --target-modules all-linear",
            "generate" => "--prompt cat",
            _ => "",
        };
        let mut args: Vec<OsString> = vec![command.into(), "--model".into(), model.into()];
        args.extend(flags.iter().flat_map(|(flag, path)| [OsString::from(flag), OsString::from(path)]));
        args.extend(more.split_whitespace().map(OsString::from));
        args
    }
}

/// Those that take a model.
const OF_MODELS: [&str; 8] = ["finetune", "generate", "chat", "data", "eval", "inspect", "merge", "quantize"];
/// Those that load its weights.
const LOADING: [&str; 6] = ["finetune", "generate", "chat", "eval", "merge", "quantize"];

#[track_caller]
fn ends(what: &str, command: &mut Command, code: i32) -> Outcome {
    let outcome = Outcome::of(command);
    assert_eq!(outcome.code, Some(code), "{what}: {outcome}");
    let errors = outcome.stderr.lines().filter(|it| it.starts_with("error: ")).count();
    assert_eq!(errors, usize::from(code != 0), "{what}, one sentence: {outcome}");
    outcome
}

fn with(args: impl IntoIterator<Item = OsString>) -> Command {
    let mut command = halfbyte();
    command.args(args);
    command
}

/// With a limit on the size of files, beyond which writes fail as on a full disk.
fn on_a_full_disk(args: Vec<OsString>) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "bash"]).arg(halfbyte().get_program()).args(args);
    command.env("HALFBYTE_CACHE", "/dev/null/halfbyte").env("CUDA_VISIBLE_DEVICES", "");
    command
}

#[test]
fn what_goes_well_ends_with_zero() {
    let it = Setup::new();
    for command in OF_MODELS {
        ends(command, &mut with(it.args(command, &it.model)), 0);
    }
    for command in ["models", "devices", "doctor"] {
        ends(command, &mut with([command.into()]), 0);
    }
    for command in COMMANDS {
        ends(command, &mut with([command.into(), "--help".into()]), 0);
    }
}

#[test]
fn what_the_user_can_put_right_ends_with_two() {
    let it = Setup::new();
    for command in COMMANDS {
        ends(&format!("{command}, a flag that is none"), &mut with([command.into(), "--frobnicate".into()]), USER);
    }
    let (missing, broken, file) = (it.work.path("missing"), it.work.path("broken"), it.work.path("file"));
    TinyModel::llama().write(&broken);
    fs::write(broken.join("config.json"), "{").unwrap();
    fs::write(&file, "no model").unwrap();
    for (what, model) in [("a missing folder", &missing), ("a broken one", &broken), ("a file", &file)] {
        for command in OF_MODELS {
            ends(&format!("{command}, {what}"), &mut with(it.args(command, model)), USER);
        }
    }
    let cut = it.work.path("cut");
    TinyModel::llama().write(&cut);
    let weights = File::options().write(true).open(cut.join("model.safetensors")).unwrap();
    weights.set_len(weights.metadata().unwrap().len() / 2).unwrap();
    let torn = it.work.path("torn");
    TinyModel::llama().write(&torn);
    fs::write(torn.join("tokenizer.json"), "[]").unwrap();
    for command in LOADING {
        ends(&format!("{command}, weights cut off"), &mut with(it.args(command, &cut)), USER);
        ends(&format!("{command}, no tokenizer"), &mut with(it.args(command, &torn)), USER);
    }
    for command in ["finetune", "generate", "chat", "eval", "inspect"] {
        let mut line = with(it.args(command, &it.model));
        ends(&format!("{command}, no such device"), line.args(["--device", "cuda"]), USER);
    }
    for flags in ["--data missing.jsonl", "--data file --layout text"] {
        for command in ["data", "eval"] {
            let args = [command, "--model", it.model.to_str().unwrap()].map(OsString::from);
            let mut line = with(args);
            line.args(flags.split_whitespace()).current_dir(it.work.path(""));
            ends(&format!("{command} {flags}"), &mut line, USER);
        }
    }
    ends("import-config", &mut with(["import-config".into(), missing.into_os_string()]), USER);
    ends("pull of nothing", &mut with(["pull".into()]), USER);
    ends("pull of a path", &mut with(["pull".into(), "./model".into()]), USER);
    ends("pull without a network", &mut with(["pull".into(), "acme/tiny".into()]), USER);
    for command in OF_MODELS {
        let mut line = with(it.args(command, &it.model));
        ends(&format!("{command}, too many threads"), line.args(["--threads", "100000"]), USER);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_there_is_no_memory_for_ends_with_two() {
    let it = Setup::new();
    let large = it.work.path("65b");
    headers_of_65_billion(&large);
    for command in LOADING {
        let args = it.args(command, &large);
        let outcome = run_within(2_000_000, args).user_error(&["memory are free", "needs about"]);
        assert_eq!(outcome.stderr.matches("error: ").count(), 1, "{outcome}");
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_ends_with_one() {
    let it = Setup::new();
    for command in ["finetune", "merge", "quantize"] {
        let outcome = ends(command, &mut on_a_full_disk(it.args(command, &it.model)), FAILURE);
        assert!(outcome.stderr.contains("os error") || outcome.stderr.contains("too large"), "{outcome}");
        let left = it.work.path(&format!("out of {command}"));
        assert!(!left.join("config.json").exists() && !left.join("adapter_config.json").exists(), "{command}");
    }
    let hub = LoopbackHub::new();
    hub.add_folder("acme/tiny", &it.model);
    let mut pull = on_a_full_disk(vec!["pull".into(), "acme/tiny".into()]);
    pull.env("NO_PROXY", "127.0.0.1").env("HF_ENDPOINT", hub.endpoint()).env("HF_HOME", it.work.path("hf"));
    ends("pull", pull.env_remove("HF_HUB_CACHE").env_remove("HF_HUB_OFFLINE"), FAILURE);
    // Where results are written there is no room, either.
    for command in ["generate", "eval", "inspect", "quantize", "data", "devices", "doctor", "models"] {
        let args = match command {
            "devices" | "doctor" => vec![command.into()],
            "models" => vec![command.into(), "--json".into()],
            _ => it.args(command, &it.model),
        };
        let _ = fs::remove_dir_all(it.work.path(&format!("out of {command}")));
        let full = File::options().write(true).open("/dev/full").unwrap();
        let outcome = with(args).stdout(full).output().expect("halfbyte starts");
        let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert_eq!(outcome.status.code(), Some(FAILURE), "{command} > /dev/full: {said}");
        assert!(said.contains("No space left") && !said.contains("panicked"), "{command}: {said}");
    }
}

#[test]
fn numbers_that_are_none_end_with_one_where_they_were_computed_and_with_two_where_they_were_read() {
    let it = Setup::new();
    let diverging = it.work.finetune().flags("--learning-rate 1e38 --max-steps 2").output(&it.work.path("diverging"));
    ends("a loss", &mut diverging.command(), FAILURE);
    let weights = it.work.path("nan");
    TinyModel::llama().write(&weights);
    let path = weights.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    for command in LOADING {
        ends(&format!("{command}, weights"), &mut with(it.args(command, &weights)), USER);
    }
}

#[test]
fn the_codes_are_stated_where_people_look() {
    let help = ends("help", &mut with(["--help".into()]), 0).stdout;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["Exit codes: 0 all is done", "1 something failed", "2 something that can be put right", "130 it was"] {
        assert!(help.contains(part), "`{part}` is not in {help}");
    }
}
