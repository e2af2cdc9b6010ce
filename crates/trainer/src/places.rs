//! Where a flag's model, adapter or data is: a path, or a name whose folder is in the cache or comes from the hub.

use crate::{
    console::{self, say, warn},
    failure::user_error,
};
use halfbyte_data::Part;
use halfbyte_hub::{DataName, Event, Hub, Name, Place, Settings, Use, name};
use indicatif::ProgressBar;
use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

/// What a flag names.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    /// A name that goes on meaning this, whatever moves on the hub; of a path, the path.
    pub(crate) pinned: PathBuf,
}

impl Found {
    fn here(path: &Path) -> Found {
        Found { path: path.to_owned(), pinned: path.to_owned() }
    }
}

/// The folder of a model.
pub(crate) fn model(named: &Path) -> anyhow::Result<Found> {
    folder(named, Use::Model)
}

/// The folder of an adapter.
pub(crate) fn adapter(named: &Path) -> anyhow::Result<PathBuf> {
    Ok(folder(named, Use::Adapter)?.path)
}

fn folder(named: &Path, used: Use) -> anyhow::Result<Found> {
    // What is not UTF-8 is no name.
    let Some(Place::There(name)) = named.to_str().map(name::model).transpose()? else { return Ok(Found::here(named)) };
    let progress = Progress::default();
    let path = hub()?.folder(&name, used, &|it| progress.hear(it))?;
    let commit = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(Found { pinned: format!("{}@{commit}", name.id).into(), path })
}

/// What a flag names as data.
pub(crate) struct FoundData {
    /// The path, or the files of a data set on the hub.
    pub(crate) files: Vec<PathBuf>,
    /// As in [`Found`].
    pub(crate) pinned: PathBuf,
}

/// A source of rows and its weight in a mixture, if the name ends in one: `a.parquet:0.7`. A path that exists as it stands is one.
pub(crate) fn weighted(named: &Path) -> anyhow::Result<(PathBuf, Option<f64>)> {
    let Some(text) = named.to_str().filter(|_| !named.exists()) else { return Ok((named.to_owned(), None)) };
    let (name, weight) = halfbyte_data::parse_weight(text).map_err(|it| user_error(format!("--data {it}")))?;
    Ok((name.into(), weight))
}

/// What names the rows of a flag for good, its weight with them.
pub(crate) fn pinned(named: &Path, part: Part) -> anyhow::Result<PathBuf> {
    let (name, weight) = weighted(named)?;
    let pinned = data(&name, part)?.pinned;
    Ok(weight.map_or_else(|| pinned.clone(), |it| format!("{}:{it}", pinned.display()).into()))
}

/// Files of rows; of a data set on the hub whose split is not named, that which is usual for the part.
pub(crate) fn data(named: &Path, part: Part) -> anyhow::Result<FoundData> {
    let Some(Place::There(name)) = named.to_str().map(name::data).transpose()? else {
        return Ok(FoundData { files: vec![named.to_owned()], pinned: named.to_owned() });
    };
    let progress = Progress::default();
    let rows = hub()?.rows(&name, usual(part), &|it| progress.hear(it))?;
    if name.split.is_none() {
        say(&format!("{name}: taking the split {}", rows.split));
    }
    let repo = Name { revision: Some(rows.commit), ..name.repo };
    let pinned = DataName { repo, config: Some(rows.config), split: Some(rows.split) };
    Ok(FoundData { files: rows.files, pinned: pinned.to_string().into() })
}

/// The splits of a data set on the hub that are meant by a part, the first that there is.
pub(crate) fn usual(part: Part) -> &'static [&'static str] {
    match part {
        Part::Train => &["train"],
        Part::HeldOut => &["test", "validation"],
    }
}

/// A model as other programs are told of it: its name, and the revision if one was named.
pub(crate) fn told(named: &Path) -> (String, Option<String>) {
    match named.to_str().map(name::model) {
        Some(Ok(Place::There(name))) => (name.id, name.revision),
        _ => (named.display().to_string(), None),
    }
}

