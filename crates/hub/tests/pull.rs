//! Pulling from a hub on the loopback interface into an empty cache: what comes, what is asked, what is said when it fails.

use halfbyte_hub::{DataName, Error, Event, Hub, Name, Place, Settings, Token, Use, name};
use halfbyte_testkit::{Fault, LoopbackHub};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;

const SMALL: &[(&str, &[u8])] =
    &[("config.json", b"{\"a\": 1}"), ("tokenizer.json", b"{}"), ("README.md", b"hello"), ("onnx/model.onnx", b"x")];

/// A cache of its own, pieces of 64 KiB and little patience.
struct Here {
    dir: TempDir,
    hub: Hub,
    events: Mutex<Vec<String>>,
    came: AtomicUsize,
}

impl Here {
    fn new(endpoint: String) -> Here {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            endpoint,
            cache: dir.path().join("hub"),
            token: None,
            offline: false,
            connections: 4,
            piece: 64 << 10,
            patience: Duration::from_millis(2),
            silence: Duration::from_secs(5),
            certificates: None,
        };
        Here { dir, hub: Hub { settings }, events: Mutex::default(), came: AtomicUsize::new(0) }
    }

    fn watch(&self, event: Event<'_>) {
        match event {
            Event::Came(n) => drop(self.came.fetch_add(n as usize, Ordering::Relaxed)),
            Event::Lost(n) => drop(self.came.fetch_sub(n as usize, Ordering::Relaxed)),
            other => self.events.lock().unwrap().push(format!("{other:?}")),
        }
    }

    fn folder(&self, name: &str) -> halfbyte_hub::Result<PathBuf> {
        self.hub.folder(&model(name), Use::Model, &|it| self.watch(it))
    }

    fn refusal(&self, name: &str) -> String {
        self.folder(name).unwrap_err().to_string()
    }

    fn leftovers(&self) -> usize {
        let mut found = 0;
        let mut open = vec![self.dir.path().to_owned()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                found += usize::from(entry.file_name().to_string_lossy().contains("incomplete"));
                if entry.file_type().unwrap().is_dir() {
                    open.push(entry.path());
                }
            }
        }
        found
    }
}

fn model(text: &str) -> Name {
    match name::model(text).unwrap() {
        Place::There(name) => name,
        Place::Here(path) => panic!("{path:?} is no name"),
    }
}

fn data(text: &str) -> DataName {
    match name::data(text).unwrap() {
        Place::There(name) => name,
        Place::Here(path) => panic!("{path:?} is no name"),
    }
}

/// Bytes of no pattern.
fn weights(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(next).collect()
}

/// A model whose weights take eleven pieces.
fn hub(weights: &[u8]) -> LoopbackHub {
    let it = LoopbackHub::new();
    it.add("org/tiny", "main", &[SMALL, &[("model.safetensors", weights)]].concat());
    it
}

const LEN: usize = 10 * (64 << 10) + 777;

#[test]
fn a_name_becomes_a_folder_once() {
    let bytes = weights(LEN);
    let (remote, bytes) = (hub(&bytes), bytes);
    let here = Here::new(remote.endpoint());
    let folder = here.folder("org/tiny").unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), bytes);
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"{\"a\": 1}");
    assert!(!folder.join("README.md").exists() && !folder.join("onnx").exists(), "what is not needed is not fetched");
    assert_eq!(here.came.load(Ordering::Relaxed), LEN + 8 + 2, "every byte was told of once");
    assert_eq!(here.leftovers(), 0);
    let target = fs::read_link(folder.join("config.json")).unwrap();
    assert!(target.starts_with("../../blobs"), "{target:?}");
    let said = here.events.lock().unwrap().clone();
    assert!(said[0].starts_with("Asks") && said[1].contains("files: 3") && said[2] == "Done", "{said:?}");

    remote.forget();
    assert_eq!(here.folder("org/tiny").unwrap(), folder);
    assert!(remote.seen().is_empty(), "what is in the cache is not asked for");
    // Pieces of the large file came from where the first of them was led to.
    let again = here.hub.pull(&model("org/tiny"), Use::Model, &|_| ()).unwrap();
    assert_eq!((again.folder, again.fetched), (folder, 0));
}

