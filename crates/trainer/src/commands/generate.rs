use super::session::{NO_ADAPTER, Session};
use crate::{cli::GenerateArgs, console};
use std::{io, time::Instant};

/// `halfbyte generate`: the continuation goes to standard output, everything else to standard error.
pub(crate) fn generate(args: &GenerateArgs) -> anyhow::Result<()> {
    let mut session = Session::open(&args.base, &args.adapter, &args.sampling)?;
    let names = match (&args.use_adapter, session.adapters.is_empty()) {
        (Some(name), _) => vec![name.clone()],
        (None, true) => vec![NO_ADAPTER.to_owned()],
        (None, false) => session.adapters.clone(),
    };
    for name in &names {
        session.activate(name)?;
        if names.len() > 1 {
            console::say(&format!("[{name}]"));
        }
        let begun = Instant::now();
        let generated = session.stream(&args.prompt, &mut io::stdout().lock())?;
        let seconds = begun.elapsed().as_secs_f64();
        tracing::info!(
            "{} tokens in {seconds:.2} s, {:.1} tokens/s, {:?}",
            generated.ids.len(),
            generated.ids.len() as f64 / seconds,
            generated.stop
        );
    }
    Ok(())
}
