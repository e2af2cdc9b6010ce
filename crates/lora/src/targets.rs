//! PEFT's rules for which modules a configuration means.

use crate::{Error, LoraConfig, Result, TargetModules};
use fancy_regex::Regex;

/// A compiled configuration: says of each path whether it is adapted, and with which rank and alpha.
pub struct Selection<'a> {
    config: &'a LoraConfig,
    target: Matcher,
    exclude: Option<Matcher>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f32)>,
    layers: Vec<Regex>,
    head: Option<&'a str>,
}

enum Matcher {
    Names(Vec<String>),
    Whole(Regex),
    All,
}

impl<'a> Selection<'a> {
    /// Compiles the configuration. `head` is the path of the output head, which `all-linear` leaves alone.
    pub fn new(config: &'a LoraConfig, head: Option<&'a str>) -> Result<Selection<'a>> {
        Ok(Selection {
            config,
            target: Matcher::new(&config.target_modules)?,
            exclude: config.exclude_modules.as_ref().map(Matcher::new).transpose()?,
            ranks: patterns(&config.rank_pattern)?,
            alphas: patterns(&config.alpha_pattern)?,
            layers: layer_patterns(&config.layers_pattern)?,
            head,
        })
    }

    /// Whether the linear layer at `path` gets an adapter.
    pub fn adapts(&self, path: &str) -> bool {
        if self.exclude.as_ref().is_some_and(|it| it.matches(path)) || self.inside_saved(path) {
            return false;
        }
        match &self.target {
            Matcher::All => self.head != Some(path),
            Matcher::Whole(_) => self.target.matches(path),
            Matcher::Names(names) => {
                // A name that is the whole path wins over the choice of layers, as in PEFT.
                names.iter().any(|it| it == path) || (self.target.matches(path) && self.in_chosen_layer(path))
            }
        }
    }

    /// Whether the parameter at `path` gets a low-rank update by its own name (`target_parameters`).
    pub fn means(&self, path: &str) -> bool {
        self.config.target_parameters.iter().any(|it| path == it || path.ends_with(&format!(".{it}")))
    }

    /// Whether the module at `path` trains in full (`modules_to_save`): its path, or that of a module around it, ends
    /// in a name. As in PEFT the end need not be a whole component: `norm` means every `input_layernorm`, too.
    pub fn saves(&self, path: &str) -> bool {
        let around = || path.match_indices('.').map(|(at, _)| &path[..at]).chain([path]);
        self.config.modules_to_save.iter().any(|name| around().any(|it| it.ends_with(name.as_str())))
    }

    /// Whether a component of `path` is a name of `modules_to_save`: such a layer gets no low-rank update.
    fn inside_saved(&self, path: &str) -> bool {
        let named = |name: &String| path == name || format!(".{path}.").contains(&format!(".{name}."));
        self.config.modules_to_save.iter().any(named)
    }

    /// Rank, and the factor of the update, of the layer at `path`.
    pub fn rank_and_scaling(&self, path: &str) -> (usize, f32) {
        let rank = first_match(&self.ranks, path).unwrap_or(self.config.rank);
        let alpha = first_match(&self.alphas, path).unwrap_or(self.config.lora_alpha);
        (rank, self.config.scaling(rank, alpha))
    }

    fn in_chosen_layer(&self, path: &str) -> bool {
        let Some(chosen) = self.config.layers_to_transform.as_ref().filter(|it| !it.is_empty()) else { return true };
        let index = if self.layers.is_empty() {
            layer_index(path)
        } else {
            let number = |regex: &Regex| regex.captures(path).ok().flatten()?.get(1)?.as_str().parse().ok();
            self.layers.iter().find_map(number)
        };
        index.is_some_and(|it| chosen.contains(&it))
    }
}

impl Matcher {
    fn new(target: &TargetModules) -> Result<Matcher> {
        Ok(match target {
            TargetModules::Names(names) => Matcher::Names(names.clone()),
            TargetModules::Regex(regex) => Matcher::Whole(compile(&format!(r"\A(?:{regex})\z"), regex)?),
            TargetModules::AllLinear => Matcher::All,
        })
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Matcher::Names(names) => names.iter().any(|it| path == it || path.ends_with(&format!(".{it}"))),
            Matcher::Whole(regex) => is_match(regex, path),
            Matcher::All => true,
        }
    }
}

