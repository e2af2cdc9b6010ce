//! `cargo xtask package-check`: are the reusable crates of use to a stranger?
//!
//! Each is packaged as for a registry, and what the package holds (not the folder beside us) is unpacked and used by a program in
//! a workspace of its own, built alone. So a file left out of a package, a path dependency without a version or a need for a
//! feature that only a neighbour switches on shows itself here, without a network.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::workspace;

/// One program of `tests/consumer`, and the packages that it names in its manifest.
struct Consumer {
    name: &'static str,
    dependencies: &'static [&'static str],
}

const CONSUMERS: &[Consumer] = &[
    Consumer { name: "nf4", dependencies: &["halfbyte-nf4"] },
    Consumer { name: "matmul", dependencies: &["halfbyte-matmul"] },
    Consumer { name: "data", dependencies: &["halfbyte-data"] },
    Consumer { name: "files", dependencies: &["halfbyte-files"] },
    Consumer { name: "hub", dependencies: &["halfbyte-hub"] },
    Consumer { name: "paged-optim", dependencies: &["halfbyte-paged-optim"] },
    // Adapters are trained on a tape of tensors over a frozen matrix: the types of its interface come from these crates.
    Consumer {
        name: "lora",
        dependencies: &["halfbyte-lora", "halfbyte-tensor", "halfbyte-autograd", "halfbyte-ops", "halfbyte-matmul"],
    },
    // A model, its data and what of it trains are the caller's; the formats are those of the package's own example.
    Consumer {
        name: "train",
        dependencies: &[
            "halfbyte-train",
            "halfbyte-frozen",
            "halfbyte-models",
            "halfbyte-lora",
            "halfbyte-data",
            "halfbyte-autograd",
            "halfbyte-tensor",
        ],
    },
];

const SOURCES: &str = "tests/consumer";

/// Packages, unpacks, builds and runs, for all consumers or the one named; says which package or program failed.
pub(crate) fn run(only: Option<&str>) -> Result<()> {
    let consumers = chosen(only)?;
    let root = workspace::root();
    let meta = workspace::metadata(&root)?;
    let target = PathBuf::from(meta["target_directory"].as_str().context("cargo metadata named no target_directory")?);
    let packages = closure(&meta, &consumers)?;

    let sh = Shell::new()?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let temp = sh.create_temp_dir()?;
    let outside = temp.path();
    sh.change_dir(&root);
    let selected = packages.iter().flat_map(|p| ["--package", p.name.as_str()]);
    // Offline: whoever built the workspace has every dependency, and the members themselves are on no registry yet.
    // Not verified by cargo: that would build every dependency again without our profile; the consumers below build what matters.
    cmd!(sh, "{cargo} package --quiet --offline --no-verify --allow-dirty --target-dir {target} {selected...}")
        .run()?;

    let unpacked = outside.join("packages");
    sh.create_dir(&unpacked)?;
    for package in &packages {
        let file = target.join("package").join(format!("{}.crate", package.folder()));
        cmd!(sh, "tar -xzf {file} -C {unpacked}").quiet().run()?;
    }
    write_consumers(&sh, &root, outside, &consumers, &packages)?;
    sh.change_dir(outside);
    for consumer in &consumers {
        let name = consumer.package();
        println!("consumer of {}", consumer.dependencies.join(", "));
        let build = cmd!(sh, "{cargo} run --quiet --offline --target-dir {target} --package {name}");
        workspace::told_by_cargo()
            .fold(build, |cmd, variable| cmd.env_remove(variable))
            .quiet()
            .run()
            .with_context(|| format!("{SOURCES}/{}.rs, built outside the workspace, failed", consumer.name))?;
    }
    println!("{} packages, {} consumers: ok", packages.len(), consumers.len());
    Ok(())
}

fn chosen(only: Option<&str>) -> Result<Vec<&'static Consumer>> {
    let consumers: Vec<_> = CONSUMERS.iter().filter(|c| only.is_none_or(|name| c.name == name)).collect();
    if consumers.is_empty() {
        let names: Vec<_> = CONSUMERS.iter().map(|c| c.name).collect();
        bail!("there is no consumer `{}`; there are {}", only.unwrap_or_default(), names.join(", "));
    }
    Ok(consumers)
}

impl Consumer {
    fn package(&self) -> String {
        format!("use-{}", self.name)
    }
}

/// A package of ours as `cargo package` names it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
}

impl Package {
    fn folder(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }
}

