//! From a hub into the cache: what is there, what is wanted of it, whether there is room, and the files.

use crate::{
    DataName, Error, Event, Hub, Name, Pulled, Result, Rows, Use, Watch, api,
    cache::{Repo, is_commit},
    client::Client,
    fetch::Fetch,
    part::Part,
    space,
    splits::{pick, splits},
    tree::{Entry, Tree},
    wanted::wanted,
};
use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Left for others on the disk.
const SPARE: u64 = 64 << 20;

pub(crate) fn pull(hub: &Hub, name: &Name, used: Use, watch: Watch<'_>) -> Result<Pulled> {
    let client = begin(hub, name, watch)?;
    let (commit, tree) = look_up(&client, name)?;
    let all: Vec<&str> = tree.paths().collect();
    let paths = wanted(&all, used);
    refuse_useless(name, used, &paths, &all)?;
    let wanted: Vec<&Entry> = tree.0.iter().filter(|it| paths.contains(&it.path.as_str())).collect();
    let mut job = Job { hub, client: &client, name, repo: Repo::new(&hub.settings.cache, name), commit };
    job.bring(&wanted)
}

/// The files of a split, from the repository itself or, where that holds none of this form, from the hub's conversion of it.
pub(crate) fn data(hub: &Hub, name: &DataName, usual: &[&str], watch: Watch<'_>) -> Result<Rows> {
    let client = begin(hub, &name.repo, watch)?;
    let repo = Repo::new(&hub.settings.cache, &name.repo);
    for at in crate::revisions(name) {
        let looked_up = look_up(&client, &at);
        let (commit, tree) = match looked_up {
            Err(Error::Asked { .. }) if name.repo.revision.is_none() && at.revision() != name.repo.revision() => break,
            it => it?,
        };
        repo.make()?;
        repo.set_tree(&commit, &tree)?;
        let all = splits(tree.paths());
        if all.is_empty() {
            // So that the next time is told here.
            repo.set_ref(at.revision(), &commit)?;
            continue;
        }
        let split = pick(&all, name, usual).map_err(|it| Error::asked(name.repo.to_string(), it))?;
        let wanted: Vec<&Entry> = tree.0.iter().filter(|it| split.paths.contains(&it.path)).collect();
        let pulled = Job { hub, client: &client, name: &at, repo, commit }.bring(&wanted)?;
        let files = split.paths.iter().map(|it| pulled.folder.join(it)).collect();
        return Ok(Rows {
            files,
            config: split.config,
            split: split.split,
            commit: pulled.commit,
            fetched: pulled.fetched,
        });
    }
    Err(Error::asked(
        name.repo.to_string(),
        "holds no parquet files, and the hub has not converted it; fetch its files and name them, or convert them with the library datasets (to_parquet)",
    ))
}

fn begin<'a>(hub: &'a Hub, name: &Name, watch: Watch<'a>) -> Result<Client<'a>> {
    watch(Event::Asks { name: &name.to_string(), endpoint: &hub.settings.endpoint });
    Client::new(&hub.settings, watch)
}

fn look_up(client: &Client<'_>, name: &Name) -> Result<(String, Tree)> {
    let commit = if is_commit(name.revision()) { name.revision().to_owned() } else { api::commit(client, name)? };
    let tree = api::tree(client, name, &commit)?;
    Ok((commit, tree))
}

