//! The flags of `finetune` that describe the adapter, and the `LoraConfig` they stand for.

use super::{args::FinetuneArgs, values::BiasArg};
use crate::failure::user_error;
use halfbyte_lora::{Bias, LoraConfig, Modules, TargetModules, adapted};

/// The configuration that the flags ask for, on a base of this name; defaults are filled in.
pub(super) fn config(a: &mut FinetuneArgs, (base, revision): (String, Option<String>)) -> anyhow::Result<LoraConfig> {
    let list = |text: &Option<String>| -> Vec<String> {
        text.iter().flat_map(|it| it.split(',')).map(|it| it.trim().to_owned()).filter(|it| !it.is_empty()).collect()
    };
    Ok(LoraConfig {
        rank: *a.rank.get_or_insert(16),
        lora_alpha: *a.lora_alpha.get_or_insert(16.0),
        lora_dropout: *a.lora_dropout.get_or_insert(0.0),
        target_modules: TargetModules::parse(a.target_modules.get_or_insert("all-linear".into())),
        target_parameters: list(&a.target_parameters),
        exclude_modules: a.exclude_modules.as_deref().map(TargetModules::parse),
        bias: match *a.bias.get_or_insert(BiasArg::None) {
            BiasArg::None => Bias::None,
            BiasArg::All => Bias::All,
            BiasArg::LoraOnly => Bias::LoraOnly,
        },
        use_rslora: a.use_rslora,
        use_dora: a.use_dora,
        modules_to_save: list(&a.modules_to_save),
        rank_pattern: pattern(a.rank_pattern.as_deref(), "--rank-pattern")?,
        alpha_pattern: pattern(a.alpha_pattern.as_deref(), "--alpha-pattern")?,
        init_lora_weights: a.init_lora_weights.clone().filter(|it| it != "default"),
        base_model_name_or_path: Some(base),
        revision,
        ..LoraConfig::default()
    })
}

/// Puts the settings of an existing adapter in the place of the flags, so that what is written beside the result is true.
pub(super) fn adopt(a: &mut FinetuneArgs, config: &LoraConfig) {
    let joined = |names: &[String]| Some(names.join(",")).filter(|it| !it.is_empty());
    let target = |it: &TargetModules| match it {
        TargetModules::Names(names) => names.join(","),
        TargetModules::Regex(regex) => regex.clone(),
        TargetModules::AllLinear => "all-linear".into(),
    };
    a.rank = Some(config.rank);
    a.lora_alpha = Some(config.lora_alpha);
    a.lora_dropout = Some(config.lora_dropout);
    a.target_modules = Some(target(&config.target_modules));
    a.target_parameters = joined(&config.target_parameters);
    a.exclude_modules = config.exclude_modules.as_ref().map(target);
    a.bias = Some(match config.bias {
        Bias::None => BiasArg::None,
        Bias::All => BiasArg::All,
        Bias::LoraOnly => BiasArg::LoraOnly,
    });
    a.use_rslora = config.use_rslora;
    a.use_dora = config.use_dora;
    a.modules_to_save = joined(&config.modules_to_save);
    a.rank_pattern = written(&config.rank_pattern);
    a.alpha_pattern = written(&config.alpha_pattern);
    a.init_lora_weights = config.init_lora_weights.clone();
}

