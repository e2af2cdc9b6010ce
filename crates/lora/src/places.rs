//! Which places of a model a configuration means.

use crate::{
    Base, Bias, Error, Linear, LoraConfig, Member, Modules, Result, Role, Selection, TargetModules, Tie, Weight,
    variants::{Copied, CopyOf, Place, StackPlace, What},
};

/// The places that get an update, in the order in which their parameters are made: matrices, embeddings, biases, and then
/// the rest of `modules_to_save`. Fails where a place cannot have what is asked for it.
pub(crate) fn places<'a>(
    modules: &'a Modules<'_>,
    config: &'a LoraConfig,
    selection: &Selection<'_>,
) -> Result<Vec<Place<'a>>> {
    let mut all = Vec::new();
    for (index, linear) in modules.linears.iter().enumerate() {
        let path = linear.module();
        if let Some(member) = linear.member() {
            if selection.saves(path) || selection.saves(&member.stack) {
                return Err(Error::Config(format!(
                    "modules_to_save names {}, which holds experts; they train by low-rank updates (target_parameters), or with the whole model (--method full)",
                    member.stack
                )));
            }
            if let Some(what) = stack(modules, (linear, member), config, selection)? {
                all.push(place(&member.stack, index, what, (config, selection)));
            }
            continue;
        }
        let what = if selection.saves(path) {
            What::Copy(copied_matrix(linear))
        } else if (linear.role() != Role::Router && selection.adapts(path)) || selection.means(&weight_of(path)) {
            if let Base::Trainable(_) = linear.base() {
                return Err(Error::Config(format!("{path} trains in full; a low-rank adapter on it makes no sense")));
            }
            refuse_head(modules, path)?;
            What::Linear(linear)
        } else {
            continue;
        };
        all.push(place(path, index, what, (config, selection)));
    }
    all.extend(tied_head(modules, config, selection)?);
    for (index, weight) in modules.weights.iter().enumerate() {
        let path = weight.module();
        if names_embedding(config, selection, weight)? && !selection.saves(path) {
            all.push(place(path, index, What::Embedding(weight), (config, selection)));
        }
    }
    for (index, linear) in modules.linears.iter().enumerate() {
        if let Some(member) = linear.member().filter(|_| linear.bias().is_some()) {
            if config.bias == Bias::All {
                return Err(Error::Config(format!(
                    "bias is all, but the biases of the experts of {} do not train; leave it out, or say lora_only",
                    member.stack
                )));
            }
            continue;
        }
        if let Some(bias) = linear.bias().filter(|_| bias_trains(config, selection, linear.path())) {
            let adapted = all.iter().any(|it| it.path == linear.path() && matches!(it.what, What::Linear(_)));
            all.push(place(bias.path(), index, What::Copy(copied_bias(linear, bias, adapted)), (config, selection)));
        }
    }
    for (index, weight) in modules.weights.iter().enumerate() {
        let saved = selection.saves(weight.module());
        if saved || (config.bias == Bias::All && weight.role() == Role::Bias) {
            all.push(place(weight.path(), index, What::Copy(copied_weight(weight)), (config, selection)));
        }
    }
    Ok(all)
}

/// The paths of the linear layers, and of the parameters that hold experts, that a configuration means.
///
/// Fails where a place cannot have what is asked for it.
pub fn adapted(modules: &Modules<'_>, config: &LoraConfig) -> Result<Vec<String>> {
    let config = config.resolved(modules)?;
    let selection = Selection::new(&config, modules.head.as_deref())?;
    let places = places(modules, &config, &selection)?;
    let of_linears = places.into_iter().filter(|it| matches!(it.what, What::Linear(_) | What::Stack(_)));
    Ok(of_linears.map(|it| it.path).collect())
}

/// The parameter that holds a linear layer's matrix.
fn weight_of(path: &str) -> String {
    format!("{path}.weight")
}

/// The update of the parameter that an expert's matrix is the first part of, if it gets one.
fn stack<'a>(
    modules: &'a Modules<'_>,
    (linear, member): (&'a Linear, &'a Member),
    config: &LoraConfig,
    selection: &Selection<'_>,
) -> Result<Option<What<'a>>> {
    if (member.expert.0, member.rows.0) != (0, 0) || !selection.means(&member.stack) {
        return Ok(None);
    }
    if let Base::Trainable(_) = linear.base() {
        return Err(Error::Config(format!("{} trains in full; a low-rank adapter on it makes no sense", member.stack)));
    }
    // As PEFT, which multiplies with the sum of base and update there.
    let refused = [
        (config.use_dora, "use_dora"),
        (config.lora_dropout != 0.0, "lora_dropout"),
        (config.init_lora_weights.is_some(), "init_lora_weights"),
    ];
    if let Some((_, name)) = refused.iter().find(|it| it.0) {
        return Err(Error::Config(format!(
            "{} holds experts, on which {name} is not supported, as in PEFT; leave it out, or name only modules of attention",
            member.stack
        )));
    }
    // PEFT wraps the parameters of a module one after the other, each around those before.
    let module = |it: &Member| it.stack.rsplit_once('.').map_or("", |it| it.0).to_owned();
    let mut behind: Vec<&str> = Vec::new();
    for other in modules.linears.iter().filter_map(|it| it.member()) {
        let later = other.stack != member.stack && module(other) == module(member) && selection.means(&other.stack);
        if later && !behind.contains(&other.stack.as_str()) {
            behind.push(&other.stack);
        }
    }
    let own = modules.linears.iter().filter_map(|it| it.member()).position(|it| it.stack == member.stack);
    let first = |stack: &str| modules.linears.iter().filter_map(|it| it.member()).position(|it| it.stack == stack);
    let around = behind.iter().filter(|it| first(it) > own).count();
    Ok(Some(What::Stack(StackPlace { linear, member, around })))
}

