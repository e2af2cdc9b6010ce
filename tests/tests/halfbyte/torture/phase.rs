//! What is disturbed: commands that write, each with what they leave when nobody disturbs them.

use e2e::{
    Finetune, TinyModel, Work, halfbyte,
    traced::{Calls, Watched, watch},
};
use halfbyte_testkit::LoopbackHub;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// The commands, in the order in which a report names them.
pub(super) const NAMES: [&str; 8] = ["adapter", "best", "paged", "full", "quantize", "merge", "tokens", "pull"];

type Line = Box<dyn Fn(&Path) -> Command>;

/// A command that writes into a folder of its own, its area.
pub(super) struct Phase {
    pub(super) name: &'static str,
    begin: Line,
    go_on: Line,
    /// What lies in the area before it begins.
    before: Option<Line>,
    /// Calls of an undisturbed command.
    changing: usize,
    reading: usize,
    /// What it leaves: contents by path. Files whose contents are not the same twice are not among them.
    left: BTreeMap<PathBuf, Vec<u8>>,
    names: Vec<PathBuf>,
    /// What its `model` was before.
    old: Option<BTreeMap<PathBuf, Vec<u8>>>,
    work: Work,
}

/// A folder in which a phase runs once.
pub(super) struct Area(TempDir);

impl Area {
    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Phase {
    pub(super) fn of(name: &str) -> Phase {
        match name {
            "adapter" => training("adapter", "--save-steps 2 --save-total-limit 1 --max-steps 5 --lora-dropout 0.1"),
            "best" => training(
                "best",
                "--save-steps 2 --max-steps 4 --eval-split 2 --eval-steps 1 --load-best-model-at-end --save-total-limit 2",
            ),
            "paged" => training("paged", "--rank 16 --save-steps 2 --max-steps 4 --optim-resident-mib 0.03125"),
            "full" => training("full", "--method full --learning-rate 1e-4 --save-steps 2 --max-steps 3"),
            "quantize" => quantizing(),
            "merge" => merging(),
            "tokens" => keeping_tokens(),
            "pull" => pulling(),
            _ => panic!("no such phase: {name}"),
        }
    }

    fn new(name: &'static str, work: Work, begin: Line, go_on: Line, before: Option<Line>) -> Phase {
        let mut phase = Phase {
            name,
            begin,
            go_on,
            before,
            changing: 0,
            reading: 0,
            left: BTreeMap::new(),
            names: Vec::new(),
            old: None,
            work,
        };
        let (first, second) = (phase.area(), phase.area());
        phase.old = phase.before.is_some().then(|| contents(&first.path().join("model")));
        for (area, calls) in [(&first, Calls::Changing), (&second, Calls::Reading)] {
            let ended = watch(&mut phase.begin(area), &phase.root(), calls, None);
            assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
            *(if calls == Calls::Changing { &mut phase.changing } else { &mut phase.reading }) = ended.calls;
        }
        phase.left = contents(first.path());
        phase.names = phase.left.keys().cloned().collect();
        let again = contents(second.path());
        assert!(phase.left.keys().eq(again.keys()), "{name}: {:?} {:?}", phase.names, again.keys());
        phase.left.retain(|path, bytes| again[path] == *bytes);
        assert!(!phase.left.is_empty());
        phase
    }

    /// What a phase reads and writes lies below it.
    pub(super) fn root(&self) -> PathBuf {
        self.work.path("")
    }

    pub(super) fn area(&self) -> Area {
        let area = Area(TempDir::with_prefix_in("area ", self.root()).expect("a temporary folder"));
        if let Some(before) = &self.before {
            assert!(before(area.path()).output().expect("halfbyte starts").status.success());
        }
        area
    }

    pub(super) fn begin(&self, area: &Area) -> Command {
        (self.begin)(area.path())
    }

    pub(super) fn go_on(&self, area: &Area) -> Command {
        (self.go_on)(area.path())
    }

    pub(super) fn calls(&self, kind: Calls) -> usize {
        if kind == Calls::Changing { self.changing } else { self.reading }
    }

    /// What must hold whenever the command has ended, however it did.
    pub(super) fn check_between(&self, area: &Area, ended: &Watched, seed: &str) {
        let about = || format!("{}: {:?}, {:?}\n{}\n{seed}", self.name, ended.code, ended.disturbed, ended.stderr);
        let model = contents(&area.path().join("model"));
        let whole = |it: &BTreeMap<PathBuf, Vec<u8>>| *it == model;
        let new = self.left.iter().filter_map(|(path, it)| Some((path.strip_prefix("model").ok()?.into(), it.clone())));
        let new: BTreeMap<PathBuf, Vec<u8>> = new.collect();
        if let Some(old) = &self.old {
            assert!(whole(old) || whole(&new), "neither the old model nor the new: {:?}\n{}", model.keys(), about());
        } else if ["quantize", "merge"].contains(&self.name) {
            assert!(model.is_empty() || whole(&new), "a part of a model: {:?}\n{}", model.keys(), about());
        }
        // What makes a folder a result was written last. A cache that could not be written is no part of it.
        if self.name != "tokens" && area.path().join("run/summary.json").exists() {
            remove_hidden(&area.path().join("run"));
            self.check(area, &about());
        }
    }

    /// What must hold when a command has ended well.
    pub(super) fn check(&self, area: &Area, about: &str) {
        let mut found = contents(area.path());
        found.retain(|path, _| !is_foreign_draft(path));
        let names: Vec<&PathBuf> = found.keys().collect();
        assert!(self.names.iter().eq(names.iter().copied()), "{:?} in place of {:?}\n{about}", names, self.names);
        found.retain(|path, _| self.left.contains_key(path));
        for (path, bytes) in &found {
            assert!(self.left[path] == *bytes, "{}: {} differs\n{about}", self.name, path.display());
        }
    }
}

/// Every file below a folder; of the lines of a log what does not depend on time.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() && !path.is_symlink() {
                open.push(path);
                continue;
            }
            // Nothing depends on it.
            if path.ends_with("CACHEDIR.TAG") {
                continue;
            }
            let mut bytes = fs::read(&path).expect("a file");
            if path.ends_with("metrics.jsonl") {
                bytes = without_times(&bytes);
            }
            found.insert(path.strip_prefix(folder).expect("it lies inside").to_owned(), bytes);
        }
    }
    found
}

