//! Before and after the training loop: loading, planning, evaluating, saving, summing up.

use super::{
    args::FinetuneArgs,
    beginning::Beginning,
    data::Data,
    epochs, fits,
    output::RunFolder,
    profile, reads,
    record::{MetricsLog, Summary, Totals},
    resume::{eval_loss_before, resume},
    settings::Settings,
    train::Run,
    values::{CheckpointingArg, Method, OptimArg},
};
use crate::{
    cli::QuantArg,
    console::{mib, say, thousands, warn},
    evaluate::{self, Answer},
    failure::Failure,
    fingerprint::Fingerprint,
    load::{self, BaseModel},
    memory,
    plan::Plan,
    save_model,
};
use anyhow::Context as _;
use halfbyte_autograd::Param;
use halfbyte_cuda::Gpu;
use halfbyte_data::ChatTemplate;
use halfbyte_files::write_atomic;
use halfbyte_lora::{Adapter, Context, save_adapter};
use halfbyte_models::Model;
use halfbyte_tensor::Device;
use halfbyte_train::{Optim, OptimConfig, StateConfig, parameters};
use std::time::Instant;

/// Runs the command, whose file has been read.
pub fn run(args: FinetuneArgs, begun: Instant) -> anyhow::Result<()> {
    let mut settings = Settings::resolve(args)?;
    let device = load::device(settings.device)?;
    let named = Beginning::named(&settings)?;
    for folder in named.iter().map(|it| &it.1).chain([&settings.model]) {
        reads::refuse(&settings.output, folder)?;
    }
    let base = load::open(&settings.model, &named)?;
    settings.base.weights = Fingerprint::of_base(&base.folder)?;
    let mut data = Data::load(&settings, &base)?;
    let folder = RunFolder::prepare(&settings.output, settings.args.overwrite, settings.args.resume)?;
    let mut beginning = Beginning::of(&settings, &named, &base.folder)?;
    epochs::lines(&settings, &data.train, &device)?.iter().for_each(|it| say(it));
    let fits::Settled { plan, kept } = fits::settle(&fits::Question {
        settings: &settings,
        folder: &base.folder,
        data: &data.train,
        data_bytes: data.bytes(),
        lora: beginning.config(&settings),
        device: &device,
    })?;
    say(&format!("memory plan (activations {}):", kept.word()));
    plan.lines().iter().for_each(|it| say(it));
    if device == Device::Cpu && settings.offloading == CheckpointingArg::On {
        say("--offload-activations changes nothing on a CPU: activations lie in host memory anyway");
    }
    let mut model = match settings.method {
        Method::Full => load::load_trainable(&base.folder, &device)?,
        Method::Lora | Method::Qlora => load::load(&base.folder, settings.base.format(), &device, beginning.prepare())?,
    };
    data.used.loaded(model.as_ref());
    data.used.dense_line().iter().for_each(|it| say(it));
    let (settings, adapter) = beginning.adapter(settings, model.as_mut(), &device)?;
    let counts = Counts::of(model.as_ref(), adapter.as_deref());
    say(&counts.line());

    let config =
        OptimConfig { adamw: settings.adamw, state: settings.optimizer_state(), spill_dir: folder.path().to_owned() };
    let mut optim = Optim::new(&device, &parameters(model.as_ref(), adapter.as_deref()), &config)?;
    let ctx = Context::new(adapter.clone());
    let state = resume(&settings, &folder, &mut optim, data.train.examples())?;
    let before = match &state {
        Some(state) => Measured { loss: eval_loss_before(state), ..Measured::default() },
        None if settings.args.no_eval_before => Measured::default(),
        None => measure(&settings, (model.as_ref(), &ctx), &base, &data, "before")?,
    };
    // Only now, when nothing that the user could have got wrong is left, does an earlier run's result go.
    folder.begin(settings.args.overwrite)?;
    write_atomic(&folder.file("config.toml"), toml::to_string_pretty(&settings.args)?.as_bytes())?;
    let mut log = MetricsLog::open(&folder.file("metrics.jsonl"), state.as_ref().map_or(0, |it| it.step))?;
    let run = Run {
        settings: &settings,
        folder: &folder,
        data: data.train.examples(),
        eval: data.eval.as_ref(),
        model: model.as_ref(),
        adapter: adapter.clone(),
        optim: &mut optim,
        kept,
        begun,
        eval_loss_before: before.loss,
    };
    // What loading held is behind; the plan is of the training.
    halfbyte_tensor::pool::reset_peak();
    let totals = run.train(state, &mut log)?;
    data.conclude();
    if let Some(why) = gpu(&device).and_then(Gpu::why_not_repeated) {
        warn(&format!(
            "{why}; from then on each kernel was started by itself, and no result is affected. HALFBYTE_CUDA_GRAPH=off does so from the beginning"
        ));
    }
    if settings.args.profile {
        profile::conclude(&folder.file("profile.json"), &device)?;
    }
    let after = measure(&settings, (model.as_ref(), &ctx), &base, &data, "after")?;
    save_result(&settings, &folder, (model.as_ref(), adapter.as_deref()), (&base, data.template.as_deref()))
        .context(NOT_SAVED)?;
    let pages = optim.stats();
    show_samples(settings.args.samples.unwrap_or(0), &before, &after);
    let summary = summary(&counts, &plan, &totals, pages, (&before, &after), &data, (begun, &device));
    log.sync()?;
    // Last of all: it says that the rest is whole.
    let text = format!("{:#}\n", serde_json::to_value(&summary)?);
    write_atomic(&folder.file("summary.json"), text.as_bytes()).context(NOT_SAVED)?;
    conclude(&summary, &settings);
    Ok(())
}