/// The hub that the environment names.
pub(crate) fn hub() -> anyhow::Result<Hub> {
    Ok(Hub { settings: Settings::from_env()? })
}

/// Says what happens on the network: with a bar while bytes come, or where nobody would see one move, with a line now and then.
#[derive(Default)]
pub(crate) struct Progress(Mutex<Option<Bytes>>);

struct Bytes {
    bar: ProgressBar,
    /// How many were there before.
    kept: u64,
    said: Instant,
}

/// Between two lines in a log.
const PAUSE: Duration = Duration::from_secs(10);

impl Progress {
    pub(crate) fn hear(&self, event: Event<'_>) {
        let mut bytes = self.0.lock().expect("nothing panics while it holds the bar");
        let above = |line: &str, say: fn(&str)| match bytes.as_ref() {
            Some(it) => it.bar.suspend(|| say(line)),
            None => say(line),
        };
        match event {
            Event::Asks { name, endpoint } => say(&format!("{name}: asking {endpoint}")),
            Event::Fetches { name, files, bytes: total, kept } => {
                let here = if kept > 0 { format!(", of which {} came earlier", size(kept)) } else { String::new() };
                let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
                say(&format!("{name}: fetching {files}, {}{here}", size(total)));
                let bar = console::byte_bar(total, "fetching");
                bar.set_position(kept);
                // The rate is that of what comes now.
                bar.reset_eta();
                *bytes = Some(Bytes { bar, kept, said: Instant::now() });
            }
            Event::Came(n) => bytes.iter_mut().for_each(|it| it.came(n)),
            Event::Lost(n) => bytes.iter().for_each(|it| it.bar.dec(n)),
            Event::Waits { why, seconds } => above(&format!("{why}; trying again in {seconds:.1} s"), warn),
            Event::WaitsForOther { file } => above(&format!("another process is fetching {file}; waiting for it"), say),
            Event::Done => bytes.take().iter().for_each(Bytes::finish),
        }
    }
}

impl Bytes {
    fn came(&mut self, n: u64) {
        self.bar.inc(n);
        if !self.bar.is_hidden() || self.said.elapsed() < PAUSE {
            return;
        }
        self.said = Instant::now();
        let (here, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let left = total.saturating_sub(here) as f64 / self.rate().max(1.0);
        say(&format!("{} of {}, {}/s, {left:.0} s left", size(here), size(total), size(self.rate() as u64)));
    }

    /// Bytes a second, of those that came now.
    fn rate(&self) -> f64 {
        self.bar.position().saturating_sub(self.kept) as f64 / self.bar.elapsed().as_secs_f64().max(1e-3)
    }

    fn finish(&self) {
        let seconds = self.bar.elapsed().as_secs_f64();
        self.bar.finish_and_clear();
        say(&format!("fetched in {seconds:.1} s ({}/s)", size(self.rate() as u64)));
    }
}

/// Bytes as people read them.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let steps = (0..units.len() - 1).find(|it| bytes >> (10 * it) < 1024).unwrap_or(units.len() - 1);
    if steps == 0 {
        format!("{bytes} B")
    } else {
        format!("{:.1} {}", bytes as f64 / (1u64 << (10 * steps)) as f64, units[steps])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_by_people() {
        assert_eq!([0, 1023, 1536, 5 << 30].map(size), ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
    }

    #[test]
    fn a_path_is_left_as_it_is() {
        for path in ["/nowhere/at/all", "./x", "rows.jsonl", "x"] {
            let found = model(Path::new(path)).unwrap();
            assert_eq!((found.path.as_path(), found.pinned.as_path()), (Path::new(path), Path::new(path)));
            assert_eq!(told(Path::new(path)), (path.to_owned(), None));
        }
        for path in ["rows.jsonl", "data/*.jsonl", "a/b.jsonl,a/c.jsonl", "data/rows.csv.gz"] {
            let found = data(Path::new(path), Part::Train).unwrap();
            assert_eq!((found.files, found.pinned), (vec![PathBuf::from(path)], PathBuf::from(path)));
        }
    }
}
