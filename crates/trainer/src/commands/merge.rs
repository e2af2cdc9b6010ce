use super::model_folder::Target;
use crate::{
    base_record::{BaseFlags, BaseRecord},
    cli::MergeArgs,
    console::{say, warn},
    failure::user_error,
    load::{self, Waiting},
    merge_check::{self, Agreement, LEAST_AGREEMENT, WORST_KL},
    places,
    plan::{Asked, Untrained, compared},
    save_model::{keep_template, save_model},
    templates::Voice,
};
use halfbyte_lora::{Context, check_tied};
use halfbyte_tensor::{DType, Device};
use std::sync::Arc;

/// What is refused where memory is short.
const WHAT: &str = "this merge";

/// `halfbyte merge`: base + adapter as a model folder that needs neither Halfbyte nor PEFT.
///
/// The merge happens onto the base as the adapter saw it in training: if that was 4-bit, onto the decoded 4-bit weights.
pub(crate) fn merge(args: &MergeArgs) -> anyhow::Result<()> {
    let (model_dir, adapter_dir) = (places::model(&args.model)?.path, places::adapter(&args.adapter)?);
    let target = Target { output: &args.output, overwrite: args.overwrite, sources: &[&model_dir, &adapter_dir] };
    target.check()?;
    let named = [("adapter".to_owned(), adapter_dir.clone())];
    let base = load::open(&model_dir, &named)?;
    let flags = BaseFlags { quant: args.quant, double_quant: args.double_quant, block_size: args.block_size };
    let record = BaseRecord::resolve(&base.folder, &flags, Some(&adapter_dir))?;
    let mut waiting = Waiting::read(&named, &base.folder, record)?;
    let positions = base.folder.config().max_position_embeddings;
    let ids = merge_check::sample((&base, &Voice::all(&named, &base)), args.check_data.as_deref(), positions)?;
    let planned = Untrained {
        folder: &base.folder,
        format: record.format(),
        adapters: waiting.configs().collect(),
        compute: DType::F32,
    };
    let asked = Asked::Merge { tokens: ids.len(), dtype: args.dtype.dtype() };
    let plan = planned.fits(&Device::Cpu, (WHAT, &asked), 0, &[])?;
    let mut model = load::load(&base.folder, record.format(), &Device::Cpu, Some(&mut waiting))?;
    let Some(adapter) = waiting.adapters(model.as_mut(), &Device::Cpu)?.pop().map(Arc::new) else {
        unreachable!("one adapter was read")
    };
    check_tied(&adapter, &model.modules()).map_err(|e| user_error(format!("{}: {e}", args.adapter.display())))?;
    let both = merge_check::predictions(model.as_ref(), &ids, &Context::new(Some(adapter.clone())))?;
    target.write(|draft| {
        let what = (model.as_ref(), Some(adapter.as_ref()));
        let mut from = base.folders();
        // What belongs to the tokenizer is as it was in training, if the adapter brings that.
        from.retain(|it| *it != adapter_dir.as_path());
        from.push(&adapter_dir);
        save_model(what, &from, draft, args.dtype.dtype(), args.max_shard_size)?;
        keep_template(&from, draft)?;
        let merged = merge_check::predictions_of_folder(draft, &ids)?;
        judge(&Agreement::of(&both, &merged), args.force)
    })?;
    compared(WHAT, &plan);
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