/// What the consumers name and everything internal below it, but for dev-dependencies: those are not packaged.
fn closure(meta: &Value, consumers: &[&Consumer]) -> Result<BTreeSet<Package>> {
    let members = meta["packages"].as_array().context("cargo metadata listed no packages")?;
    let mut open: Vec<&str> = consumers.iter().flat_map(|c| c.dependencies.iter().copied()).collect();
    let mut found = BTreeSet::new();
    while let Some(name) = open.pop() {
        let Some(member) = members.iter().find(|m| m["name"] == name) else {
            bail!("a consumer wants the package {name}, which is no member of the workspace");
        };
        let version = member["version"].as_str().unwrap_or_default().to_owned();
        if found.insert(Package { name: name.to_owned(), version }) {
            let below = member["dependencies"].as_array().into_iter().flatten();
            open.extend(
                below.filter(|d| d["path"].is_string() && d["kind"] != "dev").filter_map(|d| d["name"].as_str()),
            );
        }
    }
    Ok(found)
}

fn write_consumers(
    sh: &Shell,
    root: &Path,
    outside: &Path,
    consumers: &[&Consumer],
    packages: &BTreeSet<Package>,
) -> Result<()> {
    let members: Vec<_> = consumers.iter().map(|c| format!("\"{}\"", c.package())).collect();
    let mut manifest =
        format!("[workspace]\nresolver = \"3\"\nmembers = [{}]\n\n[patch.crates-io]\n", members.join(", "));
    for package in packages {
        manifest += &format!("{} = {{ path = \"packages/{}\" }}\n", package.name, package.folder());
    }
    // Our profiles and lock file: dependencies then have the fingerprints of the workspace's own and are not built twice.
    manifest += &profiles(&sh.read_file(root.join("Cargo.toml"))?);
    sh.write_file(outside.join("Cargo.toml"), manifest)?;
    sh.copy_file(root.join("Cargo.lock"), outside.join("Cargo.lock"))?;
    for consumer in consumers {
        let dir = outside.join(consumer.package());
        sh.write_file(dir.join("Cargo.toml"), consumer_manifest(consumer, packages))?;
        sh.create_dir(dir.join("src"))?;
        sh.copy_file(root.join(SOURCES).join(format!("{}.rs", consumer.name)), dir.join("src/main.rs"))?;
    }
    Ok(())
}

fn consumer_manifest(consumer: &Consumer, packages: &BTreeSet<Package>) -> String {
    let name = consumer.package();
    let mut text = format!("[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n");
    for package in packages.iter().filter(|p| consumer.dependencies.contains(&p.name.as_str())) {
        text += &format!("{} = \"{}\"\n", package.name, package.version);
    }
    text
}

/// The `[profile...]` sections of a manifest.
fn profiles(manifest: &str) -> String {
    let mut inside = false;
    let mut text = String::from("\n");
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.starts_with("[profile");
        }
        if inside {
            text += line;
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closure_follows_internal_dependencies_but_not_dev_ones() {
        let member =
            |name: &str, deps: Value| serde_json::json!({"name": name, "version": "0.1.0", "dependencies": deps});
        let dep = |name: &str, kind: Value| serde_json::json!({"name": name, "kind": kind, "path": "/somewhere"});
        let mut packages: Vec<Value> = CONSUMERS
            .iter()
            .flat_map(|c| c.dependencies.iter())
            .filter(|n| **n != "halfbyte-nf4")
            .map(|n| member(n, serde_json::json!([])))
            .collect();
        packages.push(member(
            "halfbyte-nf4",
            serde_json::json!([dep("below", Value::Null), dep("testkit", "dev".into()), {"name": "half", "kind": null}]),
        ));
        packages.push(member("below", serde_json::json!([])));
        let found = closure(&serde_json::json!({ "packages": packages }), &chosen(None).unwrap()).unwrap();
        let names: Vec<_> = found.iter().map(|p| p.name.as_str()).collect();
        assert!(names.contains(&"below") && names.contains(&"halfbyte-ops"), "{names:?}");
        assert!(!names.contains(&"testkit") && !names.contains(&"half"), "{names:?}");
    }

    #[test]
    fn profiles_are_taken_over_and_nothing_else() {
        let manifest =
            "[workspace]\na = 1\n\n[profile.dev]\ndebug = 1\n[lints]\nb = 2\n[profile.dev.package.\"*\"]\nc = 3\n";
        assert_eq!(profiles(manifest), "\n[profile.dev]\ndebug = 1\n[profile.dev.package.\"*\"]\nc = 3\n");
    }
}
