//! A hub on the loopback interface, with what goes wrong with real ones: so that no test needs a network.
//!
//! It speaks as much of Hugging Face's protocol as clients use to fetch files: revisions, listings, files, and a second port that plays
//! the storage which large files are redirected to.

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

/// What happens to one request for a file's bytes, in place of what should.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// One bit is another.
    Wrong,
    /// Nothing comes for this long, and then the connection ends.
    Silent(Duration),
    /// An answer with this status, and `Retry-After` if it is given.
    Status(u16, Option<u32>),
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Whether it came to the port of the storage.
    pub storage: bool,
    /// The address, with its query.
    pub path: String,
    /// Whether only the headers were asked for.
    pub head: bool,
    /// The bytes that were asked for.
    pub range: Option<String>,
    /// The header that says who asks.
    pub authorization: Option<String>,
}

#[derive(Default)]
struct State {
    /// By `ORG/NAME` or `datasets/ORG/SET`.
    repos: BTreeMap<String, Repo>,
    faults: VecDeque<Fault>,
    seen: Vec<Seen>,
    token: Option<String>,
    ignores_ranges: bool,
    pause: Duration,
    /// Repositories by the names that they had before.
    moved: BTreeMap<String, String>,
    storage: String,
    home: String,
}

#[derive(Clone, Default)]
struct Repo {
    /// A commit by revision, files by commit.
    refs: BTreeMap<String, String>,
    commits: BTreeMap<String, BTreeMap<String, Arc<Stored>>>,
    gated: bool,
    /// Files that are listed and not there.
    claimed: Vec<(String, u64)>,
}

/// A file and its hashes.
struct Stored {
    bytes: Vec<u8>,
    git_hash: String,
    sha256: String,
}

/// A hub that lives as long as its process.
#[derive(Clone)]
pub struct LoopbackHub {
    state: Arc<Mutex<State>>,
}

/// Files of this length and more are kept by the storage.
const LARGE: usize = 1 << 10;

impl Default for LoopbackHub {
    fn default() -> Self {
        LoopbackHub::new()
    }
}

impl LoopbackHub {
    /// An empty one.
    pub fn new() -> LoopbackHub {
        let it = LoopbackHub { state: Arc::default() };
        let home = it.listen(false);
        let storage = it.listen(true);
        (it.lock().home, it.lock().storage) = (home, storage);
        it
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        self.lock().home.clone()
    }

    /// Adds files at a revision, as a new commit, and gives the commit.
    pub fn add(&self, id: &str, revision: &str, files: &[(&str, &[u8])]) -> String {
        let stored = |it: &[u8]| Stored { bytes: it.to_vec(), git_hash: git_hash(it), sha256: sha256(it) };
        let files: BTreeMap<String, Arc<Stored>> =
            files.iter().map(|(path, it)| ((*path).to_owned(), Arc::new(stored(it)))).collect();
        let all: String = files.iter().map(|(path, it)| path.clone() + &it.git_hash).collect();
        let commit = git_hash(format!("{id}{revision}{all}").as_bytes());
        let mut state = self.lock();
        let repo = state.repos.entry(id.to_owned()).or_default();
        repo.refs.insert(revision.to_owned(), commit.clone());
        repo.commits.insert(commit.clone(), files);
        commit
    }

