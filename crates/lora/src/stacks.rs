//! Target modules of models with experts. Up to version 4 of transformers every expert's matrix was a module, and the router, too; since
//! then they are parameters, and PEFT takes the older names for those. So does this.

use crate::{Error, LoraConfig, Modules, Result, Role, Selection, TargetModules};

/// A name of a module that is a parameter today, and the parameter's.
type Renamed = (String, String);

impl LoraConfig {
    /// The settings as PEFT changes them for a model: where it has experts, names of experts' matrices and of routers become
    /// `target_parameters`. Gate and up are one parameter, of the rank of both.
    ///
    /// Fails where of gate and up only one is meant.
    pub fn resolved(&self, modules: &Modules<'_>) -> Result<LoraConfig> {
        let renamed = renamed(modules);
        if renamed.is_empty() {
            return Ok(self.clone());
        }
        let names = match &self.target_modules {
            TargetModules::Names(names) => names.clone(),
            TargetModules::AllLinear => {
                let linears = leaves(modules, |path| modules.head.as_deref() != Some(path));
                linears.into_iter().chain(renamed.iter().map(|it| it.0.clone())).collect()
            }
            TargetModules::Regex(_) => self.meant(modules, &renamed)?,
        };
        if names.is_empty() {
            return Ok(self.clone());
        }
        let mut config = LoraConfig { target_modules: TargetModules::Names(Vec::new()), ..self.clone() };
        let (mut kept, mut found): (Vec<String>, Vec<&Renamed>) = (Vec::new(), Vec::new());
        for name in names {
            match renamed.iter().find(|(old, _)| name == *old || name.ends_with(&format!(".{old}"))) {
                Some(it) => found.push(it),
                None => kept.push(name),
            }
        }
        config.target_parameters.extend(found.iter().map(|it| it.1.clone()));
        for new in renamed.iter().map(|it| &it.1) {
            let of = |all: &[&Renamed]| {
                let mut names: Vec<String> = all.iter().filter(|it| it.1 == *new).map(|it| it.0.clone()).collect();
                names.sort();
                names.dedup();
                names
            };
            config.join(new, &of(&found), &of(&renamed.iter().collect::<Vec<_>>()))?;
        }
        for names in [&mut kept, &mut config.target_parameters] {
            names.sort();
            names.dedup();
        }
        config.target_modules = TargetModules::Names(kept);
        Ok(config)
    }

    /// Takes `asked` of the modules `parts` that are the parameter `new` today.
    fn join(&mut self, new: &str, asked: &[String], parts: &[String]) -> Result<()> {
        if parts.len() < 2 || asked.is_empty() {
            return Ok(());
        }
        if asked.len() < parts.len() {
            return Err(Error::Config(format!(
                "target_modules names {} and not all of {}, which are one parameter in this model ({new}); name all, or none",
                asked.join(", "),
                parts.join(", ")
            )));
        }
        let key = format!(r".*\.{new}");
        self.rank_pattern.retain(|it| it.0 != key);
        self.alpha_pattern.retain(|it| it.0 != key);
        self.rank_pattern.push((key.clone(), parts.len() * self.rank));
        self.alpha_pattern.push((key, parts.len() as f32 * self.lora_alpha));
        Ok(())
    }

    /// The names that a regular expression means.
    fn meant(&self, modules: &Modules<'_>, renamed: &[Renamed]) -> Result<Vec<String>> {
        let selection = Selection::new(self, modules.head.as_deref())?;
        let mut names = leaves(modules, |path| selection.adapts(path));
        let mut old: Vec<String> = Vec::new();
        for linear in &modules.linears {
            let parameter = linear.member().map_or(linear.module(), |it| &it.stack);
            let (container, leaf) = parameter.rsplit_once('.').unwrap_or(("", parameter));
            for (name, _) in renamed.iter().filter(|it| it.1 == leaf || it.1 == format!("{leaf}.weight")) {
                if selection.adapts(parameter) || selection.adapts(&format!("{container}.{name}")) {
                    old.push(name.clone());
                }
            }
        }
        old.sort();
        old.dedup();
        names.extend(old);
        Ok(names)
    }
}

/// The names of modules that are parameters today.
pub(crate) fn renamed(modules: &Modules<'_>) -> Vec<Renamed> {
    // A family that came with version 5 has always had parameters there.
    if modules.linears.iter().any(|it| it.member().is_some() && it.is_published_transposed()) {
        return Vec::new();
    }
    let mut all: Vec<Renamed> = Vec::new();
    for linear in &modules.linears {
        let leaf = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
        let it = match linear.member() {
            Some(member) => (leaf(linear.path()), leaf(&member.stack)),
            None if linear.role() == Role::Router => (leaf(linear.path()), format!("{}.weight", leaf(linear.module()))),
            None => continue,
        };
        if !all.contains(&it) {
            all.push(it);
        }
    }
    all
}

/// The last components of the paths of linear layers that are modules today, each once.
fn leaves(modules: &Modules<'_>, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let linears = modules.linears.iter().filter(|it| it.member().is_none() && it.role() != Role::Router);
    for linear in linears.filter(|it| wanted(it.path())) {
        let name = linear.path().rsplit('.').next().unwrap_or_default().to_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
