//! The cache as huggingface_hub lays it out, so that what either fetches is there for the other.
//!
//! ```text
//! CACHE/models--ORG--NAME/blobs/ETAG                      a file's bytes; its git hash, or its SHA-256 if it is a large one
//!                         snapshots/COMMIT/config.json -> ../../blobs/ETAG
//!                         refs/main                       the commit that a branch or tag was at
//!                         trees/COMMIT.json               what there is at a commit, here or not
//! CACHE/datasets--ORG--SET/...
//! CACHE/.locks/models--ORG--NAME/ETAG.lock
//! ```

use crate::{
    Error, Name, Result,
    name::{Kind, is_id},
    tree::Tree,
};
#[cfg(feature = "network")]
use crate::{
    lasting::{make_folder, rename, sync_folder},
    tree::Entry,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
#[cfg(feature = "network")]
use std::{
    io::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What Halfbyte writes into a part of the file that it is fetching, and which pieces it has. Both end as huggingface_hub's own do, so
/// that its tools know them for what they are; another name keeps its versions that append to such files from these.
#[cfg(feature = "network")]
pub(crate) const PART: &str = ".halfbyte.incomplete";
#[cfg(feature = "network")]
pub(crate) const PIECES: &str = ".pieces.incomplete";

/// A repository's folder in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Repo {
    pub(crate) folder: PathBuf,
    #[cfg(feature = "network")]
    pub(crate) locks: PathBuf,
}

impl Repo {
    pub(crate) fn new(cache: &Path, name: &Name) -> Repo {
        let folder = format!("{}--{}", name.kind.plural(), name.id.replace('/', "--"));
        Repo {
            #[cfg(feature = "network")]
            locks: cache.join(".locks").join(&folder),
            folder: cache.join(folder),
        }
    }

    /// The commit of a revision, as far as it is known here.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|it| is_commit(it))
    }

    /// The folder of a commit.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where the bytes of a file are, or will be.
    #[cfg(feature = "network")]
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// What there is at a commit, if it was written down.
    pub(crate) fn tree(&self, commit: &str) -> Option<Tree> {
        Tree::parse_cached(&fs::read(self.folder.join("trees").join(format!("{commit}.json"))).ok()?)
    }
}

#[cfg(feature = "network")]
impl Repo {
    /// Whether a file is there as a whole: a loss of power, or another program, may have left less of it.
    pub(crate) fn holds(&self, entry: &Entry) -> bool {
        fs::metadata(self.blob(entry.etag())).is_ok_and(|it| it.is_file() && it.len() == entry.size)
    }

    /// Makes the folders, and the mark by which programs that make backups know a cache.
    pub(crate) fn make(&self) -> Result<()> {
        for folder in [&self.folder.join("blobs"), &self.locks] {
            make_folder(folder)?;
        }
        let tag = self.folder.with_file_name("CACHEDIR.TAG");
        if !tag.exists() {
            // Nothing depends on it.
            let _ = write_whole(
                &tag,
                b"Signature: 8a477f597d28d172789f06886806bc55\n# This folder holds files that can be fetched again.\n",
            );
        }
        for folder in ["refs", "trees", "snapshots"] {
            sweep(&self.folder.join(folder));
        }
        sweep_journals(&self.folder.join("blobs"));
        Ok(())
    }

    /// Notes at which commit a branch or tag was; of a commit there is nothing to note.
    pub(crate) fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        write_whole(&self.folder.join("refs").join(revision), commit.as_bytes())
    }

    /// Writes down what there is at a commit.
    pub(crate) fn set_tree(&self, commit: &str, tree: &Tree) -> Result<()> {
        write_whole(&self.folder.join("trees").join(format!("{commit}.json")), tree.to_cached().as_bytes())
    }

    /// Lets a file of a commit be found: a link to its bytes, by a path that stays true when the cache is moved.
    pub(crate) fn point(&self, commit: &str, path: &str, etag: &str) -> Result<()> {
        let place = self.snapshot(commit).join(path);
        let parent = place.parent().expect("a file of a snapshot lies in a folder");
        make_folder(parent)?;
        let blob = self.blob(etag);
        if same_file(&place, &blob) {
            return Ok(());
        }
        let up = "../".repeat(2 + path.matches('/').count());
        let target = format!("{up}blobs/{etag}");
        if cfg!(unix) && link(&target, &place, &blob).is_ok() {
            return sync_folder(parent).map_err(Error::io(parent));
        }
        let draft = draft(&place);
        let done = link(&target, &draft, &blob).and_then(|()| rename(&draft, &place));
        done.map_err(Error::io(&place))
    }
}

