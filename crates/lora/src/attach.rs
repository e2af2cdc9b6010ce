use crate::{
    Base, Bias, EmbeddingLora, Error, LoraConfig, LoraLayer, Modules, Result, Role, Selection, TargetModules, Weight,
    suggest,
};
use halfbyte_autograd::Param;
use halfbyte_tensor::{DType, Tensor, philox};

/// What [`attach()`] did.
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

/// Puts a fresh adapter on the layers that `config` names and makes it active.
///
/// `A` is uniform in `±1/sqrt(in_features)` (Kaiming's rule with `a = sqrt(5)`, as PEFT does) and `B` is zero, so the
/// adapted model starts as the base. The numbers depend on `seed` and on the layer's place alone.
///
/// Fails if nothing matches: the error lists the names that exist.
pub fn attach(modules: &mut Modules<'_>, config: &LoraConfig, adapter: &str, seed: u64) -> Result<AttachReport> {
    config.validate()?;
    let head = modules.head.clone();
    let selection = Selection::new(config, head.as_deref())?;
    let mut report = AttachReport::default();
    for (site, linear) in modules.linears.iter_mut().enumerate() {
        let path = linear.path().to_owned();
        if selection.saves(&path) {
            linear.add_full(adapter, None);
            report.saved.push(path);
        } else if selection.adapts(&path) {
            if let Base::Trainable(_) = linear.base() {
                return Err(Error::Config(format!("{path} trains in full; a low-rank adapter on it makes no sense")));
            }
            refuse_head(head.as_deref(), &path)?;
            let (rank, scaling) = selection.rank_and_scaling(&path);
            let (out, inner) = linear.dims();
            if rank > out.min(inner) {
                report.warnings.push(format!("rank {rank} is above the rank of {path} ({out} x {inner})"));
            }
            let (a, b) = fresh(&path, rank, (out, inner), seed, site as u64);
            let norms = config.use_dora.then(|| linear.row_norms()).transpose()?;
            let magnitude = norms.map(|it| magnitude(&path, it));
            let layer = LoraLayer { a, b, scaling, dropout: config.lora_dropout, site: site as u64, magnitude };
            linear.add_lora(adapter, layer);
            report.adapted.push(path);
        }
    }
    update_embeddings(modules, config, &selection, (adapter, seed), &mut report)?;
    copy_weights(modules, config, &selection, adapter, &mut report);
    check(modules, config, &report)?;
    modules.set_active(Some(adapter));
    Ok(report)
}

/// The head's product is part of the loss and knows no update.
pub(crate) fn refuse_head(head: Option<&str>, path: &str) -> Result<()> {
    if head == Some(path) {
        return Err(Error::Config(format!(
            "{path} is the output head and cannot carry a low-rank update yet; put it into modules_to_save to train it in full"
        )));
    }
    Ok(())
}

fn fresh(path: &str, rank: usize, (out, inner): (usize, usize), seed: u64, site: u64) -> (Param, Param) {
    let mut a = vec![0.0; rank * inner];
    let bound = 1.0 / (inner as f32).sqrt();
    // The upper bits keep these numbers apart from the dropout masks of the same layer.
    philox::fill_uniform(seed, site | 1 << 48, -bound, bound, &mut a);
    let a = Param::new(format!("{path}.lora_A.weight"), Tensor::from_vec(&[rank, inner], a));
    let b = Param::new(format!("{path}.lora_B.weight"), Tensor::zeros(&[out, rank], DType::F32));
    (a, b)
}

