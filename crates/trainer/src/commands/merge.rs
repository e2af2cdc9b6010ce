use super::model_folder::Target;
use crate::{
    base_record::{BaseFlags, BaseRecord},
    cli::MergeArgs,
    console::{say, warn},
    failure::user_error,
    load,
    save_model::save_model,
};

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
    let mut model = load::load(&base.folder, record.format())?;
    load::add_adapter(model.as_mut(), &args.adapter, "adapter", record)?;
    if model.modules().weights.iter().any(|it| it.is_untied("adapter")) {
        return Err(user_error(format!(
            "{}: the adapter has its own embedding while the output head stays on the base's (ensure_weight_tying is false), and this model keeps one matrix for both; run base and adapter side by side instead",
            args.adapter.display()
        )));
    }
    model.modules().set_active(Some("adapter"));
    target.write(|draft| save_model(model.as_ref(), &args.model, draft, args.dtype.dtype()))?;
    say(&format!("merged model in {}", args.output.display()));
    Ok(())
}
