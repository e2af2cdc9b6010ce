use crate::{
    cli::PullArgs,
    failure::user_error,
    places::{self, Progress},
};
use halfbyte_data::Part;
use halfbyte_hub::{Place, Use, name};
use std::{ffi::OsStr, io::Write};

/// `halfbyte pull`: names into the cache, as the hub has them now. Their folders and files go to standard output.
pub(crate) fn pull(args: &PullArgs) -> anyhow::Result<()> {
    if args.names.is_empty() && args.data.is_empty() {
        return Err(user_error("nothing to pull: give the name of a model or an adapter, ORG/NAME, or --data ORG/SET"));
    }
    let hub = places::hub()?;
    let mut out = std::io::stdout().lock();
    for text in &args.names {
        let place = text.to_str().map(name::model).transpose()?;
        let Some(Place::There(name)) = place else { return Err(no_name(text, "ORG/NAME[@REVISION]")) };
        let progress = Progress::default();
        let pulled = hub.pull(&name, Use::Any, &|it| progress.hear(it))?;
        writeln!(out, "{}", pulled.folder.display())?;
    }
    for text in &args.data {
        let place = text.to_str().map(name::data).transpose()?;
        let Some(Place::There(name)) = place else { return Err(no_name(text, "ORG/SET[@REVISION][:SPLIT]")) };
        let progress = Progress::default();
        for file in hub.pull_rows(&name, places::usual(Part::Train), &|it| progress.hear(it))?.files {
            writeln!(out, "{}", file.display())?;
        }
    }
    Ok(())
}

fn no_name(text: &OsStr, form: &str) -> anyhow::Error {
    user_error(format!("{}: is a path, or no name on the hub; expected {form}", text.display()))
}
