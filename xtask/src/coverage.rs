//! `cargo xtask fuzz --coverage`: how much of each reader its inputs reach.
//!
//! rustc counts, on stable; what it counted is read by LLVM's own `llvm-profdata` and `llvm-cov`, which no toolchain has unasked. Shares are
//! of regions: the branches of the sources that a reader is about, those in which it refuses included. Where it never was is written to
//! a file for each reader, to be judged: nothing leads there, or its inputs are too weak.

use crate::workspace;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The test of each reader, and what it is about: files or folders, with functions that are left out (`-`) or alone count (`+`).
const READERS: [(&str, &[&str]); 14] = [
    ("headers_of_safetensors", &[HEADERS, "crates/files/src/reader.rs +open +checked"]),
    ("headers_without_a_file", &["crates/files/src/header.rs -render -new -bytes -len -is_empty -header_len"]),
    ("indices_without_a_folder", &["crates/files/src/sharded.rs +parse_index"]),
    ("indices_of_shards", &["crates/files/src/sharded.rs +open +add +parse_index -rename"]),
    ("pickles_without_a_file", &["crates/files/src/torch/pickle.rs"]),
    ("pickles", &["crates/files/src/torch -parse_pickle"]),
    (
        "configurations_of_models",
        &[
            "crates/models/src/config.rs -architecture_name -windows -balance -rope_switch -untie -resize_vocabulary",
            "crates/models/src/config",
        ],
    ),
    (
        "configurations_of_adapters",
        &["crates/lora/src/config_json.rs -render_adapter_config -target_value -sorted -number"],
    ),
    (
        "tokenizers",
        &[
            "crates/data/src/tokenizer -from_json -notes -continuation_asked -special_ids -bos -eos -stop_ids -knows_what -stop_also -vocab_size -token_to_id -id_to_token -check_vocab -longest_token -prefix -suffix -encode_with_offsets",
        ],
    ),
    (
        "templates_of_chats",
        &[
            "crates/data/src/chat/template.rs -with_variables -origin -source -takes_the_date -eq",
            "crates/data/src/chat/python.rs",
            "crates/data/src/chat/cycles.rs",
            "crates/data/src/chat/tags.rs",
        ],
    ),
    ("files_of_rows", &["crates/data/src/reader -count -is_named_as_data"]),
    ("states", &["crates/train/src/checkpoint/mod.rs +parse +taken"]),
    ("settings_of_other_programs", &["crates/trainer/src/import -import_config"]),
    ("settings_of_our_own", &["crates/trainer/src/finetune/config_file.rs"]),
];
const HEADERS: &str = "crates/files/src/header.rs -render -new -bytes -len -is_empty";

/// What counts, and the tools that read it.
pub(crate) struct Coverage {
    profdata: PathBuf,
    cov: PathBuf,
    /// Of profiles and reports.
    folder: PathBuf,
    root: PathBuf,
}

impl Coverage {
    /// Looks for the tools, and makes an empty folder.
    pub(crate) fn begins(root: &Path) -> Result<Coverage> {
        let llvm = Llvm::of_rustc()?;
        let (profdata, cov) = (llvm.tool("llvm-profdata")?, llvm.tool("llvm-cov")?);
        let folder = workspace::target_dir(root)?.join("coverage").join("reached");
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Coverage { profdata, cov, folder, root: root.to_owned() })
    }

    /// Has cargo build programs that count, in a folder of their own: what does not count is not built anew each time.
    pub(crate) fn instrument(root: &Path, cargo: &mut Command) -> Result<()> {
        let flags = env::var("RUSTFLAGS").unwrap_or_default();
        cargo.env("RUSTFLAGS", format!("{flags} -C instrument-coverage").trim());
        cargo.env("CARGO_TARGET_DIR", workspace::target_dir(root)?.join("coverage"));
        // Programs that run while others are built count, too, and nobody asks them.
        cargo.env("LLVM_PROFILE_FILE", workspace::NOWHERE);
        Ok(())
    }

    /// Where what was not reached is written down.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a reader's program is to write what it counted.
    pub(crate) fn profile(&self, test: &str) -> PathBuf {
        self.folder.join(format!("{}.profraw", name(test)))
    }

    /// The shares that a reader reached, a line a file, and one for all; what it did not is written down.
    pub(crate) fn report(&self, program: &Path, test: &str) -> Result<String> {
        let Some((_, about)) = READERS.iter().find(|it| it.0 == name(test)) else {
            bail!("{test} has no line in xtask/src/coverage.rs, which says what sources it is about");
        };
        let about: Vec<Part<'_>> = about.iter().map(|it| Part::new(it)).collect();
        let merged = self.folder.join(format!("{}.profdata", name(test)));
        let mut merge = Command::new(&self.profdata);
        workspace::check(merge.args(["merge", "-sparse", "-o"]).arg(&merged).arg(self.profile(test)))?;
        let mut export = Command::new(&self.cov);
        export.args(["export", "--format=text", "--skip-expansions", "--instr-profile"]).arg(&merged).arg(program);
        export.arg("--sources").args(about.iter().map(|it| self.root.join(it.path)));
        let out = export.output().with_context(|| self.cov.display().to_string())?;
        if !out.status.success() {
            bail!("`{}` failed: {}", workspace::shown(&export), String::from_utf8_lossy(&out.stderr).trim());
        }
        let exported: Value =
            serde_json::from_slice(&out.stdout).context("llvm-cov printed something else than JSON")?;
        let regions = regions(&exported, &self.root, &about);
        if regions.is_empty() {
            bail!("{test} counted nothing in the sources that it is about");
        }
        let unreached = self.folder.join(format!("{}.txt", name(test)));
        fs::write(&unreached, unreached_lines(&self.root, &regions)?)
            .with_context(|| unreached.display().to_string())?;
        Ok(shares(name(test), &regions))
    }
}