/// The number of the layer a path lies in: the first number that follows two components, as PEFT finds it.
pub fn layer_index(path: &str) -> Option<usize> {
    let parts: Vec<&str> = path.split('.').collect();
    let last = parts.len().saturating_sub(1);
    (2..last).find_map(|at| parts[at].parse().ok())
}

/// What to ask for instead of names that do not exist: the local names of what tutorials for other models use.
pub fn suggest(asked: &TargetModules, available: &[String]) -> String {
    let has = |name: &str| available.iter().any(|it| it == name);
    let text = asked.to_string();
    let qkv = ["q_proj", "k_proj", "v_proj"];
    let fused = ["query_key_value", "c_attn", "qkv_proj", "Wqkv", "W_pack"];
    if fused.iter().any(|it| text.contains(it)) && qkv.iter().all(|it| has(it)) {
        return "this model keeps query, key and value apart: use q_proj, k_proj, v_proj".into();
    }
    if let Some(own) = fused.iter().find(|it| has(it))
        && qkv.iter().any(|it| text.contains(it))
    {
        return format!("this model keeps query, key and value in one layer: use {own}");
    }
    let renamed = [
        ("o_proj", "out_proj"),
        ("out_proj", "o_proj"),
        ("dense", "o_proj"),
        ("fc1", "c_fc"),
        ("fc2", "c_proj"),
        ("dense_h_to_4h", "c_fc"),
        ("up_proj", "c_fc"),
        ("c_fc", "up_proj"),
        ("query", "q_proj"),
        ("key", "k_proj"),
        ("value", "v_proj"),
    ];
    match renamed.iter().find(|(foreign, own)| text.contains(foreign) && has(own)) {
        Some((_, own)) => format!("the layer is called {own} here"),
        None => "use some of them, or all-linear".into(),
    }
}

fn patterns<T: Copy>(pairs: &[(String, T)]) -> Result<Vec<(Regex, T)>> {
    pairs.iter().map(|(key, value)| Ok((compile(&format!(r"\A(?:.*\.)?(?:{key})\z"), key)?, *value))).collect()
}

/// Names of the stack of layers, which its number follows.
fn layer_patterns(names: &[String]) -> Result<Vec<Regex>> {
    names.iter().map(|it| compile(&format!(r"\A(?:|.*?\.){it}\.(\d+)\."), it)).collect()
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], path: &str) -> Option<T> {
    patterns.iter().find(|it| is_match(&it.0, path)).map(|it| it.1)
}

fn compile(regex: &str, shown: &str) -> Result<Regex> {
    Regex::new(regex).map_err(|e| Error::Config(format!("`{shown}` is not a regular expression: {e}")))
}

