//! Names in the place of paths: from a hub, which stands on the loopback interface here, through the cache to a result.

use e2e::{Outcome, ROWS, TinyModel, Work, halfbyte, write_parquet};
use halfbyte_testkit::{Fault, LoopbackHub, Seen};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

const TOKEN: &str = "hf_very_secret";

struct Setup {
    work: Work,
    hub: LoopbackHub,
}

impl Setup {
    /// A hub with a model, and data in two files.
    fn new() -> Setup {
        let (work, hub) = (Work::new(), LoopbackHub::new());
        hub.add_folder("acme/tiny", &work.model(&TinyModel::llama()));
        let shard = |name: &str, rows: &[&str]| {
            let path = work.path(name);
            write_parquet(&path, &rows.iter().map(|it| Some(*it)).collect::<Vec<_>>());
            fs::read(path).unwrap()
        };
        let (first, second, test) =
            (shard("first", &ROWS[..5]), shard("second", &ROWS[5..]), shard("test", &ROWS[..2]));
        let files: [(&str, &[u8]); 3] = [
            ("data/train-00000-of-00002.parquet", &first),
            ("data/train-00001-of-00002.parquet", &second),
            ("data/test-00000-of-00001.parquet", &test),
        ];
        hub.add("datasets/acme/rows", "main", &files);
        Setup { work, hub }
    }

    /// A command that may ask this hub, with a cache of the test's own.
    fn command(&self, args: &str) -> Command {
        let mut command = halfbyte();
        command.args(args.split_whitespace()).env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE");
        // A proxy of the person's would not find the loopback interface.
        command
            .env("NO_PROXY", "127.0.0.1")
            .env("HF_ENDPOINT", self.hub.endpoint())
            .env("HF_HOME", self.work.path("hf"));
        command.current_dir(self.work.path("."));
        command
    }

    fn run(&self, args: &str) -> Outcome {
        Outcome::of(&mut self.command(args))
    }

    fn offline(&self, args: &str) -> Outcome {
        Outcome::of(self.command(args).env("HF_HUB_OFFLINE", "1"))
    }

