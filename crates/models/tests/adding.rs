//! What docs/adding.md says about a new model is so: a row and a fixture, in the files that it names.

use halfbyte_models::SUPPORTED;
use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn a_model_like_llama_is_a_row_and_a_fixture() {
    let adding = read("docs/adding.md");
    let recipe = adding.split_once("is a row and a fixture:").expect("the recipe").1;
    let recipe = recipe.split_once("Another kind of block").expect("its end").0;
    let steps: Vec<&str> = recipe.lines().filter(|it| it.starts_with(|c: char| c.is_ascii_digit())).collect();
    assert_eq!(steps.len(), 2, "a row, and a fixture: {steps:?}");
    for (step, file) in steps.iter().zip(["crates/models/src/families.rs", "tests/reference/fixtures.py"]) {
        assert!(step.contains(&format!("`{file}`")) && root().join(file).exists(), "{step}");
    }
    let (table, program, models) =
        (read("crates/models/src/families.rs"), read("tests/reference/fixtures.py"), read("docs/models.md"));
    for architecture in SUPPORTED.iter().filter(|it| !it.starts_with("GPT")) {
        // Named once, in its row, and nowhere else in the crate.
        assert_eq!(table.matches(&format!("\"{architecture}\"")).count(), 1, "{architecture}");
        for entry in fs::read_dir(root().join("crates/models/src")).unwrap() {
            let path = entry.unwrap().path();
            let other = path.is_file() && path.file_name().is_none_or(|it| it != "families.rs");
            assert!(!other || !fs::read_to_string(&path).unwrap().contains(&format!("\"{architecture}\"")), "{path:?}");
        }
        let configs = ["Config(", "TextConfig("].map(|it| architecture.replace("ForCausalLM", it));
        assert!(configs.iter().any(|it| program.contains(it)), "fixtures.py makes no {architecture}");
        assert!(models.contains(&format!("`{architecture}`")), "docs/models.md has no row for {architecture}");
    }
}
