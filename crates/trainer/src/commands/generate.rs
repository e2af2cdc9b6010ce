use super::{
    answers::{Answers, Wanted},
    prompts::prompts,
    session::{Opened, Session},
};
use crate::{
    cli::GenerateArgs,
    console::{self, thousands},
    failure::user_error,
    load::NO_ADAPTER,
};
use halfbyte_data::{Prompt, parse_rows};
use halfbyte_models::{Generated, Heard, StopReason};
use indicatif::ProgressBar;
use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Instant,
};

/// `halfbyte generate`: the continuation goes to standard output, everything else to standard error.
pub(crate) fn generate(args: &GenerateArgs) -> anyhow::Result<()> {
    if args.per_device_eval_batch_size == Some(0) {
        return Err(user_error("--per-device-eval-batch-size must be at least 1"));
    }
    let mut opened = Opened::open(&args.base, &args.adapter, &args.sampling)?;
    let names = match &args.use_adapter {
        Some(name) => vec![opened.adapter(name)?],
        None => opened.adapters(),
    };
    let prompts = prompts(args, &names, &mut opened)?;
    let is_one = args.prompt.len() == 1 && !args.json && args.output.is_none();
    if is_one { one(opened, &prompts[0].ids, &names) } else { several(args, opened, &prompts, &names) }
}

/// A single text, which is shown while it comes.
fn one(opened: Opened, prompt: &[u32], names: &[String]) -> anyhow::Result<()> {
    let mut session = opened.load(prompt.len())?;
    for name in names {
        session.activate(name)?;
        if names.len() > 1 {
            console::say(&format!("[{name}]"));
        }
        let mut out = Timed { out: io::stdout().lock(), begun: Instant::now(), first: None };
        let (generated, _) = session.stream_ids(prompt.to_vec(), &mut out)?;
        let seconds = out.begun.elapsed().as_secs_f64();
        tracing::info!(
            "{} tokens in {seconds:.2} s, {:.1} tokens/s, {:?}",
            generated.ids.len(),
            generated.ids.len() as f64 / seconds,
            generated.stop
        );
        if let Some(first) = out.first {
            let read = prompt.len();
            tracing::info!("prompt of {read} tokens read in {first:.3} s, {:.1} tokens/s", read as f64 / first);
        }
    }
    Ok(())
}

/// Any number of texts, many at a time, written in their order.
fn several(args: &GenerateArgs, opened: Opened, prompts: &[Prompt], names: &[String]) -> anyhow::Result<()> {
    let adapters = match names {
        [one] if one == NO_ADAPTER => vec![None],
        all => all.iter().map(|it| Some(it.as_str())).collect(),
    };
    // Rows keep the numbers that they have in their files, and so what is drawn for them.
    let first = args.rows.as_deref().map(parse_rows).transpose()?.map_or(0, |it| it.start);
    let weights = names.iter().map(|it| opened.weights_of(it)).collect::<anyhow::Result<_>>()?;
    let wanted = Wanted { prompts, first, adapters, weights, settings: opened.settings()? };
    let (answers, done) = match &args.output {
        Some(path) => Answers::file(path, &wanted, args.resume, args.overwrite)?,
        None if args.json => (Answers::Objects, 0),
        None => (Answers::Texts, 0),
    };
    if done > 0 {
        console::say(&format!("{} of {} texts are there already", thousands(done), thousands(wanted.len())));
    }
    if done == wanted.len() {
        return Ok(());
    }
    let lengths: Vec<usize> = prompts.iter().map(|it| it.ids.len()).collect();
    let (mut session, together) = opened.load_for(&lengths, args.per_device_eval_batch_size)?;
    tracing::info!("{together} texts are continued together");
    let bar = console::step_bar(wanted.len() as u64, "generating");
    bar.set_position(done as u64);
    let mut work = Work { answers, wanted, next: done, ready: BTreeMap::new(), bar, sums: Sums::new(), failed: None };
    for (at, name) in names.iter().enumerate() {
        let first = at * prompts.len();
        if work.next >= first + prompts.len() {
            continue;
        }
        session.activate(name)?;
        if names.len() > 1 {
            work.answers.announce(&format!("[{name}]"));
        }
        work.through(&session, (first, work.next - first), together)?;
    }
    work.bar.finish_and_clear();
    work.answers.finish()?;
    console::say(&work.sums.line());
    Ok(())
}

