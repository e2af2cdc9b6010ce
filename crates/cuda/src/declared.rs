//! The modules of kernels as `kernels!` declares them, found in the text of the crates: for tools that compile all of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A module of kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// The files that its text consists of, in order.
    pub files: Vec<PathBuf>,
}

impl Declared {
    /// The text of all its files.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn text(&self) -> io::Result<String> {
        self.files.iter().map(fs::read_to_string).collect()
    }
}

/// All modules that the files of some crates declare, by name. Those whose kernels stand in the declaration itself are left out.
///
/// # Errors
/// If a folder or a file cannot be read.
pub fn declared(crates: &Path) -> io::Result<Vec<Declared>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(crates)? {
        for part in ["src", "tests"] {
            let folder = entry.as_ref().map_err(|e| io::Error::from(e.kind()))?.path().join(part);
            if folder.is_dir() {
                find(&folder, &mut found)?;
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn find(folder: &Path, found: &mut Vec<Declared>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, found)?;
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.extend(in_text(&fs::read_to_string(&path)?, folder));
        }
    }
    Ok(())
}

/// Of `const NAME = "module", "file" "file", over ...` behind `kernels! {`, which begin lines; files are those of `include_str!`.
fn in_text(text: &str, folder: &Path) -> Vec<Declared> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in text.lines().map(str::trim_start) {
        inside = line == "kernels! {" || (inside && line.starts_with("const "));
        let Some((_, said)) = line.split_once(" = ").filter(|_| inside) else { continue };
        let Some((name, rest)) = said.split_once(", ") else { continue };
        let Some((files, _)) = rest.split_once(", over ").filter(|it| it.0.starts_with('"')) else { continue };
        let files = files.split_whitespace().map(|it| folder.join(it.trim_matches('"'))).collect();
        found.push(Declared { name: name.trim_matches('"').to_owned(), files });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_says_of_which_files_a_module_is() {
        let text = "/// kernels! {\n///     const SOURCE = \"told\", \"of.cu\", over Tensor;\nkernels! {\n    const SOURCE = \"one\", \"../a.cuh\" \"kernel.cu\", over Tensor;\n    const OTHER = \"two\", \"b.cuh\" \"kernel.cu\", over Tensor;\n    f as F { x: i32 }\n}\nconst THIRD: &str = \"no, module, over\";\nkernels! {\n    const SOURCE = \"none\", text \"KERNEL f(int x) {}\", over Slice;\n}\n";
        let of = |name: &str, files: &[&str]| {
            let files = files.iter().map(|it| Path::new("here").join(it)).collect();
            Declared { name: name.into(), files }
        };
        let expected = [of("one", &["../a.cuh", "kernel.cu"]), of("two", &["b.cuh", "kernel.cu"])];
        assert_eq!(in_text(text, Path::new("here")), expected);
    }

    #[test]
    fn no_file_of_kernels_is_forgotten_and_no_name_is_twice() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let names: Vec<String> = declared(&crates).unwrap().into_iter().map(|it| it.name).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        let known: Vec<PathBuf> =
            declared(&crates).unwrap().iter().flat_map(|it| &it.files).map(|it| it.canonicalize().unwrap()).collect();
        let mut there = Vec::new();
        files_of_kernels(&crates, &mut there);
        assert!(there.len() > 20, "{there:?}");
        for it in there {
            assert!(known.contains(&it), "{} is of no module", it.display());
        }
    }

    fn files_of_kernels(folder: &Path, found: &mut Vec<PathBuf>) {
        for path in fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()) {
            if path.is_dir() {
                files_of_kernels(&path, found);
            } else if path.extension().is_some_and(|it| it == "cu") {
                found.push(path.canonicalize().unwrap());
            }
        }
    }
}