/// In a cache nobody knows whose a draft is, before it is old.
fn is_foreign_draft(path: &Path) -> bool {
    let name = path.file_name().map_or("".into(), |it| it.to_string_lossy());
    path.starts_with("hf") && name.ends_with(".tmp") || path.starts_with("cache") && name.starts_with(".tmp-")
}

fn without_times(log: &[u8]) -> Vec<u8> {
    let line = |it: &[u8]| {
        let mut line: Value = serde_json::from_slice(it).expect("each line of a log is an object");
        let line = line.as_object_mut().expect("each line of a log is an object");
        line.retain(|key, _| key != "seconds" && key != "tokens_per_second");
        format!("{}\n", Value::Object(line.clone())).into_bytes()
    };
    log.split(|it| *it == b'\n').filter(|it| !it.is_empty()).flat_map(line).collect()
}

/// A run into `run`, on two rows at a time.
fn training(name: &'static str, flags: &str) -> Phase {
    let work = Work::new();
    let mut run = work.finetune().flags("--threads 1");
    if flags.contains("full") {
        run = run.without(&["--quant", "--rank", "--lora-alpha", "--target-modules"]);
    }
    let run = run.flags(flags);
    let at = |run: &Finetune, area: &Path| run.clone().output(&area.join("run"));
    let again = run.clone();
    Phase::new(
        name,
        work,
        Box::new(move |area| at(&run, area).command()),
        Box::new(move |area| {
            let run = at(&again, area);
            // Before its first line there is nothing to go on from, and it is begun as it was.
            if area.join("run/config.toml").exists() { run.flags("--resume") } else { run }.command()
        }),
        None,
    )
}

fn quantizing() -> Phase {
    let work = Work::new();
    let model = work.model(&TinyModel { shards: 2, ..TinyModel::llama() });
    let quantize = move |area: &Path, flags: &str| {
        let mut command = halfbyte();
        command.args(["quantize", "--threads", "1", "--model"]).arg(&model).arg("--output").arg(area.join("model"));
        command.args(flags.split_whitespace());
        command
    };
    let (before, begin, go_on) = (quantize.clone(), quantize.clone(), quantize);
    Phase::new(
        "quantize",
        work,
        Box::new(move |area| begin(area, "--overwrite")),
        Box::new(move |area| go_on(area, "--overwrite")),
        Some(Box::new(move |area| before(area, "--quant fp4"))),
    )
}

fn merging() -> Phase {
    let work = Work::new();
    let adapter = work.finetune().done();
    let model = work.model(&TinyModel::llama());
    let merge = move |area: &Path| {
        let mut command = halfbyte();
        command
            .args(["merge", "--threads", "1", "--dtype", "f32", "--model"])
            .arg(&model)
            .arg("--adapter")
            .arg(&adapter);
        command.arg("--output").arg(area.join("model"));
        command
    };
    let again = merge.clone();
    let go_on = move |area: &Path| {
        let mut command = again(area);
        command.arg("--overwrite");
        command
    };
    Phase::new("merge", work, Box::new(merge), Box::new(go_on), None)
}

/// A run whose tokens are kept; nothing but the cache is looked at.
fn keeping_tokens() -> Phase {
    let work = Work::new();
    let run = work.finetune().flags("--threads 1 --max-steps 1 --save-steps 0 --overwrite");
    let command = move |area: &Path| {
        let mut command = run.clone().output(&area.join("run")).command();
        command.env("HALFBYTE_CACHE", area.join("cache"));
        command
    };
    Phase::new("tokens", work, Box::new(command.clone()), Box::new(command), None)
}

fn pulling() -> Phase {
    let (work, hub) = (Work::new(), LoopbackHub::new());
    hub.add_folder("acme/tiny", &work.model(&TinyModel { shards: 2, ..TinyModel::llama() }));
    let pull = move |area: &Path| {
        let mut command = halfbyte();
        command.args(["pull", "acme/tiny"]).env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE");
        command.env("NO_PROXY", "127.0.0.1").env("HF_ENDPOINT", hub.endpoint()).env("HF_HOME", area.join("hf"));
        command
    };
    let pull = std::sync::Arc::new(pull);
    let again = std::sync::Arc::clone(&pull);
    Phase::new("pull", work, Box::new(move |area| pull(area)), Box::new(move |area| again(area)), None)
}

/// Removes what is being written or removed, which the next command that writes there would.
pub(super) fn remove_hidden(folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let is_rest = name == ".lock" || [".tmp-", ".gone-", ".lock-"].iter().any(|it| name.starts_with(it));
        match (path.is_dir() && !path.is_symlink(), is_rest) {
            (true, true) => fs::remove_dir_all(path).expect("a folder"),
            (true, false) => remove_hidden(&path),
            (false, true) => fs::remove_file(path).expect("a file"),
            (false, false) => {}
        }
    }
}
