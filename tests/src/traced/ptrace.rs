//! The few calls into the system that watching another process needs, each behind a safe function.
//!
//! A filter in the kernel stops the process at the system calls that are asked for and at no other, so that it computes at its
//! own speed. It sees calls that pass by libc, which an interposed library would not.

use libc::{c_int, c_long, pid_t, sock_filter, user_regs_struct};
use std::{io, mem, os::unix::process::CommandExt, process::Command, ptr};

/// Why a thread of the process stands still, or does no longer.
#[derive(Debug)]
pub(super) enum Stop {
    /// At a call of the filter's, before it is made.
    Call,
    /// At the end of a call that it was let go on to.
    Returned,
    /// To be told of a signal.
    Signal(c_int),
    /// For the watcher to see that there is a new thread or program.
    Event,
    /// The thread has ended, with an exit code or by a signal.
    Ended(Result<c_int, c_int>),
}

/// Has the command ask for being watched and for a stop at these calls, when it is started by the thread that will watch it.
pub(super) fn watched(command: &mut Command, calls: &[c_long]) {
    let filter = filter(calls);
    let begin = move || {
        // SAFETY: three system calls with numbers and with a filter that lives as long as this closure.
        let failed = unsafe {
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec it makes system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(begin) };
}

/// A program for the kernel: stop at these calls, let all others pass.
fn filter(calls: &[c_long]) -> Vec<sock_filter> {
    let of = |code: u32, k: u32, jt: u8| sock_filter { code: code as u16, jt, jf: 0, k };
    // The number of the call lies first in what the filter is shown.
    let mut program = vec![of(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (i, call) in calls.iter().enumerate() {
        let to_last = u8::try_from(calls.len() - i).expect("fewer than 256 calls");
        program.push(of(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *call as u32, to_last));
    }
    program.push(of(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0));
    program.push(of(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_TRACE, 0));
    program
}

/// Has the stops reported, those of threads to come too, and the process end if this one does.
pub(super) fn follow(process: pid_t) {
    let options = libc::PTRACE_O_TRACESECCOMP
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_EXITKILL;
    // SAFETY: the process stands still and is this thread's to watch; the call takes numbers.
    let failed = unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, process, 0, options) };
    assert_eq!(failed, 0, "the process can be watched: {}", io::Error::last_os_error());
}

/// Waits for any thread that this thread watches; none when all have ended.
pub(super) fn wait() -> Option<(pid_t, Stop)> {
    let mut status = 0;
    let thread = loop {
        // SAFETY: the status is a number that lives here.
        let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        if thread > 0 {
            break thread;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ECHILD) => return None,
            Some(libc::EINTR) => {}
            _ => panic!("what is watched can be waited for: {error}"),
        }
    };
    Some((thread, stop(status)))
}

fn stop(status: c_int) -> Stop {
    if libc::WIFEXITED(status) {
        return Stop::Ended(Ok(libc::WEXITSTATUS(status)));
    }
    if libc::WIFSIGNALED(status) {
        return Stop::Ended(Err(libc::WTERMSIG(status)));
    }
    let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
    match (signal, event) {
        (libc::SIGTRAP, libc::PTRACE_EVENT_SECCOMP) => Stop::Call,
        (it, 0) if it == libc::SIGTRAP | 0x80 => Stop::Returned,
        // With the first a program begins, with the second a thread.
        (libc::SIGTRAP | libc::SIGSTOP, _) => Stop::Event,
        (it, _) => Stop::Signal(it),
    }
}

/// The registers of a thread that stands still.
pub(super) fn registers(thread: pid_t) -> Option<user_regs_struct> {
    // SAFETY: all bits zero are registers too.
    let mut all: user_regs_struct = unsafe { mem::zeroed() };
    // SAFETY: the system fills what lives here; of a thread that is gone it says so.
    let failed = unsafe { libc::ptrace(libc::PTRACE_GETREGS, thread, ptr::null_mut::<()>(), ptr::from_mut(&mut all)) };
    (failed == 0).then_some(all)
}

/// Changes the registers of a thread that stands still.
pub(super) fn set_registers(thread: pid_t, all: &user_regs_struct) {
    // SAFETY: the system reads what lives here; of a thread that is gone it says so, and there is nothing to change then.
    unsafe { libc::ptrace(libc::PTRACE_SETREGS, thread, ptr::null_mut::<()>(), ptr::from_ref(all)) };
}

/// Lets a thread go on with a signal, or none for 0, and if asked only to the end of the call that it stands before.
pub(super) fn go_on(thread: pid_t, signal: c_int, to_return: bool) {
    let how = if to_return { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
    // SAFETY: the call takes numbers; a thread that is gone needs nothing.
    unsafe { libc::ptrace(how, thread, 0, signal) };
}

/// Ends the process at once.
pub(super) fn kill(process: pid_t) {
    // SAFETY: a process of this thread's, which has not been waited for to its end, so that nobody else has its number.
    unsafe { libc::kill(process, libc::SIGKILL) };
}