    /// A repository with one large file, of three pieces; and the bytes.
    fn add_large(&self) -> Vec<u8> {
        let bytes: Vec<u8> = (0..40u32 << 20).map(|it| (it.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        self.hub.add("acme/large", "main", &[("config.json", b"{}"), ("model.safetensors", &bytes)]);
        bytes
    }

    fn blobs(&self) -> PathBuf {
        self.work.path("hf/hub/models--acme--large/blobs")
    }

    fn names(&self, ending: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.blobs()) else { return Vec::new() };
        entries.flatten().map(|it| it.path()).filter(|it| it.to_string_lossy().ends_with(ending)).collect()
    }
}

const FLAGS: &str = "--method qlora --quant nf4 --rank 4 --max-length 16 --per-device-train-batch-size 2 --learning-rate 1e-2 --compute-dtype f32 --seed 42";

#[test]
fn from_an_empty_cache_to_an_adapter_and_its_text() {
    let it = Setup::new();
    let train = format!("finetune --model acme/tiny --data acme/rows --eval-data acme/rows --output run {FLAGS}");
    let outcome = it.run(&format!("{train} --max-steps 2 --save-steps 2")).success();
    let asked = format!("acme/tiny: asking {}", it.hub.endpoint());
    for part in [
        asked.as_str(),
        "acme/rows: asking",
        "acme/rows: taking the split train",
        "acme/rows: taking the split test",
        " 8 rows read",
    ] {
        assert!(outcome.stderr.contains(part), "`{part}`: {outcome}");
    }
    let config: Value = serde_json::from_slice(&fs::read(it.work.path("run/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["base_model_name_or_path"], &config["revision"]), (&"acme/tiny".into(), &Value::Null));
    let settings = fs::read_to_string(it.work.path("run/config.toml")).unwrap();
    assert!(
        settings.contains("model = \"acme/tiny@")
            && settings.contains(":default/train\"")
            && settings.contains(":default/test\""),
        "{settings}"
    );

    it.hub.forget();
    let said = it.run("generate --model acme/tiny --adapter run --prompt the --max-new-tokens 3").success();
    assert_eq!(
        said.stdout,
        it.offline("generate --model acme/tiny --adapter run --prompt the --max-new-tokens 3").stdout
    );
    it.offline("eval --model acme/tiny --data acme/rows:test --json").json();
    it.offline("inspect --model acme/tiny --json").json();
    it.offline("quantize --model acme/tiny --output quantised").success();
    it.offline("merge --model acme/tiny --adapter run --output merged --dtype f32").success();
    assert!(it.hub.seen().is_empty(), "nothing that is in the cache was asked for: {:?}", it.hub.seen());

    // The adapter by a name of its own; and the run goes on with the model that it began with, wherever the name has moved.
    it.hub.add_folder("acme/adapter", &it.work.path("run"));
    let named = it.run("generate --model acme/tiny --adapter acme/adapter --prompt the --max-new-tokens 3").success();
    assert_eq!(named.stdout, said.stdout);
    it.hub.add_folder("acme/tiny", &it.work.model(&TinyModel { seed: 7, ..TinyModel::llama() }));
    it.run("pull acme/tiny").success();
    let resumed = format!("{train} --max-steps 4 --save-steps 2 --resume");
    it.run(&resumed).user_error(&["another run", "model was", "acme/tiny@"]);
    it.offline("finetune --config run/config.toml --max-steps 4 --resume --output run").success();
}

#[test]
fn names_that_give_nothing_say_why_and_no_secret_is_told() {
    let it = Setup::new();
    it.hub.add("acme/closed", "main", &[("config.json", b"{}")]);
    it.hub.gate("acme/closed");
    it.run("inspect --model acme/closed").user_error(&["acme/closed: is gated", "HF_TOKEN"]);
    it.run("inspect --model acme/none").user_error(&["acme/none", "no public model", "no such path"]);
    it.run("eval --model acme/tiny --data acme/rows:dev").user_error(&["no split dev; there is test, train"]);
    it.run("chat --model acme/tiny --adapter acme/tiny").user_error(&["is a model and no adapter"]);
    it.offline("inspect --model acme/other").user_error(&["HF_HUB_OFFLINE", "halfbyte pull acme/other"]);
    it.run("pull").user_error(&["ORG/NAME"]);
    it.run("pull ./tiny").user_error(&["./tiny", "ORG/NAME"]);
    fs::create_dir(it.work.path("models")).unwrap();
    it.hub.forget();
    it.run("inspect --model models/tyny").user_error(&["the folder models holds no tyny", "models/tyny@main"]);
    assert!(it.hub.seen().is_empty(), "a slip in a path is told to nobody");

    it.hub.require_token(TOKEN);
    it.add_large();
    it.hub.faults([Fault::Status(503, None), Fault::Status(500, None)]);
    let outcome =
        Outcome::of(it.command("pull acme/large --verbose").env("HF_TOKEN", TOKEN).env("HALFBYTE_LOG", "trace"));
    let outcome = outcome.success();
    assert!(!outcome.stderr.contains(TOKEN) && !outcome.stderr.contains("signature"), "{outcome}");
}

#[test]
fn a_killed_pull_goes_on_from_the_pieces_that_it_had() {
    let it = Setup::new();
    let bytes = it.add_large();
    it.hub.slow(Duration::from_millis(1));
    let mut child = it.command("pull acme/large").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    // The journal of the large file: a line for its size, and one for a piece.
    let has_piece = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.starts_with(&bytes.len().to_string()) && text.lines().count() > 1
    };
    while !it.names(".pieces.incomplete").iter().any(has_piece) {
        assert!(begun.elapsed() < Duration::from_secs(120), "no piece came");
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!it.names("incomplete").is_empty());
    it.offline("inspect --model acme/large").user_error(&["is not there"]);
    it.hub.slow(Duration::ZERO);
    it.hub.forget();
    let outcome = it.run("pull acme/large").success();
    assert!(outcome.stderr.contains("came earlier"), "{outcome}");
    let seen = it.hub.seen();
    let again = |it: &&Seen| it.range.as_deref().is_some_and(|it| it.starts_with("bytes=0-"));
    assert_eq!(seen.iter().filter(again).count(), 0, "the first piece came again: {outcome}");
    assert!(fs::read(Path::new(outcome.stdout.trim()).join("model.safetensors")).unwrap() == bytes);
    assert_eq!(it.names("incomplete").len(), 0);
}

#[test]
fn two_processes_fill_one_cache_and_fetch_everything_once() {
    let it = Setup::new();
    let bytes = it.add_large();
    it.hub.slow(Duration::from_millis(1));
    let both = [(); 2].map(|()| {
        let mut command = it.command("pull acme/large");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    for child in both {
        let outcome = Outcome::new("pull".into(), &child.wait_with_output().unwrap()).success();
        assert!(fs::read(Path::new(outcome.stdout.trim()).join("model.safetensors")).unwrap() == bytes);
    }
    assert_eq!(it.hub.seen().iter().filter(|it| it.storage).count(), 3, "pieces");
    assert_eq!(it.names("incomplete").len(), 0);
}

#[cfg(unix)]
#[test]
fn a_disk_that_is_full_in_the_middle_keeps_what_came() {
    let it = Setup::new();
    let bytes = it.add_large();
    let plain = it.command("pull acme/large");
    // Past 20 MiB the system refuses to write, as it does where a disk is full.
    let mut limited = Command::new("bash");
    limited
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 20480; exec \"$0\" \"$@\"")
        .arg(plain.get_program())
        .args(plain.get_args());
    limited.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
    limited.env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE");
    Outcome::of(&mut limited).failure(&["What has come is kept", "HF_HOME"]);
    it.hub.forget();
    let outcome = it.run("pull acme/large").success();
    assert!(outcome.stderr.contains("16.0 MiB came earlier"), "{outcome}");
    assert!(fs::read(Path::new(outcome.stdout.trim()).join("model.safetensors")).unwrap() == bytes);
}

/// The repositories of which `tests/fixtures/hub_layout.json` has the layout that huggingface_hub gave them.
fn add_layout(hub: &LoopbackHub) {
    let weights = [b'w'; 2000];
    let files = |config: &'static [u8]| -> [(&str, &[u8]); 5] {
        [
            ("README.md", b"not needed"),
            ("config.json", config),
            ("tokenizer.json", b"{}"),
            ("model.safetensors", &weights),
            ("additional_chat_templates/tool.jinja", b"{{ x }}"),
        ]
    };
    hub.add("acme/layout", "main", &files(b"{}"));
    hub.add("acme/layout", "v1.0", &files(b"{\"v\": 1}"));
    hub.add(
        "datasets/acme/rows",
        "main",
        &[("data/train-00000-of-00001.parquet", b"rows"), ("README.md", b"not needed")],
    );
}

/// Links by their targets, texts of `refs`, lengths of other files.
fn layout(root: &Path) -> BTreeMap<String, Value> {
    let (mut found, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            match kind {
                it if it.is_dir() => open.push(path),
                it if it.is_symlink() => drop(found.insert(name, json!({ "link": fs::read_link(path).unwrap() }))),
                _ if name.contains("/refs/") => {
                    drop(found.insert(name, json!({ "text": fs::read_to_string(path).unwrap() })))
                }
                _ => drop(found.insert(name, json!({ "bytes": path.metadata().unwrap().len() }))),
            }
        }
    }
    // Notes of each program's own: lists of what there is, which either does without, the text for makers of backups, and locks.
    found.retain(|name, _| !name.contains("/trees/") && !name.starts_with("CACHEDIR") && !name.starts_with(".locks"));
    found
}

fn pull_layout(it: &Setup) {
    it.run("pull acme/layout acme/layout@v1.0 --data acme/rows").success();
}

#[cfg(unix)]
#[test]
fn the_cache_has_the_layout_that_huggingface_hub_gives_it() {
    let it = Setup::new();
    add_layout(&it.hub);
    pull_layout(&it);
    let wanted: BTreeMap<String, Value> = serde_json::from_str(include_str!("../../fixtures/hub_layout.json")).unwrap();
    assert_eq!(layout(&it.work.path("hf/hub")), wanted);
}

/// With `HALFBYTE_PYTHON` set to an interpreter that has huggingface_hub; the fixture above is what it prints.
#[cfg(unix)]
#[test]
fn what_either_program_writes_the_other_reads() {
    let Some(interpreter) = std::env::var_os("HALFBYTE_PYTHON") else {
        return e2e::skipped("HALFBYTE_PYTHON names no interpreter with huggingface_hub");
    };
    let it = Setup::new();
    add_layout(&it.hub);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/hub.py");
    let python = |what: &str, offline: &str| -> Value {
        let mut command = Command::new(&interpreter);
        command
            .arg(&script)
            .args([what, "acme/layout", "acme/rows"])
            .env("HF_HUB_OFFLINE", offline)
            .env_remove("HF_HUB_CACHE");
        command.env("HF_ENDPOINT", it.hub.endpoint()).env("HF_HOME", it.work.path("hf")).env("NO_PROXY", "127.0.0.1");
        let output = command.output().expect("the interpreter starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("the script prints JSON")
    };
    // Written there, read here.
    python("fetch", "0");
    let theirs = layout(&it.work.path("hf/hub"));
    let wanted: BTreeMap<String, Value> = serde_json::from_str(include_str!("../../fixtures/hub_layout.json")).unwrap();
    assert_eq!(theirs, wanted, "the fixture is what this version writes");
    it.hub.forget();
    let listed = it.offline("models --json").json();
    assert_eq!(listed.as_array().unwrap().len(), 3, "{listed:#}");
    // They are found, and are what they are.
    it.offline("inspect --model acme/layout@v1.0").user_error(&["snapshots", "config.json"]);
    pull_layout(&it);
    assert!(it.hub.seen().iter().all(|it| !it.path.contains("resolve")), "nothing of it was fetched again");
    // And the other way round.
    fs::remove_dir_all(it.work.path("hf")).unwrap();
    pull_layout(&it);
    let read = python("read", "1");
    assert_eq!(
        (&read["files"]["config.json"], &read["at_tag"], &read["rows"]),
        (&"{}".into(), &"{\"v\": 1}".into(), &"rows".into())
    );
    assert_eq!(read["warnings"], json!([]));
    assert_eq!(read["repos"]["acme/layout"], json!({ "bytes": 2000 + 2 + 7 + 8, "refs": ["main", "v1.0"] }));
}

/// A proxy that connects its clients with whom they ask for; and whom they asked for.
fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (format!("http://{}", listener.local_addr().unwrap()), Arc::<Mutex<Vec<String>>>::default());
    let seen = asked.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            assert!(first.starts_with("CONNECT "), "{first}");
            lines.map_while(Result::ok).find(String::is_empty);
            let to = first.split(' ').nth(1).unwrap().to_owned();
            let server = TcpStream::connect(&to).unwrap();
            seen.lock().unwrap().push(to);
            (&client).write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
                thread::spawn(move || {
                    // Either side may go at any time.
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    (address, asked)
}

#[test]
fn a_proxy_is_asked_unless_it_is_not_to_be() {
    let it = Setup::new();
    let (address, asked) = proxy();
    let pull = |no_proxy: &str, home: &str| {
        let mut command = it.command("pull acme/tiny");
        for name in ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "no_proxy"] {
            command.env_remove(name);
        }
        command.env("HTTP_PROXY", &address).env("NO_PROXY", no_proxy).env("HF_HOME", it.work.path(home));
        Outcome::of(&mut command).success();
        std::mem::take(&mut *asked.lock().unwrap())
    };
    assert_eq!(pull("127.0.0.1", "direct"), Vec::<String>::new());
    let through = pull("elsewhere.example", "through");
    assert!(through.iter().any(|to| it.hub.endpoint().ends_with(to)), "{through:?}");
}

#[test]
fn the_cache_is_listed_with_what_can_be_trained() {
    let it = Setup::new();
    let empty = it.offline("models").success();
    assert!(empty.stdout.is_empty() && empty.stderr.contains("0 repositories"), "{empty}");
    it.hub.add("acme/odd", "main", &[("config.json", br#"{"model_type": "mamba"}"#), ("model.safetensors", b"")]);
    it.hub.add("acme/adapter", "main", &[("adapter_config.json", br#"{"base_model_name_or_path": "acme/tiny"}"#)]);
    it.run("pull acme/tiny acme/odd acme/adapter --data acme/rows:test").success();
    let outcome = it.offline("models").success();
    let line = |name: &str| {
        let mut lines = outcome.stdout.lines().skip_while(|it| !it.starts_with(name)).skip(1);
        lines.next().unwrap_or_else(|| panic!("{name}: {outcome}")).to_owned()
    };
    assert!(line("acme/tiny").contains("@main") && line("acme/tiny").contains("can be trained"), "{outcome}");
    assert!(line("acme/odd").contains("cannot be trained: ") && line("acme/odd").contains("mamba"), "{outcome}");
    assert!(line("acme/adapter").contains("its base is acme/tiny"), "{outcome}");
    assert!(line("acme/rows").contains("data"), "{outcome}");
    let all = it.offline("models --json").json();
    let trained: Vec<&Value> = all.as_array().unwrap().iter().filter(|it| it["trainable"] == true).collect();
    assert_eq!(trained.len(), 1);
    assert_eq!(trained[0]["name"], "acme/tiny");
}
