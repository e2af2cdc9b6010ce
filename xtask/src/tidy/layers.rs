//! The layering: the table in `docs/architecture.md` against the dependencies in the manifests.
//!
//! The document is the rule, so nothing about a particular crate stands here: only how the tables are read.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Violation;

/// The document whose tables are the rules.
const DOCUMENT: &str = "docs/architecture.md";
/// Heading cells by which the two tables are recognised.
const LAYER_HEADINGS: [&str; 2] = ["Layer", "Crate"];
const HOME_HEADINGS: [&str; 2] = ["Outside crate", "Only in"];
/// In place of a number: tools that stand beside the layers; nothing may be built on them but tests.
const DEV: &str = "dev";
/// In the last column: no internal crate at all.
const ANY: &str = "any";
const PREFIX: &str = "halfbyte-";

/// One row of the layering table.
struct Crate {
    /// None: a tool.
    layer: Option<u8>,
    never: Vec<String>,
    readme: bool,
}

struct Rules {
    crates: BTreeMap<String, Crate>,
    /// Outside crates that have a fixed home: name, who may use them.
    homes: Vec<(String, Vec<String>)>,
}

pub(super) fn check(root: &Path, metadata: &Value) -> Result<Vec<Violation>> {
    let text = std::fs::read_to_string(root.join(DOCUMENT)).with_context(|| format!("cannot read {DOCUMENT}"))?;
    let rules = parse(&text)?;
    let packages = metadata["packages"].as_array().context("cargo metadata listed no packages")?;
    let mut violations = Vec::new();
    for name in rules.crates.keys() {
        if !packages.iter().any(|p| short(p) == name) {
            violations.push(format!("{DOCUMENT} lists the crate {name}, which is no member of the workspace"));
        }
    }
    for package in packages {
        let name = short(package);
        let Some(row) = rules.crates.get(name) else {
            violations.push(format!("the package {name} has no row in the layering table of {DOCUMENT}: add one"));
            continue;
        };
        let folder = Path::new(package["manifest_path"].as_str().unwrap_or_default()).parent().unwrap_or(root);
        if row.readme && !folder.join("README.md").exists() {
            violations.push(format!("{name} is meant to be used alone: give it a README.md beside its Cargo.toml"));
        }
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if let Some(why) = rules.forbids(name, row, dependency) {
                violations.push(format!("{name} depends on {}: {why}", short(dependency)));
            }
        }
    }
    Ok(violations)
}

impl Rules {
    /// Why `dependency` of the crate `name` breaks a rule, if it does.
    fn forbids(&self, name: &str, row: &Crate, dependency: &Value) -> Option<String> {
        let below = short(dependency);
        let is_dev = dependency["kind"] == "dev";
        if !dependency["path"].is_string() {
            let (_, homes) = self.homes.iter().find(|(outside, _)| outside == below)?;
            return (!homes.iter().any(|h| h == name)).then(|| format!("only {} may use it", homes.join(", ")));
        }
        if row.never.iter().any(|n| n == below || n == ANY) {
            return Some(format!("{DOCUMENT} says never"));
        }
        let target = self.crates.get(below)?;
        match (row.layer, target.layer) {
            (_, None) if is_dev || row.layer.is_none() => None,
            (Some(_), None) => Some(format!("{below} is a tool for tests, so it can only be a dev-dependency")),
            (Some(own), Some(other)) if other >= own => {
                Some(format!("arrows point down only, and L{other} is not below L{own}"))
            }
            // The top wires everything: nothing may be wired to it.
            (None, Some(other)) if Some(other) == self.top() => {
                Some(format!("nothing depends on the top layer, L{other}"))
            }
            _ => None,
        }
    }

    fn top(&self) -> Option<u8> {
        self.crates.values().filter_map(|c| c.layer).max()
    }
}

/// A package's name without the common prefix.
fn short(package: &Value) -> &str {
    let name = package["name"].as_str().unwrap_or_default();
    name.strip_prefix(PREFIX).unwrap_or(name)
}

fn parse(text: &str) -> Result<Rules> {
    let mut crates = BTreeMap::new();
    for row in table(text, LAYER_HEADINGS)? {
        let [layer, name, .., readme, never] = row.as_slice() else {
            bail!("{DOCUMENT}: a row of the layering table has {} cells, five are needed: {row:?}", row.len());
        };
        let layer = match layer.strip_prefix('L').map(str::parse) {
            Some(Ok(number)) => Some(number),
            None if layer == DEV => None,
            _ => bail!("{DOCUMENT}: the layer of {name} is `{layer}`; write L and a number, or {DEV}"),
        };
        let row = Crate { layer, never: names(never), readme: readme == "yes" };
        if crates.insert(name.clone(), row).is_some() {
            bail!("{DOCUMENT}: the crate {name} has two rows in the layering table");
        }
    }
    let homes = table(text, HOME_HEADINGS)?;
    let homes = homes.into_iter().filter_map(|r| Some((r.first()?.clone(), names(r.get(1)?)))).collect();
    Ok(Rules { crates, homes })
}

/// The rows of the Markdown table whose heading begins with these two cells, backticks taken off.
fn table(text: &str, headings: [&str; 2]) -> Result<Vec<Vec<String>>> {
    let mut lines =
        text.lines().map(cells).skip_while(|c| !(c.len() >= 2 && c[0] == headings[0] && c[1] == headings[1]));
    if lines.next().is_none() {
        bail!("{DOCUMENT} has no table headed `| {} | {} |`", headings[0], headings[1]);
    }
    Ok(lines.skip(1).take_while(|c| !c.is_empty()).collect())
}

/// The cells of one line of a table; none when the line is not of a table.
fn cells(line: &str) -> Vec<String> {
    let Some(inner) = line.trim().strip_prefix('|').and_then(|l| l.strip_suffix('|')) else {
        return Vec::new();
    };
    inner.split('|').map(|c| c.trim().replace('`', "")).collect()
}

fn names(cell: &str) -> Vec<String> {
    cell.split(',').map(str::trim).filter(|n| !n.is_empty()).map(str::to_owned).collect()
}