/// A repository that holds nothing to be used is told apart from one that is not there.
fn refuse_useless(name: &Name, used: Use, wanted: &[&str], all: &[&str]) -> Result<()> {
    let has = |path: &str| wanted.contains(&path);
    let message = match used {
        Use::Model | Use::Any if has("config.json") => return Ok(()),
        Use::Adapter | Use::Any if has("adapter_config.json") => return Ok(()),
        Use::Model if all.contains(&"adapter_config.json") => {
            "is an adapter: pass it with --adapter, and its base with --model".to_owned()
        }
        Use::Adapter if all.contains(&"config.json") => "is a model and no adapter: pass it with --model".to_owned(),
        _ if all.iter().any(|it| it.ends_with(".gguf")) => {
            "holds GGUF files, which are not read yet; take the repository with the original weights".to_owned()
        }
        _ => {
            let some: Vec<&str> = all.iter().copied().take(5).collect();
            let wanted = if used == Use::Adapter { "adapter_config.json" } else { "config.json" };
            format!(
                "holds no {wanted}, so it is no model in Hugging Face's layout; it holds {} files: {}",
                all.len(),
                some.join(", ")
            )
        }
    };
    Err(Error::asked(name.to_string(), message))
}

/// The files of one commit on their way.
struct Job<'a> {
    hub: &'a Hub,
    client: &'a Client<'a>,
    name: &'a Name,
    repo: Repo,
    commit: String,
}

impl Job<'_> {
    /// Brings the files, and lets them be found when all are there: those by which a folder is taken for a model come last, and the
    /// name of the revision after them.
    fn bring(&mut self, wanted: &[&Entry]) -> Result<Pulled> {
        self.repo.make()?;
        let missing: Vec<&Entry> = wanted.iter().copied().filter(|it| !self.repo.holds(it)).collect();
        let bytes: u64 = missing.iter().map(|it| it.size).sum();
        if !missing.is_empty() {
            let piece = self.hub.settings.piece;
            let kept: u64 = missing.iter().map(|it| Part::kept(&self.repo.blob(it.etag()), it.size, piece)).sum();
            self.require_space(bytes - kept)?;
            let (name, files) = (self.name.to_string(), missing.len());
            (self.client.watch)(Event::Fetches { name: &name, files, bytes, kept });
            self.fetch(&missing)?;
        }
        let decides = |it: &Entry| ["config.json", "adapter_config.json"].contains(&it.path.as_str());
        for entry in wanted.iter().filter(|it| !decides(it)).chain(wanted.iter().filter(|it| decides(it))) {
            self.repo.point(&self.commit, &entry.path, entry.etag())?;
        }
        self.repo.set_ref(self.name.revision(), &self.commit)?;
        (self.client.watch)(Event::Done);
        Ok(Pulled { folder: self.repo.snapshot(&self.commit), commit: self.commit.clone(), fetched: bytes })
    }

    fn require_space(&self, needed: u64) -> Result<()> {
        let cache = &self.hub.settings.cache;
        match space::free(cache) {
            Some(free) if free < needed.saturating_add(SPARE) => Err(Error::asked(
                self.name.to_string(),
                format!(
                    "{} are to come, and the disk of {} has {} left; make room, or move the cache with HF_HOME",
                    gib(needed),
                    cache.display(),
                    gib(free)
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Small files several at a time, large ones one by one in several pieces at a time.
    fn fetch(&self, missing: &[&Entry]) -> Result<()> {
        let (small, large): (Vec<&Entry>, Vec<&Entry>) =
            missing.iter().partition(|it| it.size <= self.hub.settings.piece);
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        thread::scope(|scope| {
            for _ in 0..self.hub.settings.connections.min(small.len()) {
                scope.spawn(|| {
                    while let Some(entry) = small.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = self.file(entry) {
                            self.client.stopped.store(true, Ordering::Relaxed);
                            failed.lock().expect("nothing panics while it holds the error").get_or_insert(error);
                            break;
                        }
                    }
                });
            }
        });
        match failed.into_inner().expect("nothing panics while it holds the error") {
            Some(error) => Err(error),
            None => large.iter().try_for_each(|it| self.file(it)),
        }
    }

    fn file(&self, entry: &Entry) -> Result<()> {
        let url = api::file(self.client, self.name, &self.commit, &entry.path)?;
        let (client, settings, name, repo) = (self.client, &self.hub.settings, self.name, &self.repo);
        Fetch { client, settings, name, repo, entry, url, led_to: Mutex::new(None) }.run()
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}
