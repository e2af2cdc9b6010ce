//! A command that is watched at every system call by which it changes files or reads them, and disturbed at one of them: killed,
//! refused, or served in part; and what a loss of power would leave of what it wrote.

mod power;
mod ptrace;

use libc::{c_int, c_long, pid_t, user_regs_struct};
use power::Unsynced;
use ptrace::Stop;
use std::{
    fs::{self, File},
    io::{Read, Seek},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What happens at the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// The process is killed before it.
    Kill,
    /// Half of the bytes are read or written.
    Half,
    /// Half of the bytes are written, and then the process is killed.
    HalfAndKill,
    /// A signal comes before anything was read, written or synced: it is to be tried again. Other calls are made.
    Interrupted,
    /// It fails with this number.
    Error(i32),
}

/// Which calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Those that change files or what folders hold, or make it last.
    Changing,
    /// Those that read from files.
    Reading,
}

/// How a watched command ended.
#[derive(Debug)]
pub struct Watched {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it said.
    pub stderr: String,
    /// The calls that were counted.
    pub calls: usize,
    /// What the disturbed call was, if it came to it.
    pub disturbed: Option<String>,
    unsynced: Unsynced,
}

impl Watched {
    /// Takes from the folder what was not synced when the command ended, as if the power had gone then; with `names` also the
    /// renames that no sync of the folder has made to last.
    pub fn lose_power(&mut self, names: bool) {
        self.unsynced.lose(names);
    }
}

/// Runs the command to its end and disturbs it at the call of the given number, counted from 1, among those that concern a file
/// below `folder`. Only calls of one kind are counted.
pub fn watch(command: &mut Command, folder: &Path, calls: Calls, at: Option<(usize, Disturbance)>) -> Watched {
    let mut said = tempfile::tempfile().expect("a temporary file");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone().expect("a second handle"));
    let numbers: Vec<c_long> = [CONTENTS, NAMES, READS].concat();
    ptrace::watched(command, &numbers);
    let process = command.spawn().expect("halfbyte starts").id() as pid_t;
    let mut watcher = Watcher {
        process,
        // As the system writes it in what it says of open files.
        folder: folder.canonicalize().expect("a folder"),
        calls,
        at,
        watched: Watched {
            code: None,
            stderr: String::new(),
            calls: 0,
            disturbed: None,
            unsynced: Unsynced::new(folder),
        },
        to_be_killed: false,
    };
    let mut is_new = true;
    while let Some((thread, stop)) = ptrace::wait() {
        if std::mem::take(&mut is_new) {
            ptrace::follow(process);
        }
        watcher.stopped(thread, &stop);
    }
    let mut watched = watcher.watched;
    let mut bytes = Vec::new();
    said.rewind().expect("a file");
    said.read_to_end(&mut bytes).expect("a file");
    watched.stderr = String::from_utf8_lossy(&bytes).into_owned();
    assert!(!watched.stderr.contains("panicked"), "a panic: {command:?}\n{}", watched.stderr);
    watched
}

/// Calls on an open file that change it or make it last.
const CONTENTS: &[c_long] = &[
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_copy_file_range,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
];
/// Calls that change what folders hold.
const NAMES: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
];
const READS: &[c_long] = &[libc::SYS_read, libc::SYS_pread64, libc::SYS_readv];

struct Watcher {
    process: pid_t,
    folder: PathBuf,
    calls: Calls,
    at: Option<(usize, Disturbance)>,
    watched: Watched,
    to_be_killed: bool,
}

impl Watcher {
    fn stopped(&mut self, thread: pid_t, stop: &Stop) {
        match stop {
            Stop::Ended(how) if thread == self.process => self.watched.code = how.ok(),
            Stop::Ended(_) => {}
            Stop::Signal(it) => ptrace::go_on(thread, *it, false),
            Stop::Event => ptrace::go_on(thread, 0, false),
            Stop::Returned if self.to_be_killed => ptrace::kill(self.process),
            Stop::Returned => ptrace::go_on(thread, 0, false),
            Stop::Call => self.call(thread),
        }
    }

    fn call(&mut self, thread: pid_t) {
        // A thread that is gone since has nothing to go on with.
        let Some(registers) = ptrace::registers(thread) else { return };
        let call = Call::of(thread, &registers);
        if !self.concerns_us(&call) {
            self.watched.unsynced.see(&call);
            return ptrace::go_on(thread, 0, false);
        }
        self.watched.calls += 1;
        match self.at {
            Some((number, disturbance)) if number == self.watched.calls => {
                self.watched.disturbed = Some(call.to_string());
                self.disturb(thread, registers, &call, disturbance);
            }
            _ => {
                self.watched.unsynced.see(&call);
                ptrace::go_on(thread, 0, false);
            }
        }
    }

