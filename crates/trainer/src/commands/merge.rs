use crate::{
    cli::MergeArgs,
    console::{say, warn},
    failure::user_error,
    load::{self, BaseRecord},
    save_model::save_model,
};
use anyhow::Context;
use std::path::Path;

/// `halfbyte merge`: base + adapter as a model folder that needs neither Halfbyte nor PEFT.
///
/// The merge happens onto the base as the adapter saw it in training: if that was 4-bit, onto the decoded 4-bit weights.
pub(crate) fn merge(args: &MergeArgs) -> anyhow::Result<()> {
    if BaseRecord::read(&args.adapter)?.is_none() && args.quant.is_none() {
        warn(
            "nothing beside the adapter says how its base was quantised; merging onto the base as loaded (--quant says otherwise)",
        );
    }
    let record = BaseRecord::resolve(args.quant, args.double_quant, args.block_size, Some(&args.adapter))?;
    let base = load::open(&args.model)?;
    let mut model = load::load(&base.folder, record.format())?;
    load::add_adapter(model.as_mut(), &args.adapter, "adapter")?;
    model.modules().set_active(Some("adapter"));
    write_folder(&args.output, args.overwrite, |draft| {
        save_model(model.as_ref(), &args.model, draft, args.dtype.dtype())
    })?;
    say(&format!("merged model in {}", args.output.display()));
    Ok(())
}

/// Fills a new folder, which appears under its name only when it is whole.
pub(super) fn write_folder(
    output: &Path,
    overwrite: bool,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let parent = output.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if output.exists() && !overwrite {
        return Err(user_error(format!("{}: exists; --overwrite replaces it", output.display())));
    }
    std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let draft = tempfile::Builder::new()
        .prefix(".tmp-model-")
        .tempdir_in(parent)
        .with_context(|| parent.display().to_string())?;
    fill(draft.path())?;
    if output.exists() {
        std::fs::remove_dir_all(output).with_context(|| output.display().to_string())?;
    }
    let draft = draft.keep();
    std::fs::rename(&draft, output).with_context(|| output.display().to_string())
}
