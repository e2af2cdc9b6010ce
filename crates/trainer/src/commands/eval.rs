use crate::{
    base_record::BaseRecord,
    cli::EvalArgs,
    console, evaluate,
    finetune::row_line_of,
    load::{self, BaseModel, Waiting},
    plan::{Asked, Plan, Untrained, compared},
    run_rows,
    sources::Rows,
    templates::Voice,
};
use halfbyte_data::{Dataset, Part};
use halfbyte_frozen::Format;
use halfbyte_lora::Context;
use halfbyte_tensor::Device;
use halfbyte_train::EvalLoss;
use serde_json::json;
use std::{io::Write, sync::Arc};

/// What is refused where memory is short.
const WHAT: &str = "this evaluation";

/// `halfbyte eval`: loss and perplexity of a data set.
pub(crate) fn eval(args: &EvalArgs) -> anyhow::Result<()> {
    let device = load::device(args.base.device)?;
    let named = args.adapter.iter().map(|it| load::parse_adapter(it)).collect::<anyhow::Result<Vec<_>>>()?;
    let base = load::open(&args.base.model, &named)?;
    let first = named.first().map(|it| it.1.as_path());
    let record = BaseRecord::resolve(&base.folder, &args.base.flags(), first)?;
    let voices = Voice::all(&named, &base);
    let rows = Rows::named(&args.read, Part::HeldOut, (&base, &voices))?;
    let loaded = rows.load(&base.tokenizer)?;
    for (line, source) in loaded.lines.iter().zip(&rows.sources) {
        console::say(&format!("{line}; {}", row_line_of(source)));
    }
    loaded.report.warnings().iter().for_each(|it| console::warn(it));
    for ((_, dir), voice) in named.iter().zip(&voices) {
        let told = run_rows::difference(dir, &args.read, (&rows, &loaded), (&base, voice))?;
        told.iter().for_each(|it| console::warn(it));
    }
    let data = loaded.dataset;
    let mut waiting = Waiting::read(&named, &base.folder, record)?;
    let plan = fits(args, &base, (&data, &waiting), (record.format(), &device))?;
    let mut model = load::load(&base.folder, record.format(), &device, Some(&mut waiting))?;
    let adapters = waiting.adapters(model.as_mut(), &device)?;
    let several = adapters.len() > 1;
    let routings =
        if adapters.is_empty() { vec![None] } else { adapters.into_iter().map(|it| Some(Arc::new(it))).collect() };
    for adapter in routings {
        let name = adapter.as_ref().filter(|_| several).map(|it| it.name.clone());
        let found = evaluate::loss(
            (model.as_ref(), &Context::new(adapter)),
            &data,
            args.per_device_eval_batch_size.max(1),
            args.base.compute(),
            "evaluating",
        )?;
        print(args.json, name.as_deref(), &found, data.len())?;
    }
    compared(WHAT, &plan);
    Ok(())
}

/// Refuses to measure what there is no memory for.
fn fits(
    args: &EvalArgs,
    base: &BaseModel,
    (data, waiting): (&Dataset, &Waiting),
    (format, device): (Format, &Device),
) -> anyhow::Result<Plan> {
    let way = |format| Untrained {
        folder: &base.folder,
        format,
        adapters: waiting.configs().collect(),
        compute: args.base.compute(),
    };
    let rows = args.per_device_eval_batch_size.max(1);
    let asked = |rows: usize| Asked::Loss(evaluate::largest(data, rows));
    let mut others = vec![("--per-device-eval-batch-size 1", way(format), asked(1))];
    if !base.folder.is_quantized() {
        others.push(("--quant nf4 with --per-device-eval-batch-size 1", way(Format::QLORA), asked(1)));
    }
    way(format).fits(device, (WHAT, &asked(rows)), data.bytes(), &others)
}

/// One line a measurement, with the adapter's name where there are several.
fn print(json: bool, name: Option<&str>, found: &EvalLoss, rows: usize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        let mut object =
            json!({ "loss": found.loss, "perplexity": found.perplexity, "tokens": found.tokens, "rows": rows });
        if let Some(name) = name {
            object["adapter"] = json!(name);
        }
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let prefix = name.map_or_else(String::new, |it| format!("{it}: "));
    writeln!(
        out,
        "{prefix}loss {:.5}, perplexity {:.4}, over {} tokens of {rows} rows",
        found.loss, found.perplexity, found.tokens
    )?;
    Ok(())
}
