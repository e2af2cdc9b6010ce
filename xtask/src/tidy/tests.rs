//! Each rule against a small tree with one planted violation, beside the same tree without it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;

/// A tree in the folder for temporary files, removed at the end of the test.
struct Tree(PathBuf);

impl Tree {
    /// A workspace that breaks no rule.
    fn new(test: &str) -> Self {
        let tree = Self(std::env::temp_dir().join(format!("halfbyte-tidy-{test}-{}", std::process::id())));
        let _ = std::fs::remove_dir_all(&tree.0);
        tree.write("docs/architecture.md", ARCHITECTURE);
        tree.write("crates/codec/README.md", "# codec\n");
        tree.write("crates/codec/src/lib.rs", "//! A codec.\n");
        tree
    }

    fn write(&self, path: &str, text: &str) {
        let file = self.0.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    /// The violations, given dependencies to add: (from, to, kind).
    fn check_with(&self, extra: &[(&str, &str, Option<&str>)]) -> Vec<Violation> {
        check(&self.0, &metadata(&self.0, extra)).unwrap()
    }

    fn check(&self) -> Vec<Violation> {
        self.check_with(&[])
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const ARCHITECTURE: &str = "\
# Layers

| Layer | Crate | Holds | Alone | Never depends on |
|---|---|---|---|---|
| L2 | `trainer` | all | | |
| L1 | `lora` | adapters | | `frozen` |
| L1 | `frozen` | weights | | |
| L1 | `model` | forward | | `codec` |
| L0 | `codec` | 4 bits | yes | |
| dev | `testkit` | oracles | | |
| dev | `xtask` | tasks | | any |

| Outside crate | Only in |
|---|---|
| `cudarc` | `codec` |

The end.
";
const MEMBERS: &[&str] = &["trainer", "lora", "frozen", "model", "codec", "testkit", "xtask"];

fn metadata(root: &Path, extra: &[(&str, &str, Option<&str>)]) -> Value {
    let package = |name: &&str| {
        let own = [
            ("trainer", "lora", None),
            ("lora", "codec", None),
            ("lora", "testkit", Some("dev")),
            ("codec", "cudarc", None),
        ];
        let dependencies: Vec<_> = own
            .iter()
            .chain(extra)
            .filter(|(from, ..)| from == name)
            .map(|(_, to, kind)| match MEMBERS.contains(to) {
                true => json!({"name": format!("halfbyte-{to}"), "kind": kind, "path": "/x"}),
                false => json!({"name": to, "kind": kind}),
            })
            .collect();
        let manifest = root.join("crates").join(name).join("Cargo.toml");
        json!({"name": format!("halfbyte-{name}"), "manifest_path": manifest, "dependencies": dependencies})
    };
    json!({"packages": MEMBERS.iter().map(package).collect::<Vec<_>>()})
}

/// Exactly one violation, which says all of `parts`.
#[track_caller]
fn assert_one(violations: &[Violation], parts: &[&str]) {
    assert_eq!(violations.len(), 1, "{violations:#?}");
    for part in parts {
        assert!(violations[0].contains(part), "{} lacks {part}", violations[0]);
    }
}

#[test]
fn weights_are_known_by_role_outside_the_models() {
    let tree = Tree::new("weight-names");
    tree.write("crates/models/src/a.rs", "const A: &str = \"model.embed_tokens.weight\";\n");
    tree.write("crates/trainer/src/a.rs", "// lm_head\n#[cfg(test)]\nmod tests { const A: &str = \"lm_head\"; }\n");
    tree.write("crates/trainer/tests/a.rs", "const A: &str = \"lm_head\";\n");
    assert_eq!(tree.check(), Vec::<Violation>::new());
    tree.write(
        "crates/trainer/src/b.rs",
        "fn f(name: &str) -> bool {\n    name.contains(\"layers.0.q_proj.bias\")\n}\n",
    );
    let found = tree.check();
    assert!(found.len() == 1 && found[0].starts_with("crates/trainer/src/b.rs:2: `q_proj`"), "{found:?}");
}

#[test]
fn a_clean_tree_passes() {
    assert_eq!(Tree::new("clean").check(), Vec::<Violation>::new());
}

#[test]
fn dependencies_point_down_and_never_is_never() {
    let tree = Tree::new("layers");
    assert_one(&tree.check_with(&[("codec", "lora", None)]), &["codec depends on lora", "L1 is not below L0"]);
    assert_one(
        &tree.check_with(&[("frozen", "model", Some("dev"))]),
        &["frozen depends on model", "L1 is not below L1"],
    );
    assert_one(&tree.check_with(&[("lora", "frozen", Some("dev"))]), &["lora depends on frozen", "never"]);
    assert_one(&tree.check_with(&[("model", "codec", None)]), &["model depends on codec", "never"]);
    assert_one(&tree.check_with(&[("testkit", "trainer", None)]), &["testkit depends on trainer", "top layer"]);
    assert_one(&tree.check_with(&[("xtask", "codec", None)]), &["xtask depends on codec", "never"]);
    assert_one(&tree.check_with(&[("model", "testkit", None)]), &["model depends on testkit", "dev-dependency"]);
    assert_one(
        &tree.check_with(&[("model", "testkit", Some("build"))]),
        &["model depends on testkit", "dev-dependency"],
    );
    assert_eq!(
        tree.check_with(&[("model", "testkit", Some("dev")), ("testkit", "codec", None)]),
        Vec::<Violation>::new()
    );
}

#[test]
fn outside_crates_stay_at_home() {
    assert_one(
        &Tree::new("homes").check_with(&[("model", "cudarc", None)]),
        &["model depends on cudarc", "only codec"],
    );
}

#[test]
fn the_table_and_the_members_agree() {
    let tree = Tree::new("table");
    tree.write("docs/architecture.md", &ARCHITECTURE.replace("| L1 | `model` | forward | | `codec` |\n", ""));
    assert_one(&tree.check(), &["model has no row"]);
    tree.write(
        "docs/architecture.md",
        &ARCHITECTURE.replace("| dev | `testkit`", "| L0 | `gone` | x | | |\n| dev | `testkit`"),
    );
    assert_one(&tree.check(), &["gone, which is no member"]);
    tree.write("docs/architecture.md", "no table");
    assert!(check(&tree.0, &metadata(&tree.0, &[])).unwrap_err().to_string().contains("no table headed"));
    tree.write("docs/architecture.md", &ARCHITECTURE.replace("| L1 | `model`", "| Lx | `model`"));
    assert!(check(&tree.0, &metadata(&tree.0, &[])).unwrap_err().to_string().contains("the layer of model is `Lx`"));
}

#[test]
fn a_crate_of_use_alone_has_a_readme() {
    let tree = Tree::new("readme");
    std::fs::remove_file(tree.0.join("crates/codec/README.md")).unwrap();
    assert_one(&tree.check(), &["codec", "README.md"]);
}

#[test]
fn long_files_are_named() {
    let tree = Tree::new("length");
    tree.write("crates/codec/src/kernel.cu", &"// x\n".repeat(500));
    tree.write("crates/codec/src/lib.rs", &"// x\n".repeat(500));
    assert_eq!(tree.check(), Vec::<Violation>::new());
    tree.write("crates/codec/src/kernel.cu", &"// x\n".repeat(501));
    assert_one(&tree.check(), &["kernel.cu", "501 lines"]);
    tree.write("crates/codec/src/kernel.cu", "");
    tree.write("target/debug/build/out.rs", &"// x\n".repeat(900));
    assert_eq!(tree.check(), Vec::<Violation>::new());
}

#[test]
fn unsafe_has_a_home_and_a_reason() {
    let tree = Tree::new("unsafe");
    let reasoned = "fn f() {\n    // SAFETY: checked above.\n    let x =\n        unsafe { g() };\n}\n";
    tree.write("crates/codec/src/lib.rs", reasoned);
    assert_one(&tree.check(), &["lib.rs:4", "unsafe belongs"]);
    tree.write(
        "crates/codec/src/lib.rs",
        "// unsafe { } in a comment, \"unsafe\" /* unsafe */\nconst S: &str = \"unsafe {\";\n",
    );
    for home in [
        "crates/codec/src/kernels/avx2.rs",
        "crates/cuda/src/probe.rs",
        "crates/codec/src/cuda.rs",
        "crates/a/src/io/mmap.rs",
        "crates/a/src/alloc.rs",
    ] {
        tree.write(home, reasoned);
    }
    assert_eq!(tree.check(), Vec::<Violation>::new());
    let bare = "fn f() {\n    // SAFETY: for the first alone.\n    unsafe { g() };\n    unsafe { g() };\n}\n";
    tree.write("crates/codec/src/cuda.rs", bare);
    assert_one(&tree.check(), &["cuda.rs:4", "SAFETY"]);
    tree.write("crates/codec/src/cuda.rs", "unsafe impl Send for X {}\n");
    assert_one(&tree.check(), &["cuda.rs:1", "SAFETY"]);
    tree.write("crates/codec/src/cuda.rs", "/// # Safety\n/// Never call it.\nunsafe fn f() {}\n");
    assert_eq!(tree.check(), Vec::<Violation>::new());
}

#[test]
fn unfinished_code_and_ignored_tests_are_found() {
    let tree = Tree::new("stubs");
    for (code, message) in [
        ("#[test]\n#[ignore = \"slow\"]\nfn f() {}\n", "lib.rs:2: no ignored tests"),
        ("fn f() {\n    todo!()\n}\n", "lib.rs:2: `todo!`"),
        ("fn f() { unimplemented!(\"x\") }\n", "lib.rs:1: `unimplemented!`"),
    ] {
        tree.write("crates/codec/src/lib.rs", code);
        assert_one(&tree.check(), &[message]);
    }
    tree.write("crates/codec/src/lib.rs", "// todo!()\nconst S: &str = r#\"#[ignore] \"todo!()\" \"#;\n");
    assert_eq!(tree.check(), Vec::<Violation>::new());
}

#[test]
fn paths_in_the_documentation_exist() {
    let tree = Tree::new("paths");
    let good =
        "`crates/codec/src/lib.rs`, `crates/codec/`, `crates/<name>/src`, `crates/{codec}/src/*.rs`, `a/b`, `out/x`,
`cargo run crates/none`, [rules](architecture.md#layers), [net](https://example.org/x)\n```\n`crates/none`\n```\n";
    tree.write("docs/guide.md", good);
    tree.write("README.md", "`docs/guide.md` and [it](docs/guide.md)\n");
    assert_eq!(tree.check(), Vec::<Violation>::new());
    tree.write("docs/guide.md", "first\n`crates/codec/src/gone.rs`\n");
    assert_one(&tree.check(), &["docs/guide.md:2", "crates/codec/src/gone.rs"]);
    tree.write("docs/guide.md", "`crates/{codec,none}/src`\n");
    assert_one(&tree.check(), &["crates/{codec,none}/src"]);
    tree.write("docs/guide.md", "`crates/gone/<name>.rs`\n");
    assert_one(&tree.check(), &["crates/gone/<name>.rs"]);
    tree.write("docs/guide.md", "[x](missing.md)\n");
    assert_one(&tree.check(), &["missing.md"]);
}

#[test]
fn the_lexer_tells_code_from_literals_and_comments() {
    let code = |source: &str| lexer::lines(source).into_iter().map(|l| l.code).collect::<Vec<_>>().join("\n");
    assert_eq!(code("a /* b /* c */ d */ e"), "a  e");
    assert_eq!(code("f('\"', 'x', '\\'', '\\u{1F600}') g"), "f(, , , ) g");
    assert_eq!(code("fn f<'a>(x: &'a str) {}"), "fn f<'a>(x: &'a str) {}");
    assert_eq!(code("x = r##\"a\"# b\"## + br\"c\" + \"d\\\"e\" + y"), "x =  + b +  + y");
    assert_eq!(code("\"a\\\nb\" c // d\ne"), "\n c \ne");
    assert_eq!(lexer::lines("x // SAFETY: y")[0].comment, " SAFETY: y");
}