/// The settings of an existing adapter, with those that were `given` as flags taken from `flags`.
pub(super) fn asked(given: &FinetuneArgs, flags: &LoraConfig, has: &LoraConfig) -> LoraConfig {
    fn pick<T: Clone>(given: bool, flag: &T, has: &T) -> T {
        if given { flag.clone() } else { has.clone() }
    }
    LoraConfig {
        rank: pick(given.rank.is_some(), &flags.rank, &has.rank),
        lora_alpha: pick(given.lora_alpha.is_some(), &flags.lora_alpha, &has.lora_alpha),
        lora_dropout: pick(given.lora_dropout.is_some(), &flags.lora_dropout, &has.lora_dropout),
        target_modules: pick(given.target_modules.is_some(), &flags.target_modules, &has.target_modules),
        target_parameters: pick(given.target_parameters.is_some(), &flags.target_parameters, &has.target_parameters),
        exclude_modules: pick(given.exclude_modules.is_some(), &flags.exclude_modules, &has.exclude_modules),
        bias: pick(given.bias.is_some(), &flags.bias, &has.bias),
        use_rslora: pick(given.use_rslora, &flags.use_rslora, &has.use_rslora),
        use_dora: pick(given.use_dora, &flags.use_dora, &has.use_dora),
        modules_to_save: pick(given.modules_to_save.is_some(), &flags.modules_to_save, &has.modules_to_save),
        rank_pattern: pick(given.rank_pattern.is_some(), &flags.rank_pattern, &has.rank_pattern),
        alpha_pattern: pick(given.alpha_pattern.is_some(), &flags.alpha_pattern, &has.alpha_pattern),
        init_lora_weights: pick(given.init_lora_weights.is_some(), &flags.init_lora_weights, &has.init_lora_weights),
        ..has.clone()
    }
}

/// What of [`asked`] an existing adapter does not have.
pub(super) fn differences(asked: &LoraConfig, has: &LoraConfig, modules: &Modules<'_>) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut compare = |flag: &str, asked: String, has: String| {
        if asked != has {
            found.push(format!(
                "{flag} {asked} is ignored, the adapter has {}",
                if has.is_empty() { "none" } else { &has }
            ));
        }
    };
    compare("--rank", asked.rank.to_string(), has.rank.to_string());
    compare("--lora-alpha", asked.lora_alpha.to_string(), has.lora_alpha.to_string());
    compare("--lora-dropout", asked.lora_dropout.to_string(), has.lora_dropout.to_string());
    compare("--bias", format!("{:?}", asked.bias).to_lowercase(), format!("{:?}", has.bias).to_lowercase());
    compare("--use-rslora", asked.use_rslora.to_string(), has.use_rslora.to_string());
    compare("--use-dora", asked.use_dora.to_string(), has.use_dora.to_string());
    let init = |it: &LoraConfig| it.init_lora_weights.clone().unwrap_or_default();
    compare("--init-lora-weights", init(asked), init(has));
    compare("--modules-to-save", asked.modules_to_save.join(","), has.modules_to_save.join(","));
    for (flag, asked, has) in [
        ("--rank-pattern", written(&asked.rank_pattern), written(&has.rank_pattern)),
        ("--alpha-pattern", written(&asked.alpha_pattern), written(&has.alpha_pattern)),
    ] {
        compare(flag, asked.unwrap_or_default(), has.unwrap_or_default());
    }
    // Targets can be written in many ways; what counts is which layers they mean.
    let (wanted, there) = (adapted(modules, asked)?, adapted(modules, has)?);
    if wanted != there {
        found.push(format!(
            "--target-modules and --exclude-modules mean {} layers, the adapter has {} and keeps them",
            wanted.len(),
            there.len()
        ));
    }
    Ok(found)
}

fn pattern<T: std::str::FromStr>(text: Option<&str>, flag: &str) -> anyhow::Result<Vec<(String, T)>> {
    let one = |pair: &str| {
        let parsed =
            pair.rsplit_once('=').and_then(|(name, value)| Some((name.trim().to_owned(), value.trim().parse().ok()?)));
        parsed.ok_or_else(|| user_error(format!("{flag}: expected NAME=NUMBER, got `{pair}`")))
    };
    text.iter().flat_map(|it| it.split(',')).map(one).collect()
}

/// The inverse of [`pattern`]; none where there is nothing to write, or a regular expression that a flag cannot hold.
fn written<T: std::fmt::Display>(pairs: &[(String, T)]) -> Option<String> {
    let all: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Some(all.join(",")).filter(|it| !it.is_empty() && pairs.iter().all(|it| !it.0.contains(',')))
}