#[cfg(feature = "network")]
fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(all(unix, feature = "network"))]
fn link(target: &str, place: &Path, _: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, place)
}

/// Where links need a privilege the snapshot gets the file itself, as huggingface_hub does it.
#[cfg(all(not(unix), feature = "network"))]
fn link(_: &str, place: &Path, blob: &Path) -> std::io::Result<()> {
    fs::copy(blob, place).map(|_| ())
}

/// A name beside a place, of which no other thread or process thinks: what takes the place appears whole, and what was there stays
/// until then, whoever else writes it.
#[cfg(feature = "network")]
fn draft(place: &Path) -> PathBuf {
    static DRAFTS: AtomicU64 = AtomicU64::new(0);
    let mut name = place.file_name().expect("a file of the cache has a name").to_owned();
    name.push(format!(".{}-{}.tmp", std::process::id(), DRAFTS.fetch_add(1, Ordering::Relaxed)));
    place.with_file_name(name)
}

/// A small file, which after a loss of power has the old contents or the new, too.
#[cfg(feature = "network")]
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().expect("a file of the cache lies in a folder");
    make_folder(parent)?;
    let draft = draft(path);
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        rename(&draft, path)
    };
    write().map_err(|error| {
        // Where it cannot be removed either, the next pull sweeps it.
        let _ = fs::remove_file(&draft);
        Error::io(path)(error)
    })
}

/// After this long nobody is writing a draft any more.
#[cfg(feature = "network")]
const STALE: Duration = Duration::from_secs(600);

/// Removes drafts that killed processes left in a folder and below. Whose they are is not known, so only age tells.
#[cfg(feature = "network")]
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(found) = entry.metadata() else { continue };
        if found.is_dir() {
            sweep(&entry.path());
        } else if is_draft(&entry.file_name().to_string_lossy())
            && found.modified().is_ok_and(|it| it.elapsed().is_ok_and(|age| age > STALE))
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes the notes of what came of files that are whole since: a process was killed when it had given the file its name. Who is
/// fetching one has a part of it beside the notes.
#[cfg(feature = "network")]
fn sweep_journals(blobs: &Path) {
    for entry in fs::read_dir(blobs).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(etag) = name.strip_suffix(PIECES)
            && blobs.join(etag).is_file()
            && !blobs.join(format!("{etag}{PART}")).exists()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether a name is one that [`draft`] makes.
#[cfg(feature = "network")]
fn is_draft(name: &str) -> bool {
    let numbers = name.strip_suffix(".tmp").and_then(|it| it.rsplit_once('.')).and_then(|it| it.1.split_once('-'));
    let is_number = |it: &str| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit());
    numbers.is_some_and(|(process, count)| is_number(process) && is_number(count))
}

pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

pub(crate) fn is_hex(text: &str) -> bool {
    text.bytes().all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it))
}

/// A repository in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// What it is.
    pub kind: Kind,
    /// `ORG/NAME`, or `NAME` alone of an old one.
    pub id: String,
    /// Its revisions, those of branches first.
    pub revisions: Vec<Revision>,
    /// Of all its files, those that are not whole yet among them.
    pub bytes: u64,
}

/// A commit in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Its hash.
    pub commit: String,
    /// The branches and tags that were at it.
    pub refs: Vec<String>,
    /// Its folder.
    pub folder: PathBuf,
    /// Of its files, which it may share with other commits.
    pub bytes: u64,
}

/// All repositories of models and data sets in a cache, by name. One that does not exist is empty.
///
/// # Errors
/// A folder that cannot be read.
pub fn list(cache: &Path) -> Result<Vec<Cached>> {
    let mut found = Vec::new();
    for folder in entries(cache)? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kind = [Kind::Model, Kind::DataSet].into_iter().find(|it| name.starts_with(&format!("{}--", it.plural())));
        let Some(kind) = kind.filter(|_| folder.is_dir()) else { continue };
        let id = name[kind.plural().len() + 2..].replacen("--", "/", 1);
        if !is_id(&id) && !is_id(&format!("org/{id}")) {
            continue;
        }
        let refs = refs(&folder)?;
        let mut revisions = Vec::new();
        for snapshot in entries(&folder.join("snapshots"))? {
            let commit = snapshot.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let at = refs.iter().filter(|it| it.1 == commit).map(|it| it.0.clone()).collect();
            let bytes = bytes(&files(&snapshot)?);
            revisions.push(Revision { commit, refs: at, folder: snapshot, bytes });
        }
        revisions.sort_by(|a, b| (a.refs.is_empty(), &a.refs, &a.commit).cmp(&(b.refs.is_empty(), &b.refs, &b.commit)));
        let bytes = bytes(&files(&folder)?);
        found.push(Cached { kind, id, revisions, bytes });
    }
    found.sort_by(|a, b| (a.kind, &a.id).cmp(&(b.kind, &b.id)));
    Ok(found)
}

