use super::session::Session;
use crate::{
    cli::{GenerateArgs, LayoutArg},
    console,
    load::NO_ADAPTER,
};
use halfbyte_data::instruction_prompt;
use std::{io, time::Instant};

/// `halfbyte generate`: the continuation goes to standard output, everything else to standard error.
pub(crate) fn generate(args: &GenerateArgs) -> anyhow::Result<()> {
    let mut session = Session::open(&args.base, &args.adapter, &args.sampling)?;
    let mut names: Vec<String> = match &args.use_adapter {
        Some(name) => vec![name.clone()],
        None => session.names().map(str::to_owned).collect(),
    };
    if names.is_empty() {
        names.push(NO_ADAPTER.to_owned());
    }
    let prompt = match args.layout {
        LayoutArg::Text => args.prompt.clone(),
        LayoutArg::Instruction => instruction_prompt(&args.prompt, None),
    };
    for name in &names {
        session.activate(name)?;
        if names.len() > 1 {
            console::say(&format!("[{name}]"));
        }
        let begun = Instant::now();
        let (generated, _) = session.stream(&prompt, &mut io::stdout().lock())?;
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
