use std::{fs, path::Path};

/// docs/adding.md: a loss is one file, and one line that names it.
#[test]
fn a_loss_is_a_file_and_a_line() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let list = fs::read_to_string(src.join("objective/mod.rs")).unwrap();
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(src.join("objective")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name != "mod" {
            names.push(name);
        }
    }
    assert!(!names.is_empty());
    for name in &names {
        let lines = list.lines().filter(|it| it.contains(name.as_str())).collect::<Vec<_>>();
        assert_eq!(lines.len(), 2, "`mod {name}` and its `pub use`: {lines:?}");
        let text = fs::read_to_string(src.join(format!("objective/{name}.rs"))).unwrap();
        assert_eq!(text.matches("impl Objective for").count(), 1, "{name}.rs is one objective");
    }
    // Nobody else knows one objective from another.
    for file in ["step.rs", "evaluate.rs", "optim.rs", "loss_scale.rs", "ranks.rs", "learned.rs"] {
        let text = fs::read_to_string(src.join(file)).unwrap();
        assert!(names.iter().all(|it| !text.contains(it.as_str())) && !text.contains("CausalLm"), "{file}");
    }
}