/// The branches and tags that are known, each with its commit.
fn refs(folder: &Path) -> Result<Vec<(String, String)>> {
    let root = folder.join("refs");
    let mut found = Vec::new();
    for path in files(&root)? {
        let name = path.strip_prefix(&root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        found.extend(fs::read_to_string(&path).ok().map(|it| (name, it.trim().to_owned())));
    }
    Ok(found)
}

/// The files below a folder, as they are reached.
pub(crate) fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        for path in entries(&folder)? {
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    Ok(found)
}

/// The bytes of files, each counted once however many links lead to it.
fn bytes(files: &[PathBuf]) -> u64 {
    let whole: BTreeSet<PathBuf> = files.iter().filter_map(|it| it.canonicalize().ok()).collect();
    whole.iter().filter_map(|it| fs::metadata(it).ok()).map(|it| it.len()).sum()
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let found = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(Error::io(folder))?,
    };
    let paths = found.map(|it| it.map(|it| it.path())).collect::<std::io::Result<Vec<_>>>();
    let mut paths = paths.map_err(Error::io(folder))?;
    paths.sort();
    Ok(paths)
}

#[cfg(all(test, feature = "network"))]
mod tests {
    use super::*;
    use std::sync::Barrier;

    /// Threads of one process are as little in each other's way as processes are, and nobody sees a file go that was there.
    #[test]
    fn many_write_the_same_small_files_and_links_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let repo = Repo::new(dir.path(), &Name { kind: Kind::Model, id: "org/tiny".into(), revision: None });
        repo.make().unwrap();
        fs::write(repo.blob("etag"), b"bytes").unwrap();
        let start = Barrier::new(4);
        for round in 0..100 {
            let (revision, path) = (format!("branch-{round}"), format!("{round}.json"));
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        start.wait();
                        repo.set_ref(&revision, commit).unwrap();
                        assert_eq!(repo.commit(&revision).unwrap(), commit);
                        repo.point(commit, &path, "etag").unwrap();
                        assert_eq!(fs::read(repo.snapshot(commit).join(&path)).unwrap(), b"bytes");
                    });
                }
            });
        }
        let drafts = files(&repo.folder).unwrap().into_iter().filter(|it| it.to_string_lossy().ends_with(".tmp"));
        assert_eq!(drafts.count(), 0);
    }

    #[test]
    fn drafts_that_nobody_writes_any_more_go() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("COMMIT")).unwrap();
        let old = std::time::SystemTime::now() - 2 * STALE;
        for name in ["main.12-0.tmp", "COMMIT/config.json.7-31.tmp", "main", "a.tmp", "b.x-1.tmp", "12-0.tmp"] {
            let file = fs::File::create(dir.path().join(name)).unwrap();
            file.set_modified(old).unwrap();
        }
        let young = draft(&dir.path().join("main"));
        fs::write(&young, "").unwrap();
        sweep(dir.path());
        let mut left = files(dir.path()).unwrap();
        left.sort();
        let mut expected: Vec<PathBuf> =
            ["12-0.tmp", "a.tmp", "b.x-1.tmp", "main"].map(|it| dir.path().join(it)).into();
        expected.push(young);
        expected.sort();
        assert_eq!(left, expected);
    }

    #[test]
    fn notes_about_a_file_that_is_whole_go() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a", "a.pieces", "b.pieces", "c", "c.pieces", "c.part"];
        let names = names.map(|it| it.replace(".pieces", PIECES).replace(".part", PART));
        names.iter().for_each(|it| fs::write(dir.path().join(it), "").unwrap());
        sweep_journals(dir.path());
        let left = names.each_ref().map(|it| dir.path().join(it).exists());
        assert_eq!(left, [true, false, true, true, true, true]);
    }
}