/// Low-rank updates of the embeddings that are named, with `A` zero and `B` normal, as PEFT begins them.
fn update_embeddings(
    modules: &mut Modules<'_>,
    config: &LoraConfig,
    selection: &Selection<'_>,
    (adapter, seed): (&str, u64),
    report: &mut AttachReport,
) -> Result<()> {
    for (site, weight) in modules.weights.iter_mut().enumerate() {
        let path = weight.module().to_owned();
        if !names_embedding(config, selection, weight)? || selection.saves(&path) {
            continue;
        }
        let (rank, scaling) = selection.rank_and_scaling(&path);
        let (vocab, channels) = (weight.value().rows(), weight.value().cols());
        let mut b = vec![0.0; channels * rank];
        // Apart from the sites of linear layers.
        philox::fill_normal(seed, site as u64 | 1 << 49, 1.0, &mut b);
        let update = EmbeddingLora {
            a: Param::new(format!("{path}.lora_embedding_A"), Tensor::zeros(&[vocab, rank], DType::F32)),
            b: Param::new(format!("{path}.lora_embedding_B"), Tensor::from_vec(&[channels, rank], b)),
            scaling,
        };
        weight.add_update(adapter, update);
        report.adapted.push(path);
    }
    Ok(())
}

/// Whether the target modules mean this weight, which then must be an embedding. `all-linear` means none.
pub(crate) fn names_embedding(config: &LoraConfig, selection: &Selection<'_>, weight: &Weight) -> Result<bool> {
    let path = weight.module();
    if config.target_modules == TargetModules::AllLinear
        || !weight.path().ends_with(".weight")
        || !selection.adapts(path)
    {
        return Ok(false);
    }
    if !weight.role().is_table() {
        // A regular expression may brush a norm by accident; a name that is one cannot be meant otherwise.
        return match config.target_modules {
            TargetModules::Regex(_) => Ok(false),
            _ => Err(Error::Config(format!("{path} is a norm; low-rank updates go on linear layers and embeddings"))),
        };
    }
    if config.use_dora {
        return Err(Error::Config(format!(
            "{path} is an embedding, on which use_dora is not supported; leave one of them out"
        )));
    }
    Ok(true)
}

/// The parameter of DoRA's magnitudes.
pub(crate) fn magnitude(path: &str, values: Vec<f32>) -> Param {
    Param::new(magnitude_key(path), Tensor::from_vec(&[values.len()], values))
}

/// What PEFT calls it: unlike other tensors, without `.weight`.
pub(crate) fn magnitude_key(path: &str) -> String {
    format!("{path}.lora_magnitude_vector")
}

/// `modules_to_save` outside the linear layers, and the biases that train along.
fn copy_weights(
    modules: &mut Modules<'_>,
    config: &LoraConfig,
    selection: &Selection<'_>,
    adapter: &str,
    report: &mut AttachReport,
) {
    for linear in &mut modules.linears {
        if let (true, Some(bias)) = (bias_trains(config, selection, linear.path()), linear.bias_mut()) {
            bias.add_copy(adapter, None);
        }
    }
    let tied = modules.tied.clone();
    for weight in &mut modules.weights {
        let module = weight.module().to_owned();
        if selection.saves(&module) {
            weight.add_copy(adapter, None);
            report.ties_head |= tied.as_ref().is_some_and(|it| it.embedding == module);
            if report.saved.last() != Some(&module) {
                report.saved.push(module);
            }
        } else if config.bias == Bias::All && weight.role() == Role::Bias {
            weight.add_copy(adapter, None);
        }
    }
}

/// Whether the bias of the linear layer at `path` trains along.
pub(crate) fn bias_trains(config: &LoraConfig, selection: &Selection<'_>, path: &str) -> bool {
    match config.bias {
        Bias::None => selection.saves(path),
        Bias::All => true,
        Bias::LoraOnly => selection.saves(path) || selection.adapts(path),
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
                "modules_to_save names `{name}`, which this model does not have (a tied output head is part of the embedding); it has {}",
                names.join(", ")
            )));
        }
    }
    Ok(())
}

/// The last components of the linear layers' paths, each once, in the model's order.
fn local_names(modules: &Modules<'_>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for linear in &modules.linears {
        let name = linear.path().rsplit('.').next().unwrap_or_default().to_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
