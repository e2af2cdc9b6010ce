//! Data as people have it: lists, tables, text, compressed, in several files. All give the rows of one file of JSON Lines.

mod common;

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use common::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use halfbyte_data::{DataConfig, DataFiles, Dataset, Part, Report};
use serde_json::json;

fn load(path: &Path) -> (Dataset, Report) {
    Dataset::load(path, &tokenizer(), &config(64)).unwrap()
}

/// Texts of all kinds but nulls, which tables do not know.
fn some_texts(count: usize) -> Vec<Option<String>> {
    texts(count).into_iter().map(|it| Some(it.unwrap_or_default().replace('\n', " "))).collect()
}

fn written(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn lines(folder: &Path, texts: &[Option<String>]) -> PathBuf {
    let path = folder.join("expected.jsonl");
    write_jsonl(&path, &[("text", texts)]);
    path
}

#[test]
fn json_in_any_layout() {
    let folder = tempfile::tempdir().unwrap();
    let texts = texts(600);
    let expected = load(&lines(folder.path(), &texts));
    let rows: Vec<_> = texts.iter().map(|text| json!({ "text": text, "n": [1, {"}": "]"}] })).collect();
    let pretty: String = rows.iter().map(|row| format!("{row:#}\n\n")).collect();
    let brackets_in_text = json!([{ "text": "a ] } \" \\" }, { "text": "{ [" }]);
    for (name, text) in [
        ("array.json", json!(rows).to_string()),
        ("pretty.json", format!("\u{feff}{:#}\n", json!(rows))),
        ("no-name", json!(rows).to_string()),
        ("data.json", json!({ "version": "1", "data": rows }).to_string()),
        ("train.json", format!("{:#}", json!({ "train": rows }))),
        ("objects.json", pretty),
    ] {
        assert_eq!(load(&written(folder.path(), name, text.as_bytes())), expected, "{name}");
    }
    let (found, _) = load(&written(folder.path(), "odd.json", brackets_in_text.to_string().as_bytes()));
    let plain = |text: &str| tokenizer().encode(text).unwrap();
    assert_eq!((found.row(0).ids, found.row(1).ids), (&plain("a ] } \" \\")[..], &plain("{ [")[..]));
    let one_row = json!({ "text": "x y", "rows": [] }).to_string();
    assert_eq!(load(&written(folder.path(), "one.json", one_row.as_bytes())).0.len(), 1, "an object alone is a row");
    assert_eq!(load(&written(folder.path(), "empty-list.json", b"[{\"text\": \"xy\"}]")).0.len(), 1);
}

#[test]
fn tables_and_text() {
    let folder = tempfile::tempdir().unwrap();
    let texts = some_texts(600);
    let expected = load(&lines(folder.path(), &texts));
    for (name, delimiter) in [("a.csv", b','), ("a.tsv", b'\t'), ("b.csv", b';')] {
        let mut writer = csv::WriterBuilder::new().delimiter(delimiter).from_path(folder.path().join(name)).unwrap();
        writer.write_record(["id", "text"]).unwrap();
        for (id, text) in texts.iter().enumerate() {
            writer.write_record([id.to_string(), text.clone().unwrap()]).unwrap();
        }
        writer.flush().unwrap();
        assert_eq!(load(&folder.path().join(name)), expected, "{name}");
    }
    let quoted = load(&written(folder.path(), "q.csv", "\u{feff}text,n\r\n\"a, \"\"b\"\"\nc\",1\r\n".as_bytes())).0;
    assert_eq!(quoted.row(0).ids, tokenizer().encode("a, \"b\"\nc").unwrap());
    // Lines that are blank are no rows of text.
    let words: Vec<_> = texts.into_iter().filter(|it| !it.as_ref().unwrap().trim().is_empty()).collect();
    let plain: Vec<&str> = words.iter().flatten().map(|it| it.trim_end()).collect();
    let found = load(&written(folder.path(), "a.txt", plain.join("\n\n").as_bytes()));
    assert_eq!(found, load(&lines(folder.path(), &plain.iter().map(|it| Some((*it).to_owned())).collect::<Vec<_>>())));
}

#[test]
fn arrow_files_and_streams() {
    let folder = tempfile::tempdir().unwrap();
    let texts = texts(700);
    let expected = load(&lines(folder.path(), &texts));
    let batch = |rows: &[Option<String>]| {
        let column: ArrayRef = Arc::new(StringArray::from_iter(rows.iter()));
        RecordBatch::try_from_iter_with_nullable([("text", column, true)]).unwrap()
    };
    let (file, stream) = (folder.path().join("a.arrow"), folder.path().join("data-00000-of-00001.arrow"));
    let schema = batch(&texts[..1]).schema();
    let mut to_file = arrow_ipc::writer::FileWriter::try_new(std::fs::File::create(&file).unwrap(), &schema).unwrap();
    let mut to_stream =
        arrow_ipc::writer::StreamWriter::try_new(std::fs::File::create(&stream).unwrap(), &schema).unwrap();
    for rows in texts.chunks(300) {
        to_file.write(&batch(rows)).unwrap();
        to_stream.write(&batch(rows)).unwrap();
    }
    to_file.finish().unwrap();
    to_stream.finish().unwrap();
    for path in [&file, &stream] {
        assert_eq!(load(path), expected, "{}", path.display());
        let bytes = std::fs::read(path).unwrap();
        for keep in (8..bytes.len() - 40).step_by(501) {
            let cut = written(folder.path(), "cut", &bytes[..keep]);
            assert!(Dataset::load(&cut, &tokenizer(), &config(64)).is_err() || keep % 8 == 0, "{keep} bytes");
        }
    }
}

#[test]
fn compressed_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = lines(folder.path(), &texts(300));
    let (expected, bytes) = (load(&path), std::fs::read(&path).unwrap());
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let halves = [gzip(&bytes[..1000]), gzip(&bytes[1000..])].concat();
    assert_eq!(load(&written(folder.path(), "a.jsonl.gz", &halves)), expected, "gzip in two members");
    let zstd = zstd::encode_all(&bytes[..], 3).unwrap();
    assert_eq!(load(&written(folder.path(), "a.jsonl.zst", &zstd)), expected);
    for (name, packed) in [("cut.jsonl.gz", gzip(&bytes)), ("cut.jsonl.zst", zstd)] {
        let cut = written(folder.path(), name, &packed[..packed.len() / 2]);
        let error = Dataset::load(&cut, &tokenizer(), &config(64)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("cannot be read"), "{error}");
    }
}

