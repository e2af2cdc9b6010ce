//! What the workspace depends on, against the lists in `deny.toml`: licences, sources, second versions, programs that run while a crate
//! is built. `cargo deny` reads the same file, and knows of advisories beside.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::{self, cargo, check};

/// The file of the lists.
const LISTS: &str = "deny.toml";
/// The only place that crates come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// What a program would need to reach the network while a crate is built.
const NETWORK: [&str; 7] = ["TcpStream", "ureq::", "reqwest", "hyper::", "\"curl\"", "\"wget\"", "\"git\", \"clone\""];

/// Runs `cargo deny check` where there is such a command, and says so where there is none. `offline` takes the advisories that
/// cargo-deny fetched before.
pub(crate) fn deny(offline: bool) -> Result<()> {
    let root = workspace::root();
    let there = Command::new("cargo-deny").arg("--version").output().is_ok_and(|it| it.status.success());
    if !there {
        println!(
            "skipped: advisories were not asked for, since cargo-deny is not installed (cargo install cargo-deny); licences, sources, versions and build scripts are checked by tidy"
        );
        return Ok(());
    }
    let mut it = cargo();
    it.args(["deny", "--all-features"]).args(offline.then_some("--offline")).arg("check").current_dir(&root);
    check(&mut it)
}

/// What breaks the rules in `deny.toml`.
pub(crate) fn violations(root: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(root.join(LISTS)).with_context(|| format!("cannot read {LISTS}"))?;
    broken(&Lists::parse(&text)?, &packages(root)?)
}

/// The platform whose dependencies are held to the lists, wherever they are checked: on others a few more come in.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// All packages of the lock file that are built for that platform.
fn packages(root: &Path) -> Result<Vec<Package>> {
    let mut cmd = cargo();
    cmd.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", PLATFORM]).current_dir(root);
    let out = cmd.output().with_context(|| format!("cannot start {cmd:?}"))?;
    if !out.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    let metadata: Value =
        serde_json::from_slice(&out.stdout).context("cargo metadata printed something else than JSON")?;
    let all = metadata["packages"].as_array().context("cargo metadata listed no packages")?;
    all.iter().filter(|it| it["source"].is_string()).map(Package::of).collect()
}

/// A crate from outside.
#[derive(Debug)]
struct Package {
    name: String,
    version: String,
    source: String,
    licence: String,
    /// The program that runs when it is built.
    script: Option<String>,
}

impl Package {
    fn of(from: &Value) -> Result<Package> {
        let text = |key: &str| from[key].as_str().unwrap_or_default().to_owned();
        let is_script = |it: &&Value| it["kind"].as_array().is_some_and(|it| it.iter().any(|it| it == "custom-build"));
        let script = from["targets"].as_array().into_iter().flatten().find(is_script);
        let read = |it: &Value| {
            let path = it["src_path"].as_str().unwrap_or_default();
            std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
        };
        Ok(Package {
            name: text("name"),
            version: text("version"),
            source: text("source"),
            licence: text("license"),
            script: script.map(read).transpose()?,
        })
    }
}

/// The lists of `deny.toml`.
#[derive(Debug, Default)]
struct Lists {
    licences: BTreeSet<String>,
    /// `NAME@VERSION` of those that may stand beside a newer one.
    older: BTreeSet<String>,
    scripts: BTreeSet<String>,
}

impl Lists {
    /// Reads lists of one text a line, which is how the file is written.
    fn parse(text: &str) -> Result<Lists> {
        let mut lists: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let (mut section, mut open) = (String::new(), None::<String>);
        for line in text.lines().map(str::trim).filter(|it| !it.starts_with('#')) {
            match &open {
                Some(_) if line == "]" => open = None,
                Some(name) => {
                    let item = line.trim_end_matches(',').strip_prefix('"').and_then(|it| it.strip_suffix('"'));
                    let item = item.with_context(|| format!("{LISTS}: `{line}` is no text in quotes"))?;
                    lists.entry(name.clone()).or_default().insert(item.to_owned());
                }
                None if line.starts_with('[') => section = line.trim_matches(['[', ']']).to_owned(),
                None => open = line.strip_suffix("= [").map(|key| format!("{section}.{}", key.trim())),
            }
        }
        let mut take = |name: &str| lists.remove(name).with_context(|| format!("{LISTS} has no list {name}"));
        Ok(Lists {
            licences: take("licenses.allow")?,
            older: take("bans.skip")?,
            scripts: take("bans.build.allow-build-scripts")?,
        })
    }
}

