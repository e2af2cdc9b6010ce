//! Folders without tokenizer.json, against what transformers made of them (`tests/fixtures/older.json`).

use std::fs;
use std::path::{Path, PathBuf};

use halfbyte_data::Tokenizer;
use serde_json::{Map, Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A copy of a folder with more in its tokenizer_config.json.
fn folder(kind: &str, flags: &Map<String, Value>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures().join(kind)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("tokenizer_config.json");
    let mut config: Map<String, Value> = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config.extend(flags.clone());
    fs::write(path, Value::Object(config).to_string()).unwrap();
    dir
}

#[test]
fn texts_are_cut_as_transformers_cuts_them() {
    let all: Value = serde_json::from_str(&fs::read_to_string(fixtures().join("older.json")).unwrap()).unwrap();
    let texts: Vec<&str> = all["texts"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    let ids = |it: &Value| it.as_array().unwrap().iter().map(|it| it.as_u64().unwrap() as u32).collect::<Vec<_>>();
    let mut compared = 0;
    for (kind, rows) in all["expected"].as_object().unwrap() {
        for (flags, expected) in rows.as_object().unwrap() {
            let dir = folder(kind, &serde_json::from_str(flags).unwrap());
            let tokenizer = Tokenizer::load(dir.path()).unwrap();
            let special = tokenizer.special();
            assert_eq!(
                json!([special.bos, special.eos, special.pad]),
                json!([expected["bos"], expected["eos"], expected["pad"]])
            );
            for (i, text) in texts.iter().enumerate() {
                let wanted = ids(&expected["ids"][i]);
                assert_eq!(tokenizer.encode(text).unwrap(), wanted, "{kind} {flags} {text:?}");
                let shown = tokenizer.decode(&wanted, true).unwrap();
                assert_eq!(expected["decoded"][i].as_str(), Some(shown.as_str()), "{kind} {flags} {text:?}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 3 * 5 * texts.len());
}

#[test]
fn what_cannot_be_made_a_tokenizer_is_refused_in_a_sentence() {
    let none = Map::new();
    let refused = |kind: &str, change: &dyn Fn(&Path)| {
        let dir = folder(kind, &none);
        change(dir.path());
        Tokenizer::load(dir.path()).unwrap_err().to_string()
    };
    let put = |name: &'static str, text: &'static [u8]| move |dir: &Path| fs::write(dir.join(name), text).unwrap();
    let class = br#"{"tokenizer_class": "BertTokenizer"}"#;
    let said = refused("gpt2", &put("tokenizer_config.json", class));
    assert!(said.contains("BertTokenizer") && said.contains("save_pretrained"), "{said}");
    assert!(refused("gpt2", &put("merges.txt", b"#version: 0.2\na b c\n")).contains("line 2"));
    assert!(refused("gpt2", &put("merges.txt", b"a zzz\n")).contains("tokenizer.json"));
    assert!(refused("gpt2", &put("vocab.json", b"[]")).contains("vocab.json"));
    for bytes in [&b""[..], b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"not one", b"\x08\x01"] {
        let said = refused("sentencepiece", &|dir: &Path| fs::write(dir.join("tokenizer.model"), bytes).unwrap());
        assert!(said.contains("no model of SentencePiece"), "{said}");
    }
    let half = refused("gpt2", &|dir: &Path| fs::remove_file(dir.join("merges.txt")).unwrap());
    assert!(half.contains("tokenizer.json") && !half.contains("cannot read"), "{half}");
    let whole = fs::read(fixtures().join("sentencepiece/tokenizer.model")).unwrap();
    // A field that nobody asks for, of fixed width.
    let (plain, more) = (folder("sentencepiece", &none), folder("sentencepiece", &none));
    fs::write(more.path().join("tokenizer.model"), [&[0x79, 1, 2, 3, 4, 5, 6, 7, 8], &whole[..]].concat()).unwrap();
    let [plain, more] = [plain, more].map(|it| Tokenizer::load(it.path()).unwrap().encode("the cat sat").unwrap());
    assert_eq!(plain, more);
    for end in (0..whole.len()).step_by(97) {
        let dir = folder("sentencepiece", &none);
        fs::write(dir.path().join("tokenizer.model"), &whole[..end]).unwrap();
        drop(Tokenizer::load(dir.path()));
    }
}