/// A copy of the head of its own, where the model ties it to the embedding and `modules_to_save` names it, as PEFT has it.
fn tied_head<'a>(
    modules: &'a Modules<'_>,
    config: &'a LoraConfig,
    selection: &Selection<'_>,
) -> Result<Option<Place<'a>>> {
    let Some(tie) = modules.tied.as_ref().filter(|it| selection.saves(&it.head)) else { return Ok(None) };
    if config.ensure_weight_tying {
        return match selection.saves(&tie.embedding) {
            true => Ok(None),
            false => Err(Error::Config(format!(
                "ensure_weight_tying is true and modules_to_save names {}, which is {} in this model; name that instead",
                tie.head, tie.embedding
            ))),
        };
    }
    let Some(embedding) = modules.weights.iter().find(|it| it.module() == tie.embedding) else { return Ok(None) };
    let copied = Copied { of: CopyOf::Matrix, role: Role::Head, ..copied_weight(embedding) };
    let name = tie.head_weight();
    let copied = Copied { read_as: vec![name.clone()], stored_as: vec![name.clone()], name, ..copied };
    Ok(Some(place(&tie.head, modules.linears.len(), What::Copy(copied), (config, selection))))
}

/// Whether a saved copy of a tied embedding is the head, too: unless the head has one of its own.
pub(crate) fn head_follows(tie: &Tie, config: &LoraConfig, selection: &Selection<'_>) -> bool {
    config.ensure_weight_tying || !selection.saves(&tie.head)
}

pub(crate) fn place<'a>(
    path: &str,
    index: usize,
    what: What<'a>,
    (config, selection): (&'a LoraConfig, &Selection<'_>),
) -> Place<'a> {
    let (rank, scaling) = selection.rank_and_scaling(path);
    let role = match &what {
        What::Linear(linear) => linear.role(),
        What::Stack(it) => it.linear.role(),
        What::Embedding(weight) => weight.role(),
        What::Copy(copied) => copied.role,
    };
    Place { path: path.to_owned(), index: index as u64, what, role, rank, scaling, config }
}

pub(crate) fn copied_matrix(linear: &Linear) -> Copied<'_> {
    let (name, (out, inner)) = (weight_of(linear.module()), linear.dims());
    let value = Box::new(|| linear.dense(None));
    Copied {
        read_as: vec![name.clone()],
        stored_as: vec![name.clone()],
        name,
        shape: vec![out, inner],
        value,
        of: CopyOf::Matrix,
        role: linear.role(),
    }
}

/// PEFT keeps the bias of an adapted layer in the wrapped layer.
pub(crate) fn copied_bias<'a>(linear: &Linear, bias: &'a Weight, adapted: bool) -> Copied<'a> {
    let (wrapped, plain) = (format!("{}.base_layer.bias", linear.path()), format!("{}.bias", linear.path()));
    Copied {
        name: bias.path().to_owned(),
        shape: bias.value().shape().to_vec(),
        value: Box::new(|| Ok(bias.value())),
        stored_as: vec![if adapted { wrapped.clone() } else { plain.clone() }],
        read_as: vec![wrapped, plain],
        of: CopyOf::Bias,
        role: Role::Bias,
    }
}

pub(crate) fn copied_weight(weight: &Weight) -> Copied<'_> {
    let name = weight.path().to_owned();
    Copied {
        shape: weight.value().shape().to_vec(),
        value: Box::new(|| Ok(weight.value())),
        read_as: vec![name.clone()],
        stored_as: vec![name.clone()],
        name,
        of: CopyOf::Other,
        role: weight.role(),
    }
}

/// The head's product is part of the loss and knows no update.
fn refuse_head(modules: &Modules<'_>, path: &str) -> Result<()> {
    if modules.head.as_deref() == Some(path) {
        return Err(Error::Config(format!(
            "{path} is the output head and cannot carry a low-rank update yet; put it into modules_to_save to train it in full"
        )));
    }
    Ok(())
}

/// Whether the target modules mean this weight, which then must be an embedding. `all-linear` means none.
fn names_embedding(config: &LoraConfig, selection: &Selection<'_>, weight: &Weight) -> Result<bool> {
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

/// Whether the bias of the linear layer at `path` trains along.
fn bias_trains(config: &LoraConfig, selection: &Selection<'_>, path: &str) -> bool {
    match config.bias {
        Bias::None => selection.saves(path),
        Bias::All => true,
        Bias::LoraOnly => selection.saves(path) || selection.adapts(path),
    }
}

/// The tie, if the tensor of this name is embedding and output head in one.
pub(crate) fn tie_of<'a>(modules: &'a Modules<'_>, name: &str) -> Option<&'a Tie> {
    let module = name.rsplit_once('.')?.0;
    modules.tied.as_ref().filter(|it| it.embedding == module)
}
