//! Text out of a base, and out of adapters chosen by name.

use e2e::{Finetune, Outcome, TinyModel, Work, halfbyte, run, write_jsonl};
use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

/// A base and two adapters, each of which knows one sentence by heart.
struct Adapters {
    _work: Work,
    base: PathBuf,
    land: PathBuf,
    water: PathBuf,
}

const LAND: &str = "the cat sat on the mat";
const WATER: &str = "the cat swam in a sea";

impl Adapters {
    fn train() -> Adapters {
        let work = Work::new();
        let base = work.model(&TinyModel::llama());
        let learn = |name: &str, sentence: &str| {
            let data = work.path(&format!("{name}.jsonl"));
            write_jsonl(&data, &[Some(sentence); 2]);
            Finetune::new(&base, &data, &work.path(name)).flags("--max-steps 60 --append-eos on").done()
        };
        let (land, water) = (learn("land", LAND), learn("water", WATER));
        Adapters { _work: work, base, land, water }
    }

    fn ask(&self, command: &str, rest: &[OsString]) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec![command.into(), "--model".into(), self.base.clone().into()];
        args.extend(["--max-new-tokens", "8", "--temperature", "0", "--compute-dtype", "f32"].map(OsString::from));
        args.extend_from_slice(rest);
        args
    }

    fn generate(&self, rest: &[OsString]) -> Outcome {
        let mut args = self.ask("generate", rest);
        args.extend(["--prompt".into(), "the cat".into()]);
        run(args).success()
    }
}

fn named(name: &str, dir: &Path) -> [OsString; 2] {
    let mut value = OsString::from(format!("{name}="));
    value.push(dir);
    ["--adapter".into(), value]
}

#[test]
fn an_adapter_changes_what_is_generated_and_each_name_brings_its_own() {
    let it = Adapters::train();
    let base = it.generate(&["--quant".into(), "nf4".into()]).stdout;
    assert_eq!(base, it.generate(&["--quant".into(), "nf4".into()]).stdout, "greedy text is always the same");
    let land = it.generate(&["--adapter".into(), it.land.clone().into()]).stdout;
    let water = it.generate(&["--adapter".into(), it.water.clone().into()]).stdout;
    assert_eq!(
        (land.trim(), water.trim()),
        ("sat on the mat", "swam in a sea"),
        "what they were trained on, to its end"
    );
    assert!(base != land && base != water);

    let both: Vec<OsString> = named("dry", &it.land).into_iter().chain(named("wet", &it.water)).collect();
    let outcome = it.generate(&both);
    assert_eq!(outcome.stdout, format!("{land}{water}"), "each in turn");
    assert!(outcome.stderr.contains("[dry]") && outcome.stderr.contains("[wet]"), "{outcome}");
    let one = [both.clone(), vec!["--use-adapter".into(), "wet".into()]].concat();
    assert_eq!(it.generate(&one).stdout, water);
    let none = [both, vec!["--use-adapter".into(), "none".into()]].concat();
    assert_eq!(it.generate(&none).stdout, base);
}

#[test]
fn a_chat_switches_adapters_without_loading_again() {
    let it = Adapters::train();
    let both: Vec<OsString> = named("dry", &it.land).into_iter().chain(named("wet", &it.water)).collect();
    let mut child = halfbyte()
        .args(it.ask("chat", &both))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("halfbyte starts");
    let said = "the cat\n/reset\n/adapter wet\nthe cat\n/reset\n/adapter moist\n/nonsense\n/adapters\n/adapter none\nthe cat\n/reset\n/adapter wet\n/unload wet\nthe cat\n/adapter wet\n/unload\n/quit\nthe cat\n";
    child.stdin.take().expect("a pipe").write_all(said.as_bytes()).expect("halfbyte reads");
    let outcome = Outcome::new("chat".into(), &child.wait_with_output().expect("a child")).success();
    let answers: Vec<&str> = outcome.stdout.lines().map(str::trim).collect();
    let base = it.generate(&["--quant".into(), "nf4".into()]).stdout;
    assert_eq!(answers, ["sat on the mat", "swam in a sea", base.trim(), base.trim()], "{outcome}");
    for part in [
        "adapter: wet",
        "no adapter `moist`; there is dry, wet, none",
        "no adapter `wet`; there is dry, none",
        "/nonsense is unknown",
        "/help",
    ] {
        assert!(outcome.stderr.contains(part), "`{part}`: {outcome}");
    }
}