const NOT_SAVED: Failure =
    Failure("the result could not be saved; --resume goes on from the newest checkpoint, if there is one");

/// Parameters in all, and those that train.
struct Counts {
    trainable: usize,
    total: usize,
}

impl Counts {
    fn of(model: &dyn Model, adapter: Option<&Adapter>) -> Counts {
        let (linears, weights) = model.parts();
        let frozen: usize =
            linears.iter().map(|it| it.dims().0 * it.dims().1 + it.bias().map_or(0, |b| b.value().len())).sum();
        let dense: usize = weights.iter().map(|it| it.value().len()).sum();
        let size = |params: Vec<Param>| params.iter().map(|it| it.value().len()).sum::<usize>();
        let added = adapter.into_iter().flat_map(Adapter::updates).filter(|it| it.1.copy().is_none());
        let lora = added.map(|it| size(it.1.params())).sum::<usize>();
        let trainable = parameters(model, adapter).iter().map(|it| it.param.value().len()).sum();
        Counts { trainable, total: frozen + dense + lora }
    }

    /// As PEFT prints it.
    fn line(&self) -> String {
        let share = 100.0 * self.trainable as f64 / self.total as f64;
        format!(
            "trainable params: {} || all params: {} || trainable%: {share:.4}",
            thousands(self.trainable),
            thousands(self.total)
        )
    }
}

impl Settings {
    /// How the optimizer keeps its state, and how much of it in memory.
    pub(super) fn optimizer_state(&self) -> StateConfig {
        let resident = self.args.optim_resident_mib.map(|it| (it * f64::from(1 << 20)) as usize);
        StateConfig { in_8_bits: self.optim == OptimArg::Adamw8bit, resident }
    }
}

/// What held-out rows say.
#[derive(Default)]
struct Measured {
    loss: Option<f64>,
    answers: Vec<Answer>,
}

impl Measured {
    fn accuracy(&self) -> Option<f64> {
        (!self.answers.is_empty()).then(|| evaluate::accuracy(&self.answers))
    }
}

fn measure(
    settings: &Settings,
    what: (&dyn Model, &Context),
    base: &BaseModel,
    data: &Data,
    when: &str,
) -> anyhow::Result<Measured> {
    let Some(eval) = &data.eval else { return Ok(Measured::default()) };
    let compute = settings.compute.dtype();
    let loss = evaluate::loss(what, eval, settings.batch_size, compute, &format!("held-out loss {when}"))?;
    let mut line = format!("{when}: held-out loss {:.4}, perplexity {:.2}", loss.loss, loss.perplexity);
    let mut answers = Vec::new();
    if let Some(labels) = &settings.args.eval_labels {
        let labels: Vec<String> = labels.split(',').map(|it| it.trim().to_owned()).collect();
        answers = evaluate::answers(what, &base.tokenizer, eval, &labels, compute)?;
        line += &format!(", accuracy {:.1} % of {}", 100.0 * evaluate::accuracy(&answers), answers.len());
    }
    say(&line);
    Ok(Measured { loss: Some(loss.loss), answers })
}