#[test]
fn revisions_are_kept_apart_and_a_commit_is_one() {
    let remote = hub(&weights(LEN));
    let old = remote.add("org/tiny", "v1", &[SMALL, &[("model.safetensors", b"old")]].concat());
    let here = Here::new(remote.endpoint());
    let main = here.folder("org/tiny").unwrap();
    let v1 = here.folder("org/tiny@v1").unwrap();
    assert_ne!(main, v1);
    assert_eq!(fs::read(v1.join("model.safetensors")).unwrap(), b"old");
    assert_eq!(here.folder(&format!("org/tiny@{old}")).unwrap(), v1);
    // What moved on the hub is what it was here, until it is pulled.
    remote.add("org/tiny", "main", &[SMALL, &[("model.safetensors", b"new")]].concat());
    assert_eq!(here.folder("org/tiny").unwrap(), main);
    let pulled = here.hub.pull(&model("org/tiny"), Use::Model, &|_| ()).unwrap();
    assert_eq!(fs::read(pulled.folder.join("model.safetensors")).unwrap(), b"new");
    assert_eq!(here.folder("org/tiny").unwrap(), pulled.folder);
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let remote = hub(&weights(LEN));
    remote.require_token("hf_secret");
    let mut here = Here::new(remote.endpoint());
    let message = here.refusal("org/tiny");
    assert!(message.contains("no public model") && message.contains("HF_TOKEN"), "{message}");
    here.hub.settings.token = Token::new("hf_stale");
    let message = here.refusal("org/tiny");
    assert!(message.contains("does not know the token") && !message.contains("hf_stale"), "{message}");
    here.hub.settings.token = Token::new("hf_secret");
    remote.forget();
    here.folder("org/tiny").unwrap();
    let (storage, home): (Vec<_>, Vec<_>) = remote.seen().into_iter().partition(|it| it.storage);
    assert!(storage.len() >= 11 && storage.iter().all(|it| it.authorization.is_none()), "{storage:?}");
    assert!(home.iter().all(|it| it.authorization.as_deref() == Some("Bearer hf_secret")));
    let asked = home.iter().filter(|it| it.path.contains("model.safetensors")).count();
    assert!(asked < 6, "the way to the storage is asked for once a connection at most, not {asked} times");
}

