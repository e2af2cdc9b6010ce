use super::model_folder::Target;
use crate::{
    base_record::{BaseFlags, BaseRecord},
    cli::MergeArgs,
    console::{say, warn},
    failure::user_error,
    load,
    merge_check::{self, Agreement, LEAST_AGREEMENT, WORST_KL},
    save_model::save_model,
};
use halfbyte_lora::Weight;
use halfbyte_tensor::Device;

/// `halfbyte merge`: base + adapter as a model folder that needs neither Halfbyte nor PEFT.
///
/// The merge happens onto the base as the adapter saw it in training: if that was 4-bit, onto the decoded 4-bit weights.
pub(crate) fn merge(args: &MergeArgs) -> anyhow::Result<()> {
    let target = Target { output: &args.output, overwrite: args.overwrite, sources: &[&args.model, &args.adapter] };
    target.check()?;
    let base = load::open(&args.model)?;
    let flags = BaseFlags { quant: args.quant, double_quant: args.double_quant, block_size: args.block_size };
    let record = BaseRecord::resolve(&base.folder, &flags, Some(&args.adapter))?;
    if BaseRecord::read(&args.adapter)?.is_none() && args.quant.is_none() && !base.folder.is_quantized() {
        warn(
            "nothing beside the adapter says how its base was quantised; merging onto the base as loaded (--quant says otherwise)",
        );
    }
    let mut model = load::load(&base.folder, record.format(), &Device::Cpu)?;
    load::add_adapter(model.as_mut(), &args.adapter, "adapter", record)?;
    let modules = model.modules();
    let tied = modules.tied.clone();
    let is_head = |it: &Weight| tied.as_ref().is_some_and(|tie| tie.embedding == it.module());
    let apart = |it: &Weight| it.is_untied("adapter") || (it.update_of("adapter").is_some() && is_head(it));
    if modules.weights.iter().any(|it| apart(it)) {
        return Err(user_error(format!(
            "{}: the adapter has its own embedding while the output head stays on the base's (ensure_weight_tying is false), and this model keeps one matrix for both; run base and adapter side by side instead",
            args.adapter.display()
        )));
    }
    model.modules().set_active(Some("adapter"));
    let positions = model.config().max_position_embeddings;
    let ids = merge_check::sample(&base.tokenizer, args.check_data.as_deref(), positions)?;
    let both = merge_check::predictions(model.as_ref(), &ids)?;
    target.write(|draft| {
        save_model(model.as_ref(), &args.model, draft, args.dtype.dtype(), args.max_shard_size)?;
        let merged = merge_check::predictions(merge_check::open_streamed(draft)?.as_ref(), &ids)?;
        judge(&Agreement::of(&both, &merged), args.force)
    })?;
    say(&format!("merged model in {}", args.output.display()));
    Ok(())
}

/// Says how near the merged model is to base + adapter, and refuses one that is not.
fn judge(found: &Agreement, force: bool) -> anyhow::Result<()> {
    let line = format!(
        "merged against base + adapter, over {} tokens: KL divergence {:.2e} nats a token, top-1 agreement {:.1} %",
        found.tokens,
        found.kl_divergence,
        100.0 * found.top1_agreement
    );
    if found.is_good() {
        say(&line);
        return Ok(());
    }
    let wanted = format!("at most {WORST_KL} and at least {:.0} % are wanted", 100.0 * LEAST_AGREEMENT);
    if force {
        warn(&format!("{line}; {wanted}, written because of --force"));
        return Ok(());
    }
    Err(user_error(format!(
        "{line}; {wanted}. Nothing was written: try --dtype f32, run base and adapter side by side instead, or take it with --force"
    )))
}