/// A match that would take exponential time counts as none.
fn is_match(regex: &Regex, path: &str) -> bool {
    regex.is_match(path).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapts(config: &LoraConfig, path: &str) -> bool {
        Selection::new(config, Some("lm_head")).unwrap().adapts(path)
    }

    fn names(list: &[&str]) -> TargetModules {
        TargetModules::Names(list.iter().map(|it| (*it).to_owned()).collect())
    }

    const Q1: &str = "model.layers.1.self_attn.q_proj";

    #[test]
    fn a_name_matches_whole_components_at_the_end() {
        let config = LoraConfig { target_modules: names(&["q_proj", "attention.k_proj"]), ..Default::default() };
        assert!(adapts(&config, Q1) && adapts(&config, "q_proj"));
        assert!(adapts(&config, "transformer.h.0.attn.attention.k_proj"));
        assert!(!adapts(&config, "model.layers.1.self_attn.xq_proj") && !adapts(&config, "model.q_proj.inner"));
        assert!(!adapts(&config, "model.layers.0.self_attn.k_proj"));
    }

    #[test]
    fn a_regex_must_match_the_whole_path() {
        let config = |text: &str| LoraConfig { target_modules: TargetModules::parse(text), ..Default::default() };
        assert!(adapts(&config(r".*\.[qk]_proj"), Q1));
        assert!(!adapts(&config(r"[qk]_proj"), Q1));
        assert!(adapts(&config(r".*(?<!k)_proj"), Q1), "Python's look-behind is understood");
        assert!(!adapts(&config(r"a|.*q"), Q1), "an alternative does not escape the anchors");
    }

    #[test]
    fn all_linear_leaves_the_head_alone() {
        let config = LoraConfig::default();
        assert!(adapts(&config, Q1) && !adapts(&config, "lm_head"));
    }

    #[test]
    fn exclusion_comes_first_and_saved_modules_are_not_adapted() {
        let config = LoraConfig {
            exclude_modules: Some(names(&["k_proj"])),
            modules_to_save: vec!["mlp".into()],
            ..Default::default()
        };
        assert!(adapts(&config, Q1) && !adapts(&config, "model.layers.1.self_attn.k_proj"));
        assert!(!adapts(&config, "model.layers.1.mlp.up_proj"));
    }

    #[test]
    fn chosen_layers_restrict_names_only() {
        let mut config = LoraConfig {
            target_modules: names(&["q_proj"]),
            layers_to_transform: Some(vec![1, 3]),
            ..Default::default()
        };
        assert!(adapts(&config, Q1) && !adapts(&config, "model.layers.2.self_attn.q_proj"));
        config.layers_pattern = vec!["blocks".into()];
        assert!(!adapts(&config, Q1) && adapts(&config, "model.blocks.3.layers.0.q_proj"), "the stack is named");
        config.layers_pattern = vec!["blocks".into(), "layers".into()];
        assert!(adapts(&config, Q1));
        config.layers_to_transform = Some(Vec::new());
        assert!(adapts(&config, "model.layers.2.self_attn.q_proj"), "an empty choice is none");
        config.layers_to_transform = Some(vec![1]);
        config.target_modules = names(&["model.layers.2.self_attn.q_proj"]);
        assert!(adapts(&config, "model.layers.2.self_attn.q_proj"), "a whole path wins");
    }

    #[test]
    fn patterns_give_rank_and_alpha_by_the_end_of_the_path() {
        let config = LoraConfig {
            rank: 8,
            lora_alpha: 16.0,
            rank_pattern: vec![("q_proj".into(), 4), (r"layers\.1\..*".into(), 2)],
            alpha_pattern: vec![("v_proj".into(), 1.0)],
            ..Default::default()
        };
        let selection = Selection::new(&config, None).unwrap();
        assert_eq!(selection.rank_and_scaling(Q1), (4, 4.0));
        assert_eq!(selection.rank_and_scaling("model.layers.1.self_attn.v_proj"), (2, 0.5));
        assert_eq!(selection.rank_and_scaling("model.layers.0.xq_proj"), (8, 2.0));
    }

    #[test]
    fn saved_modules_are_found_by_the_end_of_their_names() {
        let config = LoraConfig { modules_to_save: vec!["norm".into()], ..Default::default() };
        let selection = Selection::new(&config, None).unwrap();
        assert!(selection.saves("model.norm") && selection.saves("model.layers.0.input_layernorm"));
        assert!(!selection.saves("model.layers.0.normal") && selection.saves("model.norm.inner"));
        assert!(selection.adapts("model.layers.0.input_layernorm"), "a part of a component does not bar an update");
    }

    #[test]
    fn fused_names_get_the_split_ones_suggested_and_the_other_way_round() {
        let available: Vec<String> = ["q_proj", "k_proj", "v_proj", "out_proj"].map(str::to_owned).to_vec();
        let hint = suggest(&names(&["query_key_value"]), &available);
        assert!(hint.contains("q_proj, k_proj, v_proj"), "{hint}");
        assert!(suggest(&names(&["o_proj"]), &available).contains("out_proj"));
        let available: Vec<String> = ["query_key_value", "dense"].map(str::to_owned).to_vec();
        let hint = suggest(&names(&["q_proj", "v_proj"]), &available);
        assert!(hint.contains("one layer: use query_key_value"), "{hint}");
    }

    #[test]
    fn a_broken_regex_is_shown() {
        let config = LoraConfig { target_modules: TargetModules::Regex("(".into()), ..Default::default() };
        assert!(Selection::new(&config, None).err().unwrap().to_string().contains("`(`"));
    }
}