#[test]
fn refusals_say_what_helps() {
    let remote = hub(b"w");
    remote.add("org/secret", "main", SMALL);
    remote.gate("org/secret");
    remote.add("org/adapter", "main", &[("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"a")]);
    remote.add("org/gguf", "main", &[("model.Q4_K_M.gguf", b"g")]);
    let here = Here::new(remote.endpoint());
    let says = |name: &str, parts: &[&str]| {
        let error = here.folder(name).unwrap_err();
        assert!(matches!(error, Error::Asked { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.starts_with(name) && parts.iter().all(|it| message.contains(it)), "{message}");
    };
    says("org/secret", &["is gated", "/org/secret", "HF_TOKEN"]);
    says("org/none", &["no public model", "no such path"]);
    says("org/tiny@v9", &["no revision v9"]);
    says("org/adapter", &["is an adapter", "--adapter"]);
    says("org/gguf", &["GGUF"]);
    assert!(
        here.hub.folder(&model("org/adapter"), Use::Adapter, &|_| ()).unwrap().join("adapter_config.json").exists()
    );
    let message = here.hub.folder(&model("org/tiny"), Use::Adapter, &|_| ()).unwrap_err().to_string();
    assert!(message.contains("is a model and no adapter"), "{message}");
}

#[test]
fn offline_the_cache_is_all_there_is() {
    let remote = hub(b"w");
    let mut here = Here::new(remote.endpoint());
    let folder = here.folder("org/tiny").unwrap();
    here.hub.settings.offline = true;
    remote.forget();
    assert_eq!(here.folder("org/tiny").unwrap(), folder);
    let message = here.refusal("org/other");
    assert!(message.contains("HF_HUB_OFFLINE") && message.contains("halfbyte pull org/other"), "{message}");
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    assert!(here.refusal("org/tiny").contains("without tokenizer.json"));
    assert!(remote.seen().is_empty());
}

#[test]
fn what_may_pass_is_tried_again() {
    let bytes = weights(LEN);
    let remote = hub(&bytes);
    let here = Here::new(remote.endpoint());
    // The two small files first, in some order, then the pieces.
    let faults = [Fault::Status(503, None), Fault::Status(429, Some(0)), Fault::None, Fault::None];
    remote.faults(faults.into_iter().chain([
        Fault::Cut(1000),
        Fault::Cut(40_000),
        Fault::None,
        Fault::Cut(0),
        Fault::Cut(7),
    ]));
    let folder = here.folder("org/tiny").unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), bytes);
    assert_eq!(here.came.load(Ordering::Relaxed), LEN + 8 + 2, "no byte came twice");
    let said = here.events.lock().unwrap().join("\n");
    for part in ["503", "429", "Waits"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn what_does_not_pass_is_given_up_and_gone_on_from() {
    let bytes = weights(LEN);
    let remote = hub(&bytes);
    let here = Here::new(remote.endpoint());
    // Some pieces come, then nothing does.
    remote.faults(std::iter::repeat_n(Fault::None, 2 + 5).chain(std::iter::repeat_n(Fault::Status(500, None), 60)));
    let error = here.folder("org/tiny").unwrap_err();
    assert!(matches!(error, Error::Transfer { .. }), "{error:?}");
    let message = error.to_string();
    assert!(
        message.contains("model.safetensors") && message.contains("500") && message.contains("tried 6 times"),
        "{message}"
    );
    assert!(!message.contains("signature"), "{message}");
    assert!(here.hub.cached(&model("org/tiny"), Use::Model).is_err(), "half a model is none");
    let remote_again = hub(&bytes);
    let again = Hub { settings: Settings { endpoint: remote_again.endpoint(), ..here.hub.settings.clone() } };
    let folder = again.folder(&model("org/tiny"), Use::Model, &|_| ()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), bytes);
    let pieces = remote_again.seen().iter().filter(|it| it.storage).count();
    assert!(pieces < 11, "what had come did not come again: {pieces} of 11 pieces");
}

#[test]
fn a_long_wait_is_for_people_to_decide() {
    let remote = hub(b"w");
    remote.faults([Fault::Status(429, Some(3600)), Fault::Status(429, Some(3600))]);
    let message = Here::new(remote.endpoint()).refusal("org/tiny");
    assert!(message.contains("60 minutes") && message.contains("HF_TOKEN"), "{message}");
}

#[test]
fn wrong_bytes_are_fetched_once_more_and_then_refused() {
    let bytes = weights(LEN);
    let remote = hub(&bytes);
    let here = Here::new(remote.endpoint());
    remote.faults([Fault::None, Fault::None, Fault::None, Fault::Wrong]);
    assert_eq!(fs::read(here.folder("org/tiny").unwrap().join("model.safetensors")).unwrap(), bytes);
    assert_eq!(here.came.load(Ordering::Relaxed), LEN + 8 + 2);

    let here = Here::new(remote.endpoint());
    remote.faults(std::iter::repeat_n(Fault::None, 2).chain(std::iter::repeat_n(Fault::Wrong, 40)));
    let message = here.refusal("org/tiny");
    assert!(
        message.contains("model.safetensors") && message.contains("SHA-256") && message.contains("twice"),
        "{message}"
    );
    assert_eq!(here.leftovers(), 0, "nothing that is known to be wrong is kept");
}

#[test]
fn a_server_without_ranges_sends_the_whole() {
    let bytes = weights(LEN);
    let remote = hub(&bytes);
    remote.ignore_ranges();
    remote.faults([Fault::None, Fault::None, Fault::Cut(300_000)]);
    let here = Here::new(remote.endpoint());
    assert_eq!(fs::read(here.folder("org/tiny").unwrap().join("model.safetensors")).unwrap(), bytes);
    assert_eq!(here.came.load(Ordering::Relaxed), LEN + 8 + 2);
}

#[test]
fn a_silent_connection_is_given_up_and_a_slow_one_is_not() {
    let bytes = weights(LEN);
    let remote = hub(&bytes);
    let mut here = Here::new(remote.endpoint());
    here.hub.settings.silence = Duration::from_millis(300);
    remote.faults([Fault::None, Fault::None, Fault::Silent(Duration::from_secs(20))]);
    // The large file takes longer than any silence that is borne.
    remote.slow(Duration::from_millis(40));
    let begun = std::time::Instant::now();
    assert_eq!(fs::read(here.folder("org/tiny").unwrap().join("model.safetensors")).unwrap(), bytes);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn a_repository_that_was_renamed_is_found_by_its_old_name() {
    let remote = hub(&weights(LEN));
    remote.moved("former/tiny", "org/tiny");
    remote.require_token("hf_secret");
    let mut here = Here::new(remote.endpoint());
    here.hub.settings.token = Token::new("hf_secret");
    let folder = here.folder("former/tiny").unwrap();
    assert!(folder.to_string_lossy().contains("models--former--tiny") && folder.join("model.safetensors").exists());
}

#[test]
fn a_file_that_lost_bytes_in_the_cache_is_fetched_again() {
    let bytes = weights(LEN);
    let remote = hub(&bytes);
    let here = Here::new(remote.endpoint());
    let file = here.folder("org/tiny").unwrap().join("model.safetensors");
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(1000).unwrap();
    here.hub.pull(&model("org/tiny"), Use::Model, &|_| ()).unwrap();
    assert_eq!(fs::read(file).unwrap(), bytes);
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let mut here = Here::new("http://127.0.0.1:9".into());
    here.hub.settings.patience = Duration::ZERO;
    let message = here.refusal("org/tiny");
    assert!(message.contains("127.0.0.1:9"), "{message}");
}

#[test]
fn too_little_room_is_said_before_anything_comes() {
    let remote = LoopbackHub::new();
    remote.add("org/huge", "main", SMALL);
    remote.claim("org/huge", "model.safetensors", 1 << 60);
    let here = Here::new(remote.endpoint());
    let message = here.refusal("org/huge");
    assert!(message.contains("1073741824.00 GiB") && message.contains("HF_HOME"), "{message}");
    assert!(remote.seen().iter().all(|it| !it.path.contains("resolve")), "nothing was fetched");
}

#[test]
fn two_at_once_fill_one_cache() {
    let bytes = weights(LEN);
    let remote = hub(&bytes);
    remote.slow(Duration::from_millis(2));
    let here = Here::new(remote.endpoint());
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| here.folder("org/tiny").unwrap()));
        for one in both {
            let folder = one.join().unwrap();
            assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), bytes);
        }
    });
    let pieces = remote.seen().iter().filter(|it| it.storage).count();
    assert_eq!(pieces, 11, "each piece came once");
    assert_eq!(here.leftovers(), 0);
}

