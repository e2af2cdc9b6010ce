//! Rules about the seams between layers that no dependency shows: which words may stand in which files.

use std::path::Path;

use super::Violation;
use super::lexer::{self, Line};

pub(super) fn check(file: &Path, text: &str, violations: &mut Vec<Violation>) {
    let path = file.to_string_lossy().replace('\\', "/");
    if !path.starts_with("crates/") || is_test(&path) {
        return;
    }
    let lines = lexer::lines(text);
    // Where a module of tests begins; a line that declares one in a file of its own ends nothing.
    let begins = |it: &[Line]| it[0].code.trim() == "#[cfg(test)]" && it[1].code.trim_end().ends_with('{');
    let end = lines.windows(2).position(begins).unwrap_or(lines.len());
    let mut say = |line: usize, why: &str| violations.push(format!("{path}:{}: {why}", line + 1));
    for (i, line) in lines[..end].iter().enumerate() {
        if path != "crates/tensor/src/place.rs" && line.code.contains(".gpu().is_some()") {
            say(
                i,
                "ask a tensor for its place(), and fill results through ops::place, so that no half can be forgotten",
            );
        }
        if line.code.contains("tensor::cuda") && !knows_devices(&path) {
            say(i, "only ops and the formats of frozen weights speak to a device; use what a Tensor or an op offers");
        }
        if line.code.contains("launch_untyped") && !path.starts_with("crates/cuda/src/") {
            say(i, "declare the kernel with kernels!, which compares the declaration with the kernel's own line");
        }
    }
    // Where the slices of a batch come in, once.
    let doors = ["crates/ops/src/layout.rs", "crates/ops/src/ids.rs"];
    if path.starts_with("crates/ops/src/") && !doors.contains(&path.as_str()) {
        for (i, signature) in public_functions(&lines[..end]) {
            if ["&[u32]", "&[usize]"].iter().any(|it| signature.contains(it)) {
                say(i, "an op takes no host slice: Layout, Ids and Targets carry them, with their copy on the device");
            }
        }
    }
}

fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("tests.rs") || path.ends_with("test_support.rs")
}

fn knows_devices(path: &str) -> bool {
    ["tensor", "ops", "frozen", "testkit"].iter().any(|it| path.starts_with(&format!("crates/{it}/")))
}

/// The public functions that others can reach: where each begins, and its signature up to the body.
fn public_functions(lines: &[Line]) -> Vec<(usize, String)> {
    let begins = |line: &Line| line.code.trim_start().starts_with("pub fn ");
    let signature = |at: usize| {
        let mut text = String::new();
        for line in &lines[at..] {
            text += &line.code;
            if line.code.contains('{') || line.code.contains(';') {
                break;
            }
        }
        // What a function returns may be a slice; what it takes may not.
        text.split("->").next().unwrap_or_default().to_owned()
    };
    (0..lines.len()).filter(|i| begins(&lines[*i])).map(|i| (i, signature(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<Violation> {
        let mut all = Vec::new();
        check(Path::new(path), text, &mut all);
        all
    }

    #[test]
    fn ops_take_no_host_slices_but_may_return_them() {
        let taking = "pub fn rope(\n    x: &Var,\n    positions: &[u32],\n) -> Result<Var> {\n}\n";
        assert_eq!(found("crates/ops/src/rope/mod.rs", taking).len(), 1);
        assert!(found("crates/ops/src/rope/tests.rs", taking).is_empty());
        assert!(found("crates/ops/src/layout.rs", taking).is_empty());
        assert!(found("crates/ops/src/rope/mod.rs", "pub fn positions(&self) -> &[u32] {\n}\n").is_empty());
        assert!(found("crates/data/src/batch.rs", taking).is_empty());
    }

    #[test]
    fn the_place_of_a_tensor_is_asked_in_one_file() {
        let asking = "fn f(x: &Tensor) {\n    if x.gpu().is_some() {}\n}\n";
        assert_eq!(found("crates/ops/src/add/mod.rs", asking).len(), 1);
        assert!(found("crates/tensor/src/place.rs", asking).is_empty());
        let late = format!("#[cfg(test)]\nmod tests;\n\n#[cfg(test)]\nmod more {{\n{asking}}}\n");
        assert!(found("crates/ops/src/add/mod.rs", &late).is_empty());
    }

    #[test]
    fn devices_are_spoken_to_by_ops_and_formats() {
        let speaking = "use halfbyte_tensor::cuda::number;\n";
        assert_eq!(found("crates/models/src/cache.rs", speaking).len(), 1);
        assert!(found("crates/frozen/src/gpu.rs", speaking).is_empty());
    }

    #[test]
    fn kernels_are_launched_as_they_are_declared() {
        let untyped = "unsafe { gpu.launch_untyped(source, \"add\", launch, &args) }\n";
        assert_eq!(found("crates/ops/src/add/cuda.rs", untyped).len(), 1);
        assert!(found("crates/cuda/src/kernels.rs", untyped).is_empty());
    }
}