#[test]
fn several_files_are_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let texts = texts(900);
    let expected = load(&lines(folder.path(), &texts));
    let data = folder.path().join("set").join("data");
    std::fs::create_dir_all(&data).unwrap();
    for (number, rows) in texts.chunks(400).enumerate() {
        write_parquet(&data.join(format!("train-0000{number}-of-00003.parquet")), &[("text", rows)], 128);
    }
    write_parquet(&data.join("test-00000-of-00001.parquet"), &[("text", &texts[..7])], 128);
    std::fs::write(data.join("README.md"), "about it").unwrap();
    let find = |names: &[&str], part| {
        let paths: Vec<PathBuf> = names.iter().map(|it| folder.path().join(it)).collect();
        DataFiles::find(&paths, part).unwrap()
    };
    let all = |files: &DataFiles, config: &DataConfig| Dataset::load_all(files, &tokenizer(), config).unwrap();
    let shards = [
        "set/data/train-00000-of-00003.parquet",
        "set/data/train-00001-of-00003.parquet",
        "set/data/train-00002-of-00003.parquet",
    ];
    let commas =
        DataFiles::find(&[shards.map(|it| folder.path().join(it).display().to_string()).join(",").into()], Part::Train);
    for files in [
        find(&["set"], Part::Train),
        find(&["set/data"], Part::Train),
        find(&["set/data/train-*.parquet"], Part::Train),
        find(&shards, Part::Train),
        commas.unwrap(),
    ] {
        assert_eq!(all(&files, &config(64)), expected, "{files:?}");
    }
    assert_eq!(all(&find(&["set"], Part::HeldOut), &config(64)).1.rows_read, 7);
    let mixed = find(&[shards[0], "expected.jsonl"], Part::Train);
    assert_eq!(all(&mixed, &config(64)).1.rows_read, 1300, "of different kinds");
    // A range of rows goes over the files' borders, and no further.
    let files = find(&["set"], Part::Train);
    for range in [0..900, 0..400, 399..401, 400..800, 850..900, 10..usize::MAX, 801..usize::MAX] {
        let config = DataConfig { rows: Some(range.clone()), ..config(64) };
        let one = Dataset::load(&folder.path().join("expected.jsonl"), &tokenizer(), &config).unwrap();
        assert_eq!(all(&files, &config), one, "{range:?}");
    }
    for range in [0..901, 900..usize::MAX, 1000..1001] {
        let config = DataConfig { rows: Some(range.clone()), ..config(64) };
        let error = Dataset::load_all(&files, &tokenizer(), &config).unwrap_err().to_string();
        assert!(error.contains("900 rows"), "{range:?}: {error}");
    }
}