#[test]
fn a_split_comes_from_the_repository_or_from_the_hubs_conversion() {
    let remote = LoopbackHub::new();
    let shards: &[(&str, &[u8])] = &[
        ("data/train-00001-of-00002.parquet", b"two"),
        ("data/train-00000-of-00002.parquet", b"one"),
        ("data/test-00000-of-00001.parquet", b"test"),
    ];
    remote.add("datasets/org/rows", "main", shards);
    remote.add("datasets/org/lines", "main", &[("a.csv", b"x")]);
    remote.add("datasets/org/lines", "refs/convert/parquet", &[("default/train/0000.parquet", b"converted")]);
    remote.add("datasets/org/pictures", "main", &[("a.png", b"x")]);
    let mut here = Here::new(remote.endpoint());
    let texts = |here: &Here, name: &str| {
        let rows = here.hub.rows(&data(name), &["train"], &|_| ()).unwrap();
        rows.files.iter().map(|it| fs::read_to_string(it).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(texts(&here, "org/rows"), ["one", "two"]);
    assert_eq!(texts(&here, "org/rows:test"), ["test"]);
    assert_eq!(texts(&here, "org/lines"), ["converted"]);
    let message = |here: &Here, name: &str| here.hub.rows(&data(name), &["train"], &|_| ()).unwrap_err().to_string();
    assert_eq!(message(&here, "org/rows:dev"), "org/rows: has no split dev; there is test, train");
    assert!(message(&here, "org/pictures").contains("holds no parquet files"));
    assert!(message(&here, "org/nothing").contains("no public data set"));

    here.hub.settings.offline = true;
    remote.forget();
    assert_eq!(texts(&here, "org/rows").len(), 2);
    assert_eq!(texts(&here, "org/lines"), ["converted"]);
    assert!(remote.seen().is_empty());
}

#[test]
fn the_cache_is_listed() {
    let remote = hub(&weights(LEN));
    let here = Here::new(remote.endpoint());
    assert_eq!(halfbyte_hub::list(Path::new("nowhere")).unwrap(), []);
    here.folder("org/tiny").unwrap();
    let [found] = &halfbyte_hub::list(&here.hub.settings.cache).unwrap()[..] else { panic!("one model") };
    assert_eq!((found.id.as_str(), &found.revisions[0].refs[..]), ("org/tiny", &["main".to_owned()][..]));
    assert_eq!(found.revisions[0].bytes, LEN as u64 + 10);
    assert_eq!(found.bytes, LEN as u64 + 10 + 40, "with the name of the commit");
}