/// The last part of a test's name.
fn name(test: &str) -> &str {
    test.rsplit("::").next().unwrap_or(test)
}

/// Sources that a reader is about.
struct Part<'a> {
    path: &'a str,
    only: Vec<&'a str>,
    without: Vec<&'a str>,
}

impl<'a> Part<'a> {
    fn new(text: &'a str) -> Part<'a> {
        let mut words = text.split(' ');
        let path = words.next().unwrap_or_default();
        let (only, without): (Vec<&str>, Vec<&str>) = words.partition(|it| it.starts_with('+'));
        let bare = |all: Vec<&'a str>| all.into_iter().map(|it| &it[1..]).collect();
        Part { path, only: bare(only), without: bare(without) }
    }

    /// Whether a function counts, by its mangled name.
    fn has(&self, file: &str, function: &str) -> bool {
        let here = file.strip_prefix(self.path).is_some_and(|it| it.is_empty() || it.starts_with('/'));
        let is_one_of = |all: &[&str]| all.iter().any(|it| is_within(function, it));
        here && !is_one_of(&self.without) && (self.only.is_empty() || is_one_of(&self.only))
    }
}

/// Whether a mangled name, in which the length of each name stands before it, is of something of this name or inside of it.
fn is_within(mangled: &str, name: &str) -> bool {
    let part = format!("{}{name}", name.len());
    mangled.match_indices(&part).any(|(at, _)| !mangled[..at].ends_with(|it: char| it.is_ascii_digit()))
}

/// Where a region begins and ends: a line and a column each.
type Place = ((u64, u64), (u64, u64));
/// How often each region of each file was come by, in any of the copies that were compiled of it.
type Regions = BTreeMap<String, BTreeMap<Place, u64>>;

/// What llvm-cov exported, without functions of tests.
fn regions(exported: &Value, root: &Path, about: &[Part<'_>]) -> Regions {
    const CODE: u64 = 0;
    let mut found = Regions::new();
    for function in exported["data"][0]["functions"].as_array().into_iter().flatten() {
        let mangled = function["name"].as_str().unwrap_or_default();
        let files = &function["filenames"];
        for region in function["regions"].as_array().into_iter().flatten() {
            let number = |at: usize| region[at].as_u64().unwrap_or_default();
            let path = files[number(5) as usize].as_str().unwrap_or_default();
            let file =
                Path::new(path).strip_prefix(root).unwrap_or(Path::new(path)).to_string_lossy().replace('\\', "/");
            let is_test = is_within(mangled, "tests") || is_within(mangled, "parsers");
            if number(7) == CODE && !is_test && about.iter().any(|it| it.has(&file, mangled)) {
                let place = ((number(0), number(1)), (number(2), number(3)));
                let count = found.entry(file).or_default().entry(place).or_default();
                *count = (*count).max(number(4));
            }
        }
    }
    found
}

fn shares(reader: &str, regions: &Regions) -> String {
    let line = |what: &str, counts: &[u64]| {
        let reached = counts.iter().filter(|it| **it > 0).count();
        let share = 100.0 * reached as f64 / counts.len() as f64;
        format!("{share:>6.1} %  {reached:>5} of {:>5}  {what}\n", counts.len())
    };
    let all: Vec<u64> = regions.values().flat_map(BTreeMap::values).copied().collect();
    let files = regions.iter().map(|(file, it)| line(&format!("  {file}"), &it.values().copied().collect::<Vec<_>>()));
    [line(reader, &all)].into_iter().chain(files).collect()
}

/// A line for each region that was never come by: its place, and how the text begins there.
fn unreached_lines(root: &Path, regions: &Regions) -> Result<String> {
    let mut text = String::new();
    for (file, regions) in regions {
        let source = fs::read_to_string(root.join(file)).with_context(|| file.clone())?;
        let lines: Vec<&str> = source.lines().collect();
        for (((line, column), end), _) in regions.iter().filter(|it| *it.1 == 0) {
            let code: String =
                lines.get(*line as usize - 1).unwrap_or(&"").chars().skip(*column as usize - 1).collect();
            let _ = writeln!(text, "{file}:{line}:{column}-{}:{}  {code}", end.0, end.1);
        }
    }
    Ok(text)
}

/// LLVM, as rustc has it.
struct Llvm {
    version: String,
    /// Where rustup puts its tools.
    component: PathBuf,
}

impl Llvm {
    fn of_rustc() -> Result<Llvm> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let ask = |args: &[&str]| -> Result<String> {
            let out = Command::new(&rustc).args(args).output().context("rustc does not start")?;
            Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
        };
        let said = ask(&["-vV"])?;
        let field = |name: &str| said.lines().find_map(|it| it.strip_prefix(name)).unwrap_or_default().trim();
        let component = Path::new(&ask(&["--print", "sysroot"])?).join("lib/rustlib").join(field("host:")).join("bin");
        Ok(Llvm { version: field("LLVM version:").to_owned(), component })
    }

    /// A tool of rustc's LLVM or of a later one: an older one does not know what rustc writes.
    fn tool(&self, name: &str) -> Result<PathBuf> {
        let major: u32 =
            self.version.split('.').next().and_then(|it| it.parse().ok()).context("rustc names no LLVM")?;
        let exe = env::consts::EXE_SUFFIX;
        let ours = self.component.join(format!("{name}{exe}"));
        let numbered = (major..major + 4).map(|it| PathBuf::from(format!("{name}-{it}{exe}")));
        let found = [ours].into_iter().chain(numbered).chain([PathBuf::from(format!("{name}{exe}"))]).find(|it| {
            let said =
                Command::new(it).arg("--version").output().map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
            said.is_ok_and(|it| version(&it).is_some_and(|it| it >= major))
        });
        found.with_context(|| {
            format!(
                "--coverage needs {name} of LLVM {major}, as rustc has it, or later, and there is none: `rustup component add llvm-tools`, or the package llvm-{major} of the system"
            )
        })
    }
}

/// The number behind `LLVM version`, whatever stands around it.
fn version(said: &str) -> Option<u32> {
    let behind = said.split("LLVM version ").nth(1)?;
    behind.split(|it: char| !it.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_readers_are_about_exists() {
        for part in READERS.iter().flat_map(|it| it.1).map(|it| Part::new(it)) {
            let path = workspace::root().join(part.path);
            assert!(path.exists(), "{}", path.display());
            let files = if path.is_file() {
                vec![path]
            } else {
                fs::read_dir(path).unwrap().map(|it| it.unwrap().path()).collect()
            };
            let text: String = files.iter().map(|it| fs::read_to_string(it).unwrap()).collect();
            for name in part.only.iter().chain(&part.without) {
                assert!(text.contains(&format!("fn {name}")), "{} has no {name}", part.path);
            }
        }
    }

    #[test]
    fn regions_of_the_functions_asked_for_count_once() {
        let function = |name: &str, count: u64| {
            json!({ "name": name, "filenames": ["/r/a/b.rs", "/r/a/c.rs"], "regions": [
                [1, 1, 9, 2, 1, 0, 0, 0], [3, 5, 3, 9, count, 0, 0, 0], [4, 1, 4, 2, 0, 0, 0, 3], [5, 1, 5, 2, 1, 1, 0, 0]
            ] })
        };
        let all = json!({ "data": [{ "functions": [
            function("_R3abc5parse", 0), function("_R3abd5parse", 2), function("_R15parse", 9), function("_R5tests5parse", 7)
        ] }] });
        let found = regions(&all, Path::new("/r"), &[Part::new("a/b.rs +parse")]);
        let places = BTreeMap::from([(((1, 1), (9, 2)), 1), (((3, 5), (3, 9)), 2)]);
        assert_eq!(found, Regions::from([("a/b.rs".to_owned(), places)]));
        let without = regions(&all, Path::new("/r"), &[Part::new("a -parse")]);
        assert_eq!(without.len(), 2, "what is called otherwise, in both files");
        assert_eq!(shares("it", &found), " 100.0 %      2 of     2  it\n 100.0 %      2 of     2    a/b.rs\n");
    }

    #[test]
    fn a_version_is_read_from_what_tools_say() {
        assert_eq!(version("Debian LLVM version 22.1.8\n  Optimized build."), Some(22));
        assert_eq!(version("LLVM (http://llvm.org/):\n  LLVM version 14.0.6\n"), Some(14));
        assert_eq!(version("no such thing"), None);
    }
}
