//! One file from the hub into the cache: in pieces, several at a time, checked as they join up.

use crate::{
    Error, Event, Name, Result, Settings,
    cache::Repo,
    client::{Answer, Client, Trouble},
    digest::Digest,
    part::Part,
    tree::Entry,
};
use std::{
    collections::VecDeque,
    fs::{File, TryLockError},
    io::Read,
    sync::{Mutex, atomic::Ordering, mpsc},
    thread,
};
use ureq::http::{StatusCode, Uri};

/// Bytes taken from a connection at once.
const BUFFER: usize = 128 << 10;

pub(crate) struct Fetch<'a> {
    pub(crate) client: &'a Client<'a>,
    pub(crate) settings: &'a Settings,
    pub(crate) name: &'a Name,
    pub(crate) repo: &'a Repo,
    pub(crate) entry: &'a Entry,
    /// The hub's own address of the file.
    pub(crate) url: Uri,
    /// Where that led the last time: to ask there spares the hub a question for each piece.
    pub(crate) led_to: Mutex<Option<Uri>>,
}

/// What a request for a piece brought.
#[derive(PartialEq, Eq)]
enum Brought {
    Piece,
    /// Everything: the server knows no ranges.
    Whole,
}

impl Fetch<'_> {
    fn what(&self) -> String {
        format!("{}: {}", self.name, self.entry.path)
    }

    /// Brings the file, unless it is there, or another process brings it meanwhile.
    pub(crate) fn run(&self) -> Result<()> {
        let blob = self.repo.blob(self.entry.etag());
        let _lock = self.lock()?;
        if self.repo.holds(self.entry) {
            (self.client.watch)(Event::Came(self.entry.size));
            return Ok(());
        }
        for again in [false, true] {
            let part = Part::open(&blob, self.entry.size, self.settings.piece)?;
            let found = self.fill(&part)?;
            if found == self.entry.etag() {
                return part.finish(&blob);
            }
            part.discard();
            (self.client.watch)(Event::Lost(self.entry.size));
            if again {
                let kind = if self.entry.is_large() { "SHA-256" } else { "git hash" };
                return Err(Error::transfer(
                    self.what(),
                    format!(
                        "came twice with other bytes than the hub announces: their {kind} is {found} and should be {}. Nothing of it was kept; a proxy or a mirror on the way may change files",
                        self.entry.etag()
                    ),
                ));
            }
        }
        unreachable!("the second attempt ends either way")
    }

    /// The lock that huggingface_hub takes for this file, too. It is best effort: bytes are only ever put where they belong.
    fn lock(&self) -> Result<Option<File>> {
        let path = self.repo.locks.join(format!("{}.lock", self.entry.etag()));
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {
                (self.client.watch)(Event::WaitsForOther { file: &self.entry.path });
                file.lock().map_err(Error::io(&path))?;
                Ok(Some(file))
            }
            // A file system without locks.
            Err(TryLockError::Error(_)) => Ok(None),
        }
    }

    /// Brings the pieces that are missing, and gives the hash of the whole. It follows the pieces while they come.
    fn fill(&self, part: &Part) -> Result<String> {
        let mut missing: VecDeque<usize> = part.missing().into();
        if let Some(first) = missing.pop_front()
            && self.piece(part, first, true)? == Brought::Whole
        {
            missing.clear();
        }
        let threads = self.settings.connections.min(missing.len());
        let queue = Mutex::new(missing);
        let (sender, done) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..threads {
                let (queue, sender) = (&queue, sender.clone());
                scope.spawn(move || {
                    while let Some(piece) = next(queue) {
                        let brought = self.piece(part, piece, false);
                        let failed = brought.is_err();
                        if sender.send(brought).is_err() || failed {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let hash = self.hash(part, &done);
            if hash.is_err() {
                self.client.stopped.store(true, Ordering::Relaxed);
            }
            hash
        })
    }

    fn hash(&self, part: &Part, done: &mpsc::Receiver<Result<Brought>>) -> Result<String> {
        let mut digest = if self.entry.is_large() { Digest::sha256() } else { Digest::git(self.entry.size) };
        let mut buffer = vec![0; BUFFER];
        for piece in 0..part.pieces() {
            while !part.has(piece) {
                done.recv().map_err(|_| Error::transfer(self.what(), "was given up"))??;
            }
            let (mut at, end) = part.range(piece);
            while at < end {
                let n = (end - at).min(BUFFER as u64) as usize;
                part.read(at, &mut buffer[..n])?;
                digest.update(&buffer[..n]);
                at += n as u64;
            }
        }
        Ok(digest.hex())
    }

    /// Brings a piece, trying again from where it broke off. The first of a file may turn out to be all of it.
    fn piece(&self, part: &Part, piece: usize, is_first: bool) -> Result<Brought> {
        let (begin, end) = part.range(piece);
        let mut at = begin;
        let brought = self.client.patiently(&self.what(), self.name, || {
            let from = at;
            let answer = self.ask(at, end - 1).map_err(|it| (it, false))?;
            let size = self.entry.size;
            if answer.status == StatusCode::OK && (begin, end) != (0, size) {
                if !is_first {
                    return Err((Trouble::Way("the server sent the whole file for a part of it".into()), false));
                }
                return self.whole(part, answer).map(|it| it.map(|()| Brought::Whole));
            }
            if answer.status == StatusCode::OK {
                // A file of one piece needs no ranges, but begins anew.
                (self.client.watch)(Event::Lost(at - begin));
                at = begin;
            } else if !is_range(&answer, at, size) {
                return Err((Trouble::Way("the server sent another part than it was asked for".into()), false));
            }
            let copied = self.copy(part, answer, (&mut at, end));
            match copied {
                Ok(()) => Ok(Ok(Brought::Piece)),
                Err(Stop::Way(why)) => Err((Trouble::Way(why), at > from)),
                Err(Stop::Here(error)) => Ok(Err(error)),
            }
        })??;
        match brought {
            Brought::Piece => part.done(piece)?,
            Brought::Whole => (0..part.pieces()).try_for_each(|it| part.done(it))?,
        }
        Ok(brought)
    }

    /// Takes the whole file from a server that knows no ranges; what was there of it is lost.
    fn whole(&self, part: &Part, answer: Answer) -> std::result::Result<Result<()>, (Trouble, bool)> {
        let kept: u64 =
            (0..part.pieces()).filter(|it| part.has(*it)).map(|it| part.range(it)).map(|it| it.1 - it.0).sum();
        (self.client.watch)(Event::Lost(kept));
        if let Err(error) = part.restart() {
            return Ok(Err(error));
        }
        let mut at = 0;
        match self.copy(part, answer, (&mut at, self.entry.size)) {
            Ok(()) => Ok(Ok(())),
            Err(Stop::Here(error)) => Ok(Err(error)),
            Err(Stop::Way(why)) => {
                (self.client.watch)(Event::Lost(at));
                Err((Trouble::Way(why), false))
            }
        }
    }

    /// Writes what an answer holds, from `at` to `end`.
    fn copy(&self, part: &Part, answer: Answer, (at, end): (&mut u64, u64)) -> std::result::Result<(), Stop> {
        let mut reader = answer.body.into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; BUFFER];
        while *at < end {
            if self.client.stopped.load(Ordering::Relaxed) {
                return Err(Stop::Way("was given up".into()));
            }
            let n = reader.read(&mut buffer).map_err(|e| Stop::Way(format!("the connection broke off: {e}")))?;
            if n == 0 {
                return Err(Stop::Way(format!("the connection ended {} bytes too early", end - *at)));
            }
            let n = n.min((end - *at) as usize);
            part.write(*at, &buffer[..n]).map_err(Stop::Here)?;
            *at += n as u64;
            (self.client.watch)(Event::Came(n as u64));
        }
        // Read to its end, a connection serves again.
        let _ = reader.read(&mut buffer);
        Ok(())
    }

    /// Asks for some bytes where they were the last time, or at the hub.
    fn ask(&self, first: u64, last: u64) -> std::result::Result<Answer, Trouble> {
        let bytes = Some((first, last)).filter(|_| self.entry.size > 0);
        let known = self.led_to.lock().expect("nothing panics while it holds the address").clone();
        let answer = self.client.get(known.as_ref().unwrap_or(&self.url), bytes);
        let led_to = match &answer {
            Ok(answer) => Some(answer.from.clone()).filter(|it| *it != self.url),
            Err(_) => None,
        };
        *self.led_to.lock().expect("nothing panics while it holds the address") = led_to;
        match answer {
            // An address that was signed for some minutes; the hub gives another.
            Err(Trouble::Said(said)) if known.is_some() && said.status.is_client_error() && said.status != 429 => {
                self.client.get(&self.url, bytes)
            }
            answer => answer,
        }
    }
}

/// Why copying ended early.
enum Stop {
    /// On the way; another try may go on.
    Way(String),
    /// On this side.
    Here(Error),
}

fn next(queue: &Mutex<VecDeque<usize>>) -> Option<usize> {
    queue.lock().expect("nothing panics while it holds the queue").pop_front()
}

/// Whether an answer is the part of the file that begins at `first`.
fn is_range(answer: &Answer, first: u64, size: u64) -> bool {
    let Some((from, total)) = answer.header("content-range").and_then(|it| it.strip_prefix("bytes ")?.split_once('/'))
    else {
        return false;
    };
    let from = from.split_once('-').and_then(|it| it.0.parse::<u64>().ok());
    answer.status == StatusCode::PARTIAL_CONTENT && from == Some(first) && (total == "*" || total.parse() == Ok(size))
}
