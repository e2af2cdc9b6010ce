use crate::{
    Adapter, Error, LoraConfig, Modules, Result, Selection,
    places::{head_follows, places, tie_of},
    suggest,
    variants::{self, CopyOf, Numbers, Place, What},
};
use halfbyte_tensor::Device;

/// What an adapter of [`attach()`] will do.
#[derive(Clone, Debug, Default)]
pub struct AttachReport {
    /// Paths of the layers that got a low-rank update, in the model's order.
    pub adapted: Vec<String>,
    /// Paths of the modules that train in full.
    pub saved: Vec<String>,
    /// Whether the embedding trains in full and the output head with it, since the model ties them.
    pub ties_head: bool,
    /// Things that are allowed, but hardly meant.
    pub warnings: Vec<String>,
}

/// A fresh adapter for the layers that `config` names. The model is left as it is.
///
/// Each variant has its own first numbers, with which the adapted model starts as the base. They depend on `seed` and on the
/// layer's place alone.
///
/// Fails if nothing matches: the error lists the names that exist.
pub fn attach(modules: &Modules<'_>, config: &LoraConfig, name: &str, seed: u64) -> Result<(Adapter, AttachReport)> {
    if let Some(init) = &config.init_lora_weights {
        return Err(Error::Config(format!(
            "init_lora_weights {init} begins with a part of the base; load the base through a Takeover, which then makes the adapter"
        )));
    }
    attach_with(modules, config, name, Numbers::Fresh { seed, parts: None })
}

/// An adapter of the sizes that [`attach()`] would give it and without numbers, on a dry device: for a plan.
///
/// Fails if nothing matches.
pub fn attach_dry(
    modules: &Modules<'_>,
    config: &LoraConfig,
    name: &str,
    device: &Device,
) -> Result<(Adapter, AttachReport)> {
    attach_with(modules, config, name, Numbers::Dry(device))
}

pub(crate) fn attach_with(
    modules: &Modules<'_>,
    config: &LoraConfig,
    name: &str,
    mut numbers: Numbers<'_>,
) -> Result<(Adapter, AttachReport)> {
    config.validate()?;
    let config = &config.resolved(modules)?;
    let selection = Selection::new(config, modules.head.as_deref())?;
    let mut report = AttachReport::default();
    let mut updates = Vec::new();
    for mut place in places(modules, config, &selection)? {
        report.add(&place, modules, (config, &selection));
        if let What::Copy(copied) = &mut place.what
            && let Some(tie) = tie_of(modules, &copied.name).filter(|it| head_follows(it, config, &selection))
        {
            // PEFT asks for the tied head by its own name, too.
            copied.stored_as.push(tie.head_weight());
        }
        let update = variants::begin(&place, &mut numbers)?;
        updates.push((place.path, place.role, update));
    }
    check(modules, config, &report)?;
    let config = LoraConfig { ensure_weight_tying: report.ties_head, ..config.clone() };
    Ok((Adapter::new(name, config, updates), report))
}

impl AttachReport {
    fn add(&mut self, place: &Place<'_>, modules: &Modules<'_>, (config, selection): (&LoraConfig, &Selection<'_>)) {
        match &place.what {
            What::Linear(linear) => {
                let (out, inner) = linear.dims();
                if place.rank > out.min(inner) {
                    let path = &place.path;
                    self.warnings.push(format!("rank {} is above the rank of {path} ({out} x {inner})", place.rank));
                }
                self.adapted.push(place.path.clone());
            }
            What::Stack(stack) => {
                let (out, inner) = stack.dims();
                if place.rank > out.min(inner) {
                    let path = &place.path;
                    self.warnings
                        .push(format!("rank {} is above the rank of an expert's {path} ({out} x {inner})", place.rank));
                }
                self.adapted.push(place.path.clone());
            }
            What::Embedding(_) => self.adapted.push(place.path.clone()),
            What::Copy(copied) => {
                let module = copied.name.rsplit_once('.').map_or("", |it| it.0);
                // Other biases train along with what is adapted.
                if copied.of == CopyOf::Bias || !selection.saves(module) {
                    return;
                }
                let tie = tie_of(modules, &copied.name);
                self.ties_head |= tie.is_some_and(|it| head_follows(it, config, selection));
                if self.saved.last().is_none_or(|it| it != module) {
                    self.saved.push(module.to_owned());
                }
            }
        }
    }
}

fn check(modules: &Modules<'_>, config: &LoraConfig, report: &AttachReport) -> Result<()> {
    if report.adapted.is_empty() {
        let available = local_names(modules);
        let hint = suggest(&config.target_modules, &available);
        return Err(Error::NoTarget { asked: config.target_modules.to_string(), hint, available });
    }
    for name in &config.modules_to_save {
        let alone = LoraConfig { modules_to_save: vec![name.clone()], ..LoraConfig::default() };
        let selection = Selection::new(&alone, None)?;
        if !report.saved.iter().any(|it| selection.saves(it)) {
            let mut names = local_names(modules);
            names.extend(modules.weights.iter().map(|it| it.module().to_owned()));
            names.dedup();
            return Err(Error::Config(format!(
                "modules_to_save names `{name}`, which this model does not have; it has {}",
                names.join(", ")
            )));
        }
    }
    Ok(())
}

/// The last components of the linear layers' paths, each once, in the model's order.
pub(crate) fn local_names(modules: &Modules<'_>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for linear in &modules.linears {
        let name = linear.path().rsplit('.').next().unwrap_or_default().to_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