fn show_samples(n: usize, before: &Measured, after: &Measured) {
    for (b, a) in before.answers.iter().zip(&after.answers).take(n) {
        say(&format!("\n{}\n  expected: {}   before: {}   after: {}", a.prompt, a.expected, b.given, a.given));
    }
}

/// Writes what the run was for. That by which the folder is taken for it comes last.
fn save_result(
    settings: &Settings,
    folder: &RunFolder,
    (model, adapter): (&dyn Model, Option<&Adapter>),
    (base, template): (&BaseModel, Option<&ChatTemplate>),
) -> anyhow::Result<()> {
    // Where the model has another or none, later chats are to be written as these were.
    let from = base.folders();
    let is_there = |used: &ChatTemplate| {
        let found = ChatTemplate::load(folder.path(), &base.tokenizer).ok().flatten();
        found.is_some_and(|it| it.same_text(used))
    };
    let keep_template = || match template.filter(|it| !is_there(it)) {
        Some(it) => write_atomic(&folder.file("chat_template.jinja"), it.source().as_bytes()),
        None => Ok(()),
    };
    let Some(adapter) = adapter else {
        let dtype = settings.save_dtype.dtype();
        save_model::save_model((model, None), &from, folder.path(), dtype, u64::MAX)?;
        return Ok(keep_template()?);
    };
    if adapter.config.init_lora_weights.is_some() && settings.base.quant != QuantArg::None {
        warn(
            "the adapter is saved as an update of the whole base; stored in few bits, that rounds otherwise than what was trained on, so the loss may differ a little",
        );
    }
    settings.base.write(folder.path())?;
    for from in &from {
        save_model::copy_tokenizer(from, folder.path())?;
    }
    keep_template()?;
    Ok(save_adapter(folder.path(), adapter)?)
}

fn gpu(device: &Device) -> Option<&Gpu> {
    if let Device::Cuda(gpu) = device { Some(gpu) } else { None }
}

/// The most that was taken from the GPU's driver.
fn gpu_peak(device: &Device) -> Option<f64> {
    Some(gpu(device)?.stats().peak_reserved as f64 / f64::from(1 << 20))
}

fn summary(
    counts: &Counts,
    plan: &Plan,
    totals: &Totals,
    optimizer_pages: halfbyte_paged_optim::PageStats,
    (before, after): (&Measured, &Measured),
    data: &Data,
    (begun, device): (Instant, &Device),
) -> Summary {
    Summary {
        steps: totals.steps,
        best: totals.best,
        eval_loss_before: before.loss,
        eval_loss_after: after.loss,
        eval_accuracy_before: before.accuracy(),
        eval_accuracy_after: after.accuracy(),
        train_loss_last: totals.last_loss,
        tokens_per_second: totals.tokens_per_second(),
        peak_rss_mib: memory::peak_rss().map(|it| it as f64 / f64::from(1 << 20)),
        peak_gpu_mib: gpu_peak(device),
        gpu_graphs: gpu(device).map(|it| it.counters().graphs),
        peak_tensors_mib: gpu_peak(device)
            .unwrap_or(halfbyte_tensor::pool::stats().footprint as f64 / f64::from(1 << 20)),
        planned_bytes: plan.total(),
        plan: plan.clone(),
        optimizer_pages,
        trainable_parameters: counts.trainable,
        total_parameters: counts.total,
        seconds_to_first_step: totals.seconds_to_first_step,
        wall_seconds: begun.elapsed().as_secs_f64(),
        data: data.train.report(),
        used: data.used.clone(),
    }
}

fn conclude(summary: &Summary, settings: &Settings) {
    let resident = summary.peak_rss_mib.map_or_else(|| "not measured here".to_owned(), |it| format!("{it:.1} MiB"));
    let peak = summary.peak_gpu_mib.map_or(resident, |it| format!("{it:.1} MiB on the GPU"));
    say(&format!(
        "\n{} steps in {:.1} s, {:.0} tokens/s; peak memory {peak}, planned {}",
        summary.steps,
        summary.wall_seconds,
        summary.tokens_per_second,
        mib(summary.planned_bytes)
    ));
    if let (Some(before), Some(after)) = (summary.eval_loss_before, summary.eval_loss_after) {
        say(&format!("held-out loss {before:.4} -> {after:.4}"));
    }
    let what = if settings.method == Method::Full { "model" } else { "adapter" };
    say(&format!("{what} saved in {}", settings.output.display()));
}
