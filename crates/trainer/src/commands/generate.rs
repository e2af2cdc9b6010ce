use super::{dialogue::Dialogue, session::Opened};
use crate::{
    cli::GenerateArgs,
    console,
    failure::user_error,
    load::NO_ADAPTER,
    rows::{LayoutArg, template},
};
use halfbyte_data::instruction_prompt;
use std::{
    io::{self, Write},
    time::Instant,
};

/// `halfbyte generate`: the continuation goes to standard output, everything else to standard error.
pub(crate) fn generate(args: &GenerateArgs) -> anyhow::Result<()> {
    let mut opened = Opened::open(&args.base, &args.adapter, &args.sampling)?;
    let prompt = prompt(args, &mut opened)?;
    let mut session = opened.load(prompt.len())?;
    let mut names: Vec<String> = match &args.use_adapter {
        Some(name) => vec![name.clone()],
        None => session.names().map(str::to_owned).collect(),
    };
    if names.is_empty() {
        names.push(NO_ADAPTER.to_owned());
    }
    for name in &names {
        session.activate(name)?;
        if names.len() > 1 {
            console::say(&format!("[{name}]"));
        }
        let mut out = Timed { out: io::stdout().lock(), begun: Instant::now(), first: None };
        let (generated, _) = session.stream_ids(prompt.clone(), &mut out)?;
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

/// The tokens of the prompt in its layout.
fn prompt(args: &GenerateArgs, opened: &mut Opened) -> anyhow::Result<Vec<u32>> {
    let layout = if args.chat { LayoutArg::Chat } else { args.layout };
    if args.system.is_some() && layout != LayoutArg::Chat {
        return Err(user_error("--system is a message of a chat; add --chat"));
    }
    Ok(match layout {
        LayoutArg::Text | LayoutArg::Completion => opened.tokenizer().encode_prompt(&args.prompt)?,
        LayoutArg::Instruction => opened.tokenizer().encode_prompt(&instruction_prompt(&args.prompt, None))?,
        LayoutArg::Chat => {
            let template = template(&args.template, &opened.folders(), opened.tokenizer())?;
            opened.stop_at(&template.end_ids(opened.tokenizer())?);
            Dialogue::new(template, args.system.as_deref()).ask(&args.prompt, opened.tokenizer())?
        }
    })
}