/// Texts under way, and what becomes of those that ended.
struct Work<'a> {
    answers: Answers,
    wanted: Wanted<'a>,
    /// Which text is written next.
    next: usize,
    /// Texts that have ended before others whose turn it is.
    ready: BTreeMap<usize, Generated>,
    bar: ProgressBar,
    sums: Sums,
    failed: Option<anyhow::Error>,
}

impl Work<'_> {
    /// Continues the prompts from one on with the adapter in use; `first` of all texts is that of the first prompt.
    fn through(&mut self, session: &Session, (first, from): (usize, usize), together: usize) -> anyhow::Result<()> {
        let ids: Vec<Vec<u32>> = self.wanted.prompts[from..].iter().map(|it| it.ids.clone()).collect();
        session.continue_all((&ids, self.wanted.first + from), together, &mut |number, heard| {
            match heard {
                Heard::Token(_) => self.sums.token(&self.bar),
                Heard::Ended(it) => {
                    if let Err(error) = self.ended(first + from + number, it.clone(), session) {
                        self.failed.get_or_insert(error);
                    }
                }
            }
            self.failed.is_none()
        })?;
        self.failed.take().map_or(Ok(()), Err)
    }

    fn ended(&mut self, at: usize, generated: Generated, session: &Session) -> anyhow::Result<()> {
        self.sums.text(self.wanted.prompts[at % self.wanted.prompts.len()].ids.len(), &generated);
        self.ready.insert(at, generated);
        self.bar.inc(1);
        while let Some(generated) = self.ready.remove(&self.next) {
            let (at, answers, wanted) = (self.next, &mut self.answers, &self.wanted);
            // A bar and a text on one terminal would run into each other.
            self.bar.suspend(|| answers.write(at, wanted, &generated, session.tokenizer()))?;
            self.next += 1;
        }
        Ok(())
    }
}

/// What was done so far.
struct Sums {
    begun: Instant,
    texts: usize,
    read: usize,
    new: usize,
    ended: usize,
}

impl Sums {
    fn new() -> Sums {
        Sums { begun: Instant::now(), texts: 0, read: 0, new: 0, ended: 0 }
    }

    fn token(&mut self, bar: &ProgressBar) {
        self.new += 1;
        if self.new.is_multiple_of(64) {
            bar.set_message(format!("{:.1} tokens/s", self.rate()));
        }
    }

    fn text(&mut self, prompt: usize, generated: &Generated) {
        self.texts += 1;
        self.read += prompt;
        self.ended += usize::from(generated.stop == StopReason::Eos);
    }

    fn rate(&self) -> f64 {
        self.new as f64 / self.begun.elapsed().as_secs_f64().max(f64::EPSILON)
    }

    /// For people.
    fn line(&self) -> String {
        format!(
            "{} texts in {:.2} s: prompts of {} tokens, {} new ones, {:.1} new tokens/s; the model ended {} of them",
            thousands(self.texts),
            self.begun.elapsed().as_secs_f64(),
            thousands(self.read),
            thousands(self.new),
            self.rate(),
            thousands(self.ended)
        )
    }
}

/// Notes when the first token came.
struct Timed<W> {
    out: W,
    begun: Instant,
    /// Seconds until then.
    first: Option<f64>,
}

impl<W: Write> Write for Timed<W> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.out.write(text)
    }

    /// After each token, though its text may be yet to come.
    fn flush(&mut self) -> io::Result<()> {
        self.first.get_or_insert_with(|| self.begun.elapsed().as_secs_f64());
        self.out.flush()
    }
}
