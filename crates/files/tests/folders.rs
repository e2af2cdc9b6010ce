//! The weights of a folder, in one file or in several, and what was asked of them.

use halfbyte_files::{Dtype, Reading, ShardedFiles, ShardedWriter, TensorSpec};
use serde_json::{Value, json};
use std::{fs, path::Path};

fn specs() -> Vec<TensorSpec> {
    (0..5).map(|i| TensorSpec::new(format!("layer.{i}.weight"), Dtype::U8, &[10 * (i + 1)])).collect()
}

fn write(dir: &Path, max_shard_bytes: u64) {
    let mut writer = ShardedWriter::create(dir, specs(), max_shard_bytes);
    for (i, spec) in specs().iter().enumerate() {
        for piece in vec![i as u8; spec.bytes()].chunks(7) {
            writer.write(&spec.name, piece).unwrap();
        }
    }
    writer.finish().unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|it| it.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[track_caller]
fn refused(dir: &Path, parts: &[&str]) {
    let text = ShardedFiles::open(dir).unwrap_err().to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn weights_come_back_from_however_many_files() {
    for (limit, files) in [(u64::MAX, 1), (150, 1), (149, 2), (50, 4), (1, 5)] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), limit);
        let has_index = names(dir.path()).contains(&"model.safetensors.index.json".to_owned());
        assert_eq!(names(dir.path()).len(), if files == 1 { 1 } else { files + 1 }, "limit {limit}");
        assert_eq!(has_index, files > 1);
        let opened = ShardedFiles::open(dir.path()).unwrap();
        assert_eq!(opened.iter().count(), 5);
        for (i, spec) in specs().iter().enumerate() {
            let (file, it) = opened.get(&spec.name).unwrap();
            assert_eq!(file.read(it).unwrap(), vec![i as u8; spec.bytes()]);
        }
    }
}

#[test]
fn a_reading_knows_what_was_not_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 50);
    let files = ShardedFiles::open(dir.path()).unwrap();
    let reading = Reading::new(&files);
    assert!(reading.read("layer.7.weight").unwrap().is_none());
    assert_eq!(reading.read("layer.3.weight").unwrap().unwrap(), [3; 40]);
    assert!(reading.take("layer.0.weight").is_some());
    assert_eq!(reading.unused(), ["layer.1.weight", "layer.2.weight", "layer.4.weight"]);
    let text = files.missing("model.layer.3.weight").to_string();
    assert!(
        text.contains("model.layer.3.weight is in none of the 4") && text.ends_with("; there is layer.3.weight"),
        "{text}"
    );
    let text = files.missing("model.player.7.weight").to_string();
    assert!(!text.contains("there is"), "{text}");
}

#[test]
fn folders_without_weights_say_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    refused(dir.path(), &["model.safetensors", "is missing", "model.safetensors.index.json"]);
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    refused(dir.path(), &["pytorch_model.bin", "torch.save"]);
    write(dir.path(), 50);
    fs::remove_file(dir.path().join("model-00002-of-00004.safetensors")).unwrap();
    refused(dir.path(), &["model-00002-of-00004.safetensors", "fetch the shard again"]);
}

#[test]
fn an_index_that_points_elsewhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 50);
    let outside = dir.path().join("outside.safetensors");
    for name in ["../model-00001-of-00004.safetensors", outside.to_str().unwrap(), "."] {
        let index = json!({ "weight_map": { "layer.0.weight": name } });
        fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        refused(dir.path(), &["index.json", name, "no file of this folder"]);
    }
    for (text, part) in [("{", "not JSON"), ("{\"weight_map\": 3}", "weight_map"), ("{\"weight_map\": {}}", "no shard")]
    {
        fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
        refused(dir.path(), &["index.json", part]);
    }
}

#[test]
fn of_a_tensor_in_two_files_the_index_says_which_counts() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 50);
    let [first, second] = ["model-00001-of-00004.safetensors", "another.safetensors"];
    fs::copy(dir.path().join(first), dir.path().join(second)).unwrap();
    let path = dir.path().join("model.safetensors.index.json");
    let index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let with = |name: &str, file: &str| {
        let mut index = index.clone();
        index["weight_map"][name] = json!(file);
        fs::write(&path, index.to_string()).unwrap();
    };
    with("only.an.entry", second);
    let files = ShardedFiles::open(dir.path()).unwrap();
    assert!(files.get("layer.0.weight").unwrap().0.path().ends_with(first));
    with("layer.0.weight", second);
    let files = ShardedFiles::open(dir.path()).unwrap();
    assert!(files.get("layer.0.weight").unwrap().0.path().ends_with(second));
    assert!(files.get("layer.1.weight").unwrap().0.path().ends_with(first));
    fs::write(&path, json!({ "weight_map": { "a": first, "b": second } }).to_string()).unwrap();
    refused(dir.path(), &["layer.0.weight", first, second]);
}
