use crate::{base_record::BaseRecord, cli::EvalArgs, console, evaluate, load};
use halfbyte_data::{DataConfig, Dataset, parse_rows};
use serde_json::json;
use std::io::Write;

/// `halfbyte eval`: loss and perplexity of a data set.
pub(crate) fn eval(args: &EvalArgs) -> anyhow::Result<()> {
    let device = load::device(args.base.device)?;
    let base = load::open(&args.base.model)?;
    let record = BaseRecord::resolve(&base.folder, &args.base.flags(), args.adapter.as_deref())?;
    let config = DataConfig {
        columns: load::columns(&args.data, args.text_column.as_deref())?,
        rows: args.rows.as_deref().map(parse_rows).transpose()?,
        max_length: args.max_length,
        ..DataConfig::default()
    };
    let (data, report) = Dataset::load(&args.data, &base.tokenizer, &config)?;
    report.warnings().iter().for_each(|it| console::warn(it));
    let mut model = load::load(&base.folder, record.format(), &device)?;
    if let Some(dir) = &args.adapter {
        load::add_adapter(model.as_mut(), dir, "adapter", record)?;
        model.modules().to_device(&device)?;
        model.modules().set_active(Some("adapter"));
    }
    let found = evaluate::loss(
        model.as_ref(),
        &data,
        args.per_device_eval_batch_size.max(1),
        args.base.compute(),
        "evaluating",
    )?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(
            out,
            "{}",
            json!({ "loss": found.loss, "perplexity": found.perplexity, "tokens": found.tokens, "rows": data.len() })
        )?;
    } else {
        writeln!(
            out,
            "loss {:.5}, perplexity {:.4}, over {} tokens of {} rows",
            found.loss,
            found.perplexity,
            found.tokens,
            data.len()
        )?;
    }
    Ok(())
}