    /// Adds the files at the top of a folder at `main`.
    pub fn add_folder(&self, id: &str, folder: &Path) -> String {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                let name = path.file_name().and_then(|it| it.to_str()).expect("a name of a file").to_owned();
                files.push((name, std::fs::read(&path).expect("a file")));
            }
        }
        let files: Vec<(&str, &[u8])> = files.iter().map(|it| (it.0.as_str(), it.1.as_slice())).collect();
        self.add(id, "main", &files)
    }

    /// What happens to the next requests for bytes, one after the other.
    pub fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults);
    }

    /// Whoever does not show this token sees nothing.
    pub fn require_token(&self, token: &str) {
        self.lock().token = Some(token.to_owned());
    }

    /// Nobody gets the files of a repository.
    pub fn gate(&self, id: &str) {
        self.lock().repos.get_mut(id).expect("a repository").gated = true;
    }

    /// What has a name now is redirected to from another, that it had before.
    pub fn moved(&self, from: &str, to: &str) {
        self.lock().moved.insert(from.to_owned(), to.to_owned());
    }

    /// Lists a file of so many bytes that is not there.
    pub fn claim(&self, id: &str, path: &str, bytes: u64) {
        self.lock().repos.get_mut(id).expect("a repository").claimed.push((path.to_owned(), bytes));
    }

    /// Ranges are not looked at from now on.
    pub fn ignore_ranges(&self) {
        self.lock().ignores_ranges = true;
    }

    /// A wait before each 16 KiB of a body.
    pub fn slow(&self, pause: Duration) {
        self.lock().pause = pause;
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    /// Forgets them.
    pub fn forget(&self) {
        self.lock().seen.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no request panics")
    }

    fn listen(&self, storage: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let hub = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = hub.clone();
                // A client that goes away ends its own thread.
                thread::spawn(move || hub.serve(stream, storage));
            }
        });
        format!("http://{address}")
    }

    fn serve(&self, stream: TcpStream, storage: bool) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut out = stream;
        loop {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).ok()? == 0 {
                    return None;
                }
                if line.trim().is_empty() {
                    break;
                }
                lines.push(line.trim().to_owned());
            }
            let (path, head) = (lines.first()?.split(' ').nth(1)?.to_owned(), lines[0].starts_with("HEAD "));
            let header = |name: &str| {
                let of = |it: &String| it.split_once(':').map(|it| (it.0.to_lowercase(), it.1.trim().to_owned()));
                lines.iter().filter_map(of).find(|it| it.0 == name).map(|it| it.1)
            };
            let seen = Seen { storage, path, head, range: header("range"), authorization: header("authorization") };
            self.lock().seen.push(seen.clone());
            let reply = if storage { self.bytes(&seen, None) } else { self.home(&seen) };
            self.send(&mut out, reply, head)?;
        }
    }

    /// An answer of the hub itself.
    fn home(&self, seen: &Seen) -> Reply {
        let (path, _) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (id, what, rest) = match parts[..] {
            ["api", kind, org, name, what, ref rest @ ..] => {
                let prefix = if kind == "datasets" { "datasets/" } else { "" };
                (format!("{prefix}{org}/{name}"), what, rest)
            }
            ["datasets", org, name, "resolve", ref rest @ ..] => (format!("datasets/{org}/{name}"), "resolve", rest),
            [org, name, "resolve", ref rest @ ..] => (format!("{org}/{name}"), "resolve", rest),
            _ => return Reply::refusal(404, "EntryNotFound", "no such page"),
        };
        let state = self.lock();
        if let Some(token) = &state.token {
            match &seen.authorization {
                None => return Reply::refusal(401, "RepoNotFound", "Invalid username or password."),
                Some(it) if *it != format!("Bearer {token}") => {
                    return Reply::refusal(401, "", "Invalid credentials in Authorization header");
                }
                Some(_) => {}
            }
        }
        if let Some(to) = state.moved.get(&id) {
            return Reply::redirect(seen.path.replacen(&id, to, 1));
        }
        let Some(repo) = state.repos.get(&id) else {
            return Reply::refusal(404, "RepoNotFound", "Repository not found");
        };
        let revision = rest.first().map(|it| it.replace("%2F", "/")).unwrap_or_default();
        let commit = repo.refs.get(&revision).cloned().unwrap_or(revision);
        let Some(files) = repo.commits.get(&commit) else {
            return Reply::refusal(404, "RevisionNotFound", "Invalid rev id");
        };
        match what {
            "revision" => Reply::json(&json!({ "id": id, "sha": commit })),
            "tree" if repo.gated => Reply::refusal(403, "GatedRepo", "Access to this model is restricted"),
            "tree" => {
                let claimed = repo.claimed.iter().map(|(path, size)| {
                    json!({ "type": "file", "path": path, "oid": git_hash(path.as_bytes()), "size": size })
                });
                Reply::json(&Value::Array(files.iter().map(|(path, it)| listed(path, it)).chain(claimed).collect()))
            }
            _ => {
                let path = rest[1..].join("/");
                let Some(file) = files.get(&path).cloned() else {
                    return Reply::refusal(404, "EntryNotFound", "Entry not found");
                };
                let to = format!("{}/{}?signature=secret", state.storage, file.sha256);
                drop(state);
                let large = file.bytes.len() >= LARGE;
                let etag = if large { &file.sha256 } else { &file.git_hash };
                let mut marks = vec![format!("X-Repo-Commit: {commit}"), format!("ETag: \"{etag}\"")];
                if large {
                    marks
                        .extend([format!("X-Linked-ETag: \"{etag}\""), format!("X-Linked-Size: {}", file.bytes.len())]);
                }
                let mut reply = if large { Reply::redirect(to) } else { self.bytes(seen, Some(file)) };
                reply.headers.extend(marks);
                reply
            }
        }
    }

    /// The bytes of a file, or of the one that the storage knows by the address.
    fn bytes(&self, seen: &Seen, known: Option<Arc<Stored>>) -> Reply {
        let mut state = self.lock();
        let fault = state.faults.pop_front().unwrap_or(Fault::None);
        if let Fault::Silent(time) = fault {
            drop(state);
            thread::sleep(time);
            return Reply { status: 200, cut: Some(0), ..Reply::default() };
        }
        if let Fault::Status(status, after) = fault {
            return Reply {
                status,
                headers: after.map(|it| format!("Retry-After: {it}")).into_iter().collect(),
                ..Reply::default()
            };
        }
        let files = || state.repos.values().flat_map(|it| it.commits.values()).flat_map(|it| it.values());
        let found = known.or_else(|| files().find(|it| seen.path.contains(&it.sha256)).cloned());
        let Some(file) = found else { return Reply::refusal(404, "", "no such file") };
        let bytes = &file.bytes;
        let range = seen.range.as_deref().filter(|_| !state.ignores_ranges).and_then(parse_range);
        let mut reply = Reply { status: 200, ..Reply::default() };
        if let Some((first, last)) = range {
            let last = last.min(bytes.len() - 1);
            reply.status = 206;
            reply.headers.push(format!("Content-Range: bytes {first}-{last}/{}", bytes.len()));
            reply.body = bytes[first..=last].to_vec();
        } else {
            reply.body = bytes.clone();
        }
        match fault {
            Fault::Wrong => reply.body[0] ^= 1,
            Fault::Cut(at) => reply.cut = Some(at),
            _ => {}
        }
        reply
    }

    fn send(&self, out: &mut TcpStream, reply: Reply, head: bool) -> Option<()> {
        let pause = self.lock().pause;
        let Reply { status, headers, body, cut } = reply;
        let headers: String = headers.iter().map(|it| format!("{it}\r\n")).collect();
        write!(out, "HTTP/1.1 {status} -\r\nContent-Length: {}\r\n{headers}\r\n", body.len()).ok()?;
        if head {
            return Some(());
        }
        for piece in body[..cut.unwrap_or(body.len()).min(body.len())].chunks(16 << 10) {
            thread::sleep(pause);
            out.write_all(piece).ok()?;
        }
        // Gone in the middle of it.
        if cut.is_some() { None } else { Some(()) }
    }
}

