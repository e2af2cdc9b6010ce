//! What docs/adding.md says about a new variant is so: its file, and a line in the list that it names.

use std::{fs, path::Path};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path))
        .unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The sources of the crate with their paths, the variants' own apart.
fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn a_variant_is_a_file_and_a_line() {
    let adding = read("docs/adding.md");
    let recipe = adding.split_once("A variant is one file and one line:").expect("the recipe").1;
    let steps = recipe.split("\n## ").next().unwrap().lines().filter(|it| it.starts_with(|c: char| c.is_ascii_digit()));
    assert_eq!(steps.count(), 2, "a file, and a line");

    let list = read("crates/lora/src/variants/mod.rs");
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    for (variant, listed, own) in [
        ("dora", "dora::begin", "use_dora"),
        ("embedding", "embedding::begin", "lora_embedding_A"),
        ("stacked", "stacked::begin", "with the experts innermost"),
        ("full", "full::begin", "modules_to_save` and trained biases"),
        ("taken", "taken::begin", "[A; A0]"),
        ("lora", "lora::begin", "lora_A.weight"),
        ("pissa", "pissa::PISSA", "pissa_niter_"),
    ] {
        assert!(list.contains(&format!("mod {variant};")) && list.contains(listed), "{variant} is listed");
        let file = format!("variants/{variant}.rs");
        assert!(all.iter().any(|(path, text)| path.ends_with(&file) && text.contains(own)), "{variant} has a file");
        // Nothing else has to know it by name.
        let others = all.iter().filter(|(path, _)| !path.ends_with(&file) && !path.ends_with("variants/mod.rs"));
        for (path, text) in others {
            assert!(
                !text.contains(listed) && !text.contains(&format!("variants::{variant}")),
                "{path} knows {variant}"
            );
        }
    }
}