fn broken(lists: &Lists, packages: &[Package]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for it in packages {
        let Package { name, version, source, licence, script } = it;
        versions.entry(name).or_default().push(version);
        if source != REGISTRY {
            found.push(format!("{name} {version} comes from {source}; only crates.io is trusted"));
        }
        if !allows(licence, &lists.licences) {
            found.push(format!(
                "{name} {version} is under `{licence}`, which {LISTS} does not allow: read it, and decide"
            ));
        }
        let Some(script) = script else { continue };
        if !lists.scripts.contains(name) {
            found.push(format!(
                "{name} {version} runs a program when it is built (build.rs), which {LISTS} does not allow: read it, and decide"
            ));
        }
        if let Some(word) = NETWORK.iter().find(|word| script.contains(**word)) {
            found.push(format!("{name} {version}: its build.rs holds `{word}`; does it reach the network?"));
        }
    }
    for (name, mut all) in versions {
        all.sort_by_key(|it| numbers(it));
        let older = &all[..all.len() - 1];
        for version in older.iter().filter(|it| !lists.older.contains(&format!("{name}@{it}"))) {
            found.push(format!(
                "{name} is there as {version} and as {}, which {LISTS} does not allow: bring them together, or decide",
                all[all.len() - 1]
            ));
        }
    }
    Ok(found)
}

fn numbers(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map(|it| it.parse().unwrap_or(0)).collect()
}

/// Whether an SPDX expression can be met with allowed licences. A slash, as old manifests have it, is an OR.
fn allows(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let is_met = any(&mut words, allowed);
    is_met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut is_met = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        is_met |= all(words, allowed);
    }
    is_met
}

fn all(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut is_met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        is_met &= one(words, allowed);
    }
    is_met
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let Some(name) = words.next() else { return false };
    if name == "(" {
        let is_met = any(words, allowed);
        return words.next() == Some(")") && is_met;
    }
    let mut name = name.to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        name = format!("{name} WITH {}", words.next().unwrap_or_default());
    }
    allowed.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[licenses]\nallow = [\n    # a note\n    \"MIT\",\n    \"ISC\",\n]\n[bans]\nskip = [\n    \"a@0.1.9\",\n]\n[bans.build]\nallow-build-scripts = [\n    \"b\",\n]\n";

    fn package(name: &str, version: &str) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            source: REGISTRY.into(),
            licence: "MIT".into(),
            script: None,
        }
    }

    #[track_caller]
    fn only(packages: &[Package], part: &str) {
        let found = broken(&Lists::parse(TEXT).unwrap(), packages).unwrap();
        assert!(found.len() == 1 && found[0].contains(part), "{found:?}");
    }

    #[test]
    fn expressions_are_met_by_allowed_licences() {
        let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
        for met in ["MIT", "GPL-3.0 OR MIT", "GPL-3.0/MIT", "MIT AND ISC", "(GPL-3.0 OR MIT) AND ISC"] {
            assert!(allows(met, &allowed), "{met}");
        }
        assert!(allows("Apache-2.0 WITH LLVM-exception OR GPL-3.0", &allowed));
        for not in ["", "GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "(MIT", "MIT ISC"] {
            assert!(!allows(not, &allowed), "{not}");
        }
    }

    #[test]
    fn each_rule_finds_what_breaks_it_and_nothing_else() {
        let script = |text: &str| Some(text.to_owned());
        let fine = [
            package("a", "0.1.10"),
            package("a", "0.1.9"),
            Package { script: script("fn main() {}"), ..package("b", "1.0.0") },
        ];
        assert_eq!(broken(&Lists::parse(TEXT).unwrap(), &fine).unwrap(), [] as [String; 0]);
        only(&[Package { licence: "GPL-3.0".into(), ..package("c", "1.0.0") }], "GPL-3.0");
        only(&[Package { licence: String::new(), ..package("c", "1.0.0") }], "is under ``");
        only(&[Package { source: "git+https://example.org".into(), ..package("c", "1.0.0") }], "only crates.io");
        only(&[Package { script: script("fn main() {}"), ..package("c", "1.0.0") }], "build.rs");
        only(&[Package { script: script("TcpStream::connect"), ..package("b", "1.0.0") }], "network");
        only(&[package("c", "1.2.0"), package("c", "1.10.0")], "c is there as 1.2.0 and as 1.10.0");
        assert!(Lists::parse("[licenses]\nallow = [\n]\n").is_err(), "a list that is missing is no empty one");
    }
}