#[test]
fn the_second_turn_of_a_chat_goes_on_from_what_was_shown() {
    let work = Work::new();
    let base = work.model(&TinyModel::llama());
    let args = |command: &str| -> Vec<OsString> {
        let mut args: Vec<OsString> = vec![command.into(), "--model".into(), base.clone().into()];
        args.extend(["--max-new-tokens", "4", "--compute-dtype", "f32"].map(OsString::from));
        args
    };
    let mut child = halfbyte()
        .args(args("chat"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("halfbyte starts");
    child.stdin.take().expect("a pipe").write_all(b"the cat\nthe dog\n").expect("halfbyte reads");
    let outcome = Outcome::new("chat".into(), &child.wait_with_output().expect("a child")).success();
    let [first, second] = outcome.stdout.lines().collect::<Vec<_>>()[..] else { panic!("two answers: {outcome}") };
    let mut whole = args("generate");
    whole.extend(["--prompt".into(), format!("the cat {first}\nthe dog").into()]);
    assert_eq!(run(whole).success().stdout.trim_end(), second, "{outcome}");
}

#[test]
fn sampling_repeats_with_its_seed_and_the_repetition_penalty_acts() {
    let work = Work::new();
    let base = work.model(&TinyModel::llama());
    let text = |flags: &str| {
        let mut args: Vec<OsString> =
            vec!["generate".into(), "--model".into(), base.clone().into(), "--prompt".into(), "the dog".into()];
        args.extend(flags.split_whitespace().map(OsString::from));
        run(args).success().stdout
    };
    let sampled = "--max-new-tokens 24 --temperature 3 --top-p 0.95 --top-k 30 --seed";
    assert_eq!(text(&format!("{sampled} 1")), text(&format!("{sampled} 1")));
    assert_ne!(text(&format!("{sampled} 1")), text(&format!("{sampled} 2")));
    assert_eq!(
        text("--temperature 5 --top-k 1"),
        text("--temperature 0"),
        "one token to choose from is the most probable one"
    );
    let plain = text("--max-new-tokens 24");
    assert_ne!(plain, text("--max-new-tokens 24 --repetition-penalty 50"));
}

#[test]
fn a_gpt_neo_generates_the_same_with_its_cache_as_it_was_trained() {
    let work = Work::new();
    let base = work.model(&TinyModel::gpt_neo());
    let data = work.path("one.jsonl");
    // Longer than the local layer's window of four.
    write_jsonl(&data, &[Some("the dog ran over the hill and slept all day"); 2]);
    let run_ = Finetune::new(&base, &data, &work.path("run")).flags("--max-steps 80 --append-eos on");
    let folder = run_.done();
    let args: [OsString; 7] = [
        "generate".into(),
        "--model".into(),
        base.into(),
        "--adapter".into(),
        folder.into(),
        "--prompt".into(),
        "the dog".into(),
    ];
    assert_eq!(run(args).success().stdout.trim(), "ran over the hill and slept all day");
}

#[test]
fn a_name_that_is_taken_or_unknown_is_refused() {
    let work = Work::new();
    let folder = work.finetune().done();
    let base = work.model(&TinyModel::llama());
    let ask = |rest: &[OsString]| {
        let mut args: Vec<OsString> =
            ["generate", "--prompt", "the", "--max-new-tokens", "1", "--model"].map(OsString::from).to_vec();
        args.push(base.clone().into());
        args.extend_from_slice(rest);
        run(args)
    };
    let twice: Vec<OsString> = named("a", &folder).into_iter().chain(named("a", &folder)).collect();
    ask(&twice).user_error(&["`a`", "taken", "NAME=DIR"]);
    let unknown: Vec<OsString> = named("a", &folder).into_iter().chain(["--use-adapter".into(), "b".into()]).collect();
    ask(&unknown).user_error(&["`b`", "a, none"]);
    ask(&["--top-p".into(), "1.5".into()]).user_error(&["--top-p"]);
}
