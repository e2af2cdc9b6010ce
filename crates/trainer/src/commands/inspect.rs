use crate::{
    base_record::BaseRecord,
    cli::InspectArgs,
    console::{mib, thousands},
    load,
    plan::{Card, Longest, RUNTIME_BYTES, Rehearsal, rehearsal::Stage, roofline::Roofline},
};
use halfbyte_lora::{Adapter, Linear, LoraConfig, TargetModules};
use halfbyte_models::Model;
use halfbyte_tensor::Device;
use halfbyte_train::{OptimConfig, StateConfig, StepConfig, parameters};
use serde_json::json;
use std::io::Write;

/// `halfbyte inspect`: structure, trainable share and memory plan, from the headers of the model's files.
pub(crate) fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let base = load::open(&args.base.model, &[])?;
    let record = BaseRecord::resolve(&base.folder, &args.base.flags(), None)?;
    let lora = args.target_modules.as_ref().map(|targets| LoraConfig {
        rank: args.rank,
        lora_alpha: args.rank as f32,
        target_modules: TargetModules::parse(targets),
        target_parameters: args.target_parameters.clone(),
        ..LoraConfig::default()
    });
    let tokens = args.max_length.min(base.folder.config().max_position_embeddings);
    let rehearsal = Rehearsal {
        folder: &base.folder,
        format: Some(record.format()),
        lora: lora.as_ref(),
        from_flags: true,
        step: StepConfig {
            compute: args.base.compute(),
            checkpointing: args.gradient_checkpointing || args.offload_activations,
            offloading: args.offload_activations,
            repeating: true,
            ..StepConfig::default()
        },
        optim: OptimConfig {
            state: StateConfig { resident: args.optim_resident_mib.map(|it| (it as usize) << 20), in_8_bits: false },
            ..OptimConfig::default()
        },
        lengths: vec![tokens; args.per_device_train_batch_size],
        accumulates: false,
    };
    let cast = rehearsal.cast(&Stage::like(&Device::Cpu))?;
    let (model, adapter) = (cast.model.as_ref(), cast.adapter.as_deref());
    let facts = Facts::of(model, adapter);
    let device = load::device(args.base.device)?;
    let mut plan = rehearsal.plan(&Stage::like(&device))?;
    if device == Device::Cpu {
        plan.runtime = RUNTIME_BYTES;
    }
    let card = args.roofline.as_deref().and_then(Card::named);
    let positions = base.folder.config().max_position_embeddings;
    let on = args.longest_row.as_deref().and_then(Card::named);
    let longest = on.map(|it| Longest::of(&rehearsal, it, positions)).transpose()?;
    let roofline = card.map(|it| Roofline::of(&rehearsal, it)).transpose()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let object = json!({
            "modules": facts.modules,
            "trainable_parameters": facts.trainable,
            "total_parameters": facts.total,
            "plan": plan,
            "planned_bytes": plan.total(),
            "roofline": roofline,
            "longest_rows": longest,
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    for line in structure(model, adapter) {
        writeln!(out, "{line}")?;
    }
    let share = 100.0 * facts.trainable as f64 / facts.total as f64;
    writeln!(
        out,
        "\ntrainable params: {} || all params: {} || trainable%: {share:.4}",
        thousands(facts.trainable),
        thousands(facts.total)
    )?;
    writeln!(
        out,
        "\nmemory plan for training {} rows of {tokens} tokens, activations {}:",
        args.per_device_train_batch_size,
        match (args.gradient_checkpointing, args.offload_activations) {
            (_, true) => "recomputed from inputs in host memory",
            (true, false) => "recomputed",
            (false, false) => "kept",
        }
    )?;
    for line in plan.lines() {
        writeln!(out, "{line}")?;
    }
    if let (Some(longest), Some(card)) = (longest, on) {
        writeln!(out)?;
        for line in Longest::lines(&longest, card, positions) {
            writeln!(out, "{line}")?;
        }
    }
    if let Some(roofline) = roofline {
        writeln!(out, "\nmemory plan for the same on {}:", roofline.card)?;
        for line in roofline.plan.lines() {
            writeln!(out, "{line}")?;
        }
        writeln!(out)?;
        for line in roofline.table() {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

struct Facts {
    modules: Vec<serde_json::Value>,
    trainable: usize,
    total: usize,
}

impl Facts {
    fn of(model: &dyn Model, adapter: Option<&Adapter>) -> Facts {
        let (linears, weights) = model.parts();
        let trainable = parameters(model, adapter).iter().map(|it| it.param.value().len()).sum();
        let mut facts = Facts { modules: Vec::new(), trainable, total: trainable };
        for weight in weights {
            facts.total += weight.value().len();
            facts.modules.push(json!({ "path": weight.path(), "shape": weight.value().shape(), "format": weight.value().dtype().to_string() }));
        }
        for linear in linears {
            let (out, inner) = linear.dims();
            facts.total += out * inner + linear.bias().map_or(0, |it| it.value().len());
            let rank = rank(adapter, linear);
            facts.modules.push(json!({ "path": linear.path(), "shape": [out, inner], "format": linear.format(), "bytes": linear.bytes(), "rank": rank }));
        }
        facts
    }
}

/// The rank of a layer's update.
fn rank(adapter: Option<&Adapter>, linear: &Linear) -> Option<usize> {
    linear.rank(adapter?)
}

/// One line a module; of layers that look alike only the first is shown.
fn structure(model: &dyn Model, adapter: Option<&Adapter>) -> Vec<String> {
    let (linears, weights) = model.parts();
    let config = model.config();
    let mut lines = vec![format!(
        "{} layers, hidden size {}, {} heads ({} for keys and values) of {}, vocabulary {}{}",
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        thousands(config.vocab_size),
        if config.tie_word_embeddings { ", tied output head" } else { "" }
    )];
    let first = |path: &str| !path.split('.').any(|it| it.parse::<usize>().is_ok_and(|n| n > 0));
    for weight in weights.iter().filter(|it| first(it.path())) {
        lines.push(format!(
            "{:<44} {:>14}  {}",
            weight.path(),
            format!("{:?}", weight.value().shape()),
            weight.value().dtype()
        ));
    }
    for linear in linears.iter().filter(|it| first(it.path())) {
        let (out, inner) = linear.dims();
        let lora = rank(adapter, linear).map_or_else(String::new, |it| format!(" + LoRA rank {it}"));
        let bias = if linear.bias().is_some() { ", bias" } else { "" };
        lines.push(format!(
            "{:<44} {:>14}  {}, {}{bias}{lora}",
            linear.path(),
            format!("[{out}, {inner}]"),
            linear.format(),
            mib(linear.bytes())
        ));
    }
    lines.push(format!("(layers 1 to {} like layer 0)", config.num_hidden_layers.saturating_sub(1)));
    lines
}