#[test]
fn tables_are_counted_across_their_borders() {
    let folder = tempfile::tempdir().unwrap();
    let table = |name: &str, rows: Range<usize>| {
        let text: String = rows.map(|it| format!("of row {it}\n")).collect();
        written(folder.path(), name, format!("text\n{text}").as_bytes())
    };
    let (both, one) = ([table("a.csv", 0..5), table("b.csv", 5..9)], table("all.csv", 0..9));
    let files = DataFiles::find(&both, Part::Train).unwrap();
    for range in [0..9, 3..7, 5..6, 6..9, 6..usize::MAX] {
        let config = DataConfig { rows: Some(range.clone()), ..config(64) };
        let whole = Dataset::load(&one, &tokenizer(), &config).unwrap();
        assert_eq!(Dataset::load_all(&files, &tokenizer(), &config).unwrap(), whole, "{range:?}");
    }
}

#[test]
fn a_name_of_nothing_is_a_name_and_commas_are_between_names() {
    let paths = |name: &str| DataFiles::find(&[name.into()], Part::Train).unwrap().paths().to_vec();
    assert_eq!(paths("not_here.jsonl"), [PathBuf::from("not_here.jsonl")]);
    assert_eq!(paths("not_here.jsonl, nor_here.jsonl"), ["not_here.jsonl", "nor_here.jsonl"].map(PathBuf::from));
}

#[test]
fn what_names_no_data_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let find = |name: &str| DataFiles::find(&[folder.path().join(name)], Part::Train).unwrap_err().to_string();
    assert!(find("").contains("without data files"));
    assert!(find("*.jsonl").contains("no file matches"));
    std::fs::write(folder.path().join("a.csv"), "text\nx\n").unwrap();
    std::fs::write(folder.path().join("a.jsonl"), "{}\n").unwrap();
    assert!(find("").contains("1 .csv, 1 .jsonl"), "{}", find(""));
    assert!(DataFiles::find(&[], Part::Train).is_err());
}

#[test]
fn a_folder_s_data_are_the_files_that_are_named_as_data() {
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    for name in [".a.jsonl", "_b.jsonl", "state.json", "dataset_info.json", "notes.md", "c.jsonl", "d.jsonl"] {
        std::fs::write(here(name), "{\"text\": \"x y\"}\n").unwrap();
    }
    std::fs::create_dir(here("e.jsonl")).unwrap();
    let files = DataFiles::find(&[folder.path().into()], Part::Train).unwrap();
    assert_eq!(files.paths(), [here("c.jsonl"), here("d.jsonl")]);
    assert_eq!(files.described(), format!("{} and 1 more", here("c.jsonl").display()));
    let one = DataFiles::find(&[here("d.jsonl")], Part::Train).unwrap();
    assert_eq!(one.described(), here("d.jsonl").display().to_string());
    let columns: Vec<String> = one.columns().unwrap().into_iter().map(|it| it.name).collect();
    assert_eq!(columns, ["text"]);
    // Names of files that are there are no patterns and no lists.
    for name in ["[x].jsonl", "f,g.jsonl"] {
        std::fs::write(here(name), "{\"text\": \"x y\"}\n").unwrap();
        assert_eq!(DataFiles::find(&[here(name)], Part::Train).unwrap().paths(), [here(name)]);
    }
    let list = format!("{},{}", here("c.jsonl").display(), here("d.jsonl").display());
    assert_eq!(DataFiles::find(&[list.into()], Part::Train).unwrap().paths(), [here("c.jsonl"), here("d.jsonl")]);
    let broken = DataFiles::find(&[format!("{},", here("c.jsonl").display()).into()], Part::Train);
    assert_eq!(broken.unwrap().paths().len(), 1, "a list that ends in nothing is a name, which no file has");
}

#[test]
fn what_is_no_data_is_known_by_its_first_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |name: &str, bytes: &[u8]| {
        let path = written(folder.path(), name, bytes);
        Dataset::load(&path, &tokenizer(), &config(64)).unwrap_err().to_string()
    };
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
    assert!(refused("a.data", pointer).contains("git lfs pull"));
    assert!(refused("b.data", b"what is this\n").contains("of an unknown format"));
    assert!(refused("c.jsonl", b"").contains("the file is empty"));
    // A line that holds a list is a line, and no document.
    assert!(refused("d.jsonl", b"[1, 2]\n").contains("line 1"));
}

#[test]
fn a_row_of_a_later_file_is_named_by_its_place_there() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("a.jsonl"), &[("text", &texts(300))]);
    let wrong = written(folder.path(), "b.jsonl", b"{\"text\": \"x y\"}\n{\"text\": 7}\n");
    let files = DataFiles::find(&[folder.path().join("a.jsonl"), wrong], Part::Train).unwrap();
    let error = Dataset::load_all(&files, &tokenizer(), &config(64)).unwrap_err().to_string();
    assert!(error.contains("b.jsonl: line 2"), "{error}");
}
