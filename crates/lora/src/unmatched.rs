//! Names of a configuration that mean nothing in a model.

use crate::{
    Error, LoraConfig, Modules, Result, Role, Selection, TargetModules, attach::local_names, stacks::renamed, suggest,
};

/// Refuses a configuration of which a name or a pattern means no module of the model at all, as a misspelt one does.
///
/// For a fresh adapter alone: PEFT is silent about such names as long as another one matches, so files may hold some. Names that
/// modules had as experts in older versions of transformers mean what they are today.
///
/// # Errors
/// The first name that matches nothing, with those that there are.
pub fn refuse_unmatched(modules: &Modules<'_>, config: &LoraConfig) -> Result<()> {
    let there = There::of(modules);
    if let TargetModules::Names(names) = &config.target_modules
        && let Some(name) = names.iter().find(|it| !ends_one(&there.targets, it) && !there.was_renamed(it))
    {
        let available = local_names(modules);
        let asked = TargetModules::Names(vec![name.clone()]);
        return Err(Error::NoTarget { asked: name.clone(), hint: suggest(&asked, &available), available });
    }
    let refuse = |key: &str, name: &str, among: String| {
        Err(Error::Config(format!("{key} names `{name}`, which matches nothing in this model; it has {among}")))
    };
    let modules_there = || local_names(modules).join(", ");
    match &config.exclude_modules {
        Some(TargetModules::Names(names)) => {
            if let Some(name) = names.iter().find(|it| !ends_one(&there.modules, it)) {
                return refuse("exclude_modules", name, modules_there());
            }
        }
        Some(excluded @ TargetModules::Regex(regex)) => {
            let alone = LoraConfig { target_modules: excluded.clone(), ..LoraConfig::default() };
            let selection = Selection::new(&alone, None)?;
            if !there.modules.iter().any(|it| selection.adapts(it)) {
                return refuse("exclude_modules", regex, modules_there());
            }
        }
        Some(TargetModules::AllLinear) | None => {}
    }
    let patterns =
        |key: &'static str, names: Vec<&String>| names.into_iter().map(move |it| (key, it.clone())).collect();
    let ranks: Vec<_> = patterns("rank_pattern", config.rank_pattern.iter().map(|it| &it.0).collect());
    let alphas: Vec<_> = patterns("alpha_pattern", config.alpha_pattern.iter().map(|it| &it.0).collect());
    for (key, name) in ranks.into_iter().chain(alphas) {
        // Another rank than the rest shows where the pattern matches.
        let alone = LoraConfig { rank: 1, rank_pattern: vec![(name.clone(), 2)], ..LoraConfig::default() };
        let selection = Selection::new(&alone, None)?;
        let all = || there.modules.iter().chain(&there.parameters);
        if !all().any(|it| selection.rank_and_scaling(it).0 == 2) {
            return refuse(key, &name, modules_there());
        }
    }
    for name in &config.target_parameters {
        let alone = LoraConfig { target_parameters: vec![name.clone()], ..LoraConfig::default() };
        let selection = Selection::new(&alone, None)?;
        if !there.parameters.iter().any(|it| selection.means(it)) {
            return refuse("target_parameters", name, ends_of(&there.parameters).join(", "));
        }
    }
    Ok(())
}

/// What names can mean.
struct There {
    /// Paths of modules, and the names of those that are parameters today.
    modules: Vec<String>,
    /// Paths of those that can be targets: neither a head that is the embedding, nor routers and experts where they always
    /// were parameters.
    targets: Vec<String>,
    /// Names of modules that are parameters today.
    renamed: Vec<String>,
    /// Paths of the parameters that `target_parameters` can mean.
    parameters: Vec<String>,
}

impl There {
    fn of(modules: &Modules<'_>) -> There {
        let renamed: Vec<String> = renamed(modules).into_iter().map(|it| it.0).collect();
        let mut there = There { modules: renamed.clone(), targets: Vec::new(), renamed, parameters: Vec::new() };
        for linear in &modules.linears {
            there.modules.extend([linear.path().to_owned(), linear.module().to_owned()]);
            if linear.member().is_none() && linear.role() != Role::Router {
                there.targets.extend([linear.path().to_owned(), linear.module().to_owned()]);
            }
            there.parameters.push(match linear.member() {
                Some(member) => member.stack.clone(),
                None => format!("{}.weight", linear.module()),
            });
        }
        there.targets.extend(modules.weights.iter().map(|it| it.module().to_owned()));
        there.modules.extend(modules.weights.iter().map(|it| it.module().to_owned()));
        there.modules.extend(modules.tied.iter().map(|it| it.head.clone()));
        there
    }

    /// Whether a name is, or ends in, that of a module that is a parameter today.
    fn was_renamed(&self, name: &str) -> bool {
        self.renamed.iter().any(|it| name == it || name.ends_with(&format!(".{it}")))
    }
}

/// Whether one of these paths ends in the components of `name`.
fn ends_one(paths: &[String], name: &str) -> bool {
    paths.iter().any(|it| it == name || it.ends_with(&format!(".{name}")))
}

/// The last two components of paths, each once.
fn ends_of(paths: &[String]) -> Vec<&str> {
    let mut ends: Vec<&str> = Vec::new();
    for path in paths {
        let start = path.rmatch_indices('.').nth(1).map_or(0, |it| it.0 + 1);
        if !ends.contains(&&path[start..]) {
            ends.push(&path[start..]);
        }
    }
    ends
}
