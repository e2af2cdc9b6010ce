use crate::{
    Error, Result,
    variants::{initialisation, initialisations},
};
use serde::{Deserialize, Serialize};

/// No matrix of a language model has a higher rank; a number above it is a slip.
const MAX_RANK: usize = 65_536;

/// Which linear layers get an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Layers whose path equals a name or ends in `.name`.
    Names(Vec<String>),
    /// Layers whose whole path matches a regular expression (Python's `re.fullmatch`).
    Regex(String),
    /// Every linear layer except the output head.
    AllLinear,
}

impl TargetModules {
    /// From a command line: `all-linear`, a comma-separated list of names (in brackets and quotes, too, as Python and YAML write
    /// one), or (if it has any other character that a name cannot have) a regular expression.
    pub fn parse(text: &str) -> TargetModules {
        let text = unlisted(text);
        if text.eq_ignore_ascii_case("all-linear") {
            return TargetModules::AllLinear;
        }
        let names: Vec<String> = text.split([',', ' ']).filter(|it| !it.is_empty()).map(str::to_owned).collect();
        let plain = |name: &String| name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.' || c == '-');
        if names.iter().all(plain) && !text.contains(".*") {
            TargetModules::Names(names)
        } else {
            TargetModules::Regex(text)
        }
    }
}

/// A list without its brackets and quotes; any other text as it is.
fn unlisted(text: &str) -> String {
    let text = text.trim();
    let inside = [('[', ']'), ('{', '}'), ('(', ')')]
        .iter()
        .find_map(|(open, close)| text.strip_prefix(*open)?.strip_suffix(*close));
    let listed = |it: &&str| it.contains([',', '\'', '"']) && !it.contains(['[', '(', '*', '|', '\\', '^']);
    inside.filter(listed).map_or_else(|| text.to_owned(), |it| it.replace(['\'', '"'], ""))
}

impl std::fmt::Display for TargetModules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TargetModules::Names(names) => write!(f, "[{}]", names.join(", ")),
            TargetModules::Regex(regex) => write!(f, "/{regex}/"),
            TargetModules::AllLinear => f.write_str("all-linear"),
        }
    }
}

/// Which biases train along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// The biases of the adapted layers.
    LoraOnly,
}

/// The settings of a LoRA adapter, by PEFT's names. `rank` is PEFT's `r`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of the update.
    pub rank: usize,
    /// The update is scaled by `lora_alpha / rank`.
    pub lora_alpha: f32,
    /// Probability of dropping an element of the update's input while training.
    pub lora_dropout: f32,
    /// Which layers are adapted.
    pub target_modules: TargetModules,
    /// Parameters that get a low-rank update by their own names: an expert's matrices, or those of a router.
    pub target_parameters: Vec<String>,
    /// Which of them are left out again.
    pub exclude_modules: Option<TargetModules>,
    /// Which biases train along.
    pub bias: Bias,
    /// Scale by `lora_alpha / sqrt(rank)` instead (rank-stabilised LoRA).
    pub use_rslora: bool,
    /// Train the magnitude of every output channel beside the update's direction (DoRA).
    pub use_dora: bool,
    /// Modules that train in full and are saved with the adapter.
    pub modules_to_save: Vec<String>,
    /// Ranks that differ from `rank`: a regular expression on the end of the path, and the rank.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas that differ from `lora_alpha`.
    pub alpha_pattern: Vec<(String, f32)>,
    /// Only these layers of the stack (for target modules given as names).
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names of the stack whose numbers those are; empty for the first number in a path.
    pub layers_pattern: Vec<String>,
    /// Whether a saved copy of an embedding is the output head, too, where the model ties the two.
    pub ensure_weight_tying: bool,
    /// How an adapter begins that takes a part of the base over, such as `pissa` or `pissa_niter_16`; none is each variant's
    /// own way, which leaves the base alone.
    pub init_lora_weights: Option<String>,
    /// What the base model was called when the adapter was trained.
    pub base_model_name_or_path: Option<String>,
    /// The revision of that, if one was named.
    pub revision: Option<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig {
            rank: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            target_parameters: Vec::new(),
            exclude_modules: None,
            bias: Bias::None,
            use_rslora: false,
            use_dora: false,
            modules_to_save: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            ensure_weight_tying: false,
            init_lora_weights: None,
            base_model_name_or_path: None,
            revision: None,
        }
    }
}

impl LoraConfig {
    /// Refuses settings that no adapter can have.
    pub fn validate(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::Config(message));
        if self.rank == 0 || self.rank_pattern.iter().any(|it| it.1 == 0) {
            return refuse("rank must be at least 1, got 0; common values are 8, 16 and 64".into());
        }
        if let Some(rank) = self.rank_pattern.iter().map(|it| it.1).chain([self.rank]).find(|it| *it > MAX_RANK) {
            return refuse(format!("rank must be at most {MAX_RANK}, got {rank}; common values are 8, 16 and 64"));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return refuse(format!("lora_dropout must be at least 0 and below 1, got {}", self.lora_dropout));
        }
        if !self.lora_alpha.is_finite() || self.lora_alpha == 0.0 {
            return refuse(format!("lora_alpha must be a finite number other than 0, got {}", self.lora_alpha));
        }
        let Some(init) = &self.init_lora_weights else { return Ok(()) };
        if initialisation(init).is_none() {
            return refuse(format!("init_lora_weights is {init}, expected default, {}", initialisations()));
        }
        if self.use_dora {
            return refuse(format!("init_lora_weights {init} does not go with use_dora; leave one of them out"));
        }
        if self.lora_alpha < 0.0 || self.alpha_pattern.iter().any(|it| it.1 <= 0.0) {
            return refuse(format!("init_lora_weights {init} needs a positive lora_alpha, got {}", self.lora_alpha));
        }
        Ok(())
    }

    /// The factor of the update for a layer of this rank and alpha.
    pub fn scaling(&self, rank: usize, alpha: f32) -> f32 {
        let rank = rank as f32;
        if self.use_rslora { alpha / rank.sqrt() } else { alpha / rank }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_python_yaml_and_shells_write_them() {
        let names = TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]);
        for text in [
            "q_proj,v_proj",
            "q_proj v_proj",
            "[q_proj,v_proj]",
            "['q_proj', 'v_proj']",
            "[\"q_proj\",\"v_proj\"]",
            "{q_proj,v_proj}",
        ] {
            assert_eq!(TargetModules::parse(text), names, "{text}");
        }
        for regex in [r".*\.[qv]_proj", "[qv]_proj", "(q|v)_proj", "(a|b,c)"] {
            assert_eq!(TargetModules::parse(regex), TargetModules::Regex(regex.into()));
        }
        assert_eq!(TargetModules::parse("['all-linear']"), TargetModules::AllLinear);
    }
}