    fn concerns_us(&self, call: &Call) -> bool {
        let is_read = READS.contains(&call.number);
        is_read == (self.calls == Calls::Reading)
            && match &call.file {
                Some(it) => it.starts_with(&self.folder),
                None => NAMES.contains(&call.number) && call.paths.iter().any(|it| it.starts_with(&self.folder)),
            }
    }

    fn disturb(&mut self, thread: pid_t, mut registers: user_regs_struct, call: &Call, disturbance: Disturbance) {
        match disturbance {
            Disturbance::Kill => return ptrace::kill(self.process),
            Disturbance::Error(number) => refuse(thread, registers, number),
            Disturbance::Interrupted if call.handle.is_some() => refuse(thread, registers, libc::EINTR),
            Disturbance::Interrupted => self.watched.unsynced.see(call),
            Disturbance::Half | Disturbance::HalfAndKill => {
                self.watched.unsynced.see(call);
                if [libc::SYS_write, libc::SYS_pwrite64, libc::SYS_read, libc::SYS_pread64].contains(&call.number) {
                    registers.rdx = registers.rdx.div_ceil(2);
                    ptrace::set_registers(thread, &registers);
                }
                self.to_be_killed = disturbance == Disturbance::HalfAndKill;
            }
        }
        ptrace::go_on(thread, 0, self.to_be_killed);
    }
}

/// The call is not made, and fails with this number.
fn refuse(thread: pid_t, mut registers: user_regs_struct, number: i32) {
    // A call of no number is not made, and what stands in the other register is its result.
    registers.orig_rax = u64::MAX;
    registers.rax = (-i64::from(number)) as u64;
    ptrace::set_registers(thread, &registers);
}

/// A system call that is about to be made.
#[derive(Debug)]
struct Call {
    number: c_long,
    /// What the open file is called that it works on.
    file: Option<PathBuf>,
    /// The open file itself, by a name under which it can be looked at.
    handle: Option<PathBuf>,
    /// The paths that it names.
    paths: Vec<PathBuf>,
    /// Flags of what opens or renames.
    flags: c_int,
}

impl Call {
    fn of(thread: pid_t, registers: &user_regs_struct) -> Call {
        let number = registers.orig_rax as c_long;
        let text = |address: u64| text(thread, address);
        let [a, b, c, d, e] = [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8];
        let (paths, flags) = match number {
            libc::SYS_open => (vec![text(a)], b),
            libc::SYS_openat => (vec![text(b)], c),
            libc::SYS_rename | libc::SYS_link => (vec![text(a), text(b)], 0),
            libc::SYS_renameat | libc::SYS_linkat => (vec![text(b), text(d)], 0),
            libc::SYS_renameat2 => (vec![text(b), text(d)], e),
            libc::SYS_symlink => (vec![text(b)], 0),
            libc::SYS_unlinkat => (vec![below(thread, a, text(b))], 0),
            libc::SYS_unlink | libc::SYS_mkdir | libc::SYS_rmdir => (vec![text(a)], 0),
            _ => (Vec::new(), 0),
        };
        let flags = flags as c_int;
        let opens = matches!(number, libc::SYS_open | libc::SYS_openat);
        // What only looks changes nothing.
        let paths = if opens && flags & (libc::O_CREAT | libc::O_TRUNC) == 0 { Vec::new() } else { paths };
        let handle = (!NAMES.contains(&number)).then(|| PathBuf::from(format!("/proc/{thread}/fd/{a}")));
        let file = handle.as_ref().and_then(|it| fs::read_link(it).ok());
        Call { number, file, handle, paths, flags }
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "system call {} on {:?}", self.number, self.paths.iter().chain(&self.file).collect::<Vec<_>>())
    }
}

/// A path in the memory of the process.
fn text(thread: pid_t, address: u64) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = vec![0; libc::PATH_MAX as usize];
    let read = File::open(format!("/proc/{thread}/mem")).and_then(|it| it.read_at(&mut bytes, address)).unwrap_or(0);
    bytes.truncate(bytes[..read].iter().position(|it| *it == 0).unwrap_or(read));
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// A path that begins at an open folder.
fn below(thread: pid_t, folder: u64, path: PathBuf) -> PathBuf {
    let folder = fs::read_link(format!("/proc/{thread}/fd/{}", folder as c_int)).unwrap_or_default();
    folder.join(path)
}