#[derive(Default)]
struct Reply {
    status: u16,
    headers: Vec<String>,
    body: Vec<u8>,
    cut: Option<usize>,
}

impl Reply {
    fn json(value: &Value) -> Reply {
        Reply { status: 200, body: value.to_string().into_bytes(), ..Reply::default() }
    }

    fn redirect(to: String) -> Reply {
        Reply { status: 302, headers: vec![format!("Location: {to}")], ..Reply::default() }
    }

    fn refusal(status: u16, code: &str, message: &str) -> Reply {
        let headers = vec![format!("X-Error-Code: {code}"), format!("X-Error-Message: {message}")];
        Reply { status, headers, body: json!({ "error": message }).to_string().into_bytes(), cut: None }
    }
}

fn listed(path: &str, file: &Stored) -> Value {
    let size = file.bytes.len();
    if size < LARGE {
        return json!({ "type": "file", "path": path, "oid": file.git_hash, "size": size });
    }
    // git has a pointer in its place.
    let lfs = json!({ "oid": file.sha256, "size": size, "pointerSize": 130 });
    json!({ "type": "file", "path": path, "oid": git_hash(path.as_bytes()), "size": size, "lfs": lfs })
}

/// `bytes=0-9`.
fn parse_range(text: &str) -> Option<(usize, usize)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

fn git_hash(bytes: &[u8]) -> String {
    hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()).as_ref())
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}
