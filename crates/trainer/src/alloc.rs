//! Memory that the system does not give. What is planned is refused before it is asked for; for what is not, a program would be
//! aborted, as if it were broken. Here it ends as other failures do: with a sentence and an exit code.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::{Cursor, Write},
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// The system's allocator, which ends the program where it has no memory to give.
#[derive(Debug)]
pub(crate) struct Ending;

// SAFETY: what the system's allocator promises, which is asked each time; what is not returned is not promised.
unsafe impl GlobalAlloc for Ending {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    #[inline]
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        given(unsafe { System.realloc(at, layout, size) }, size)
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[inline]
fn given(at: *mut u8, bytes: usize) -> *mut u8 {
    if at.is_null() {
        end(bytes);
    }
    at
}

/// Says it without asking for memory, and without a lock that somebody may hold.
#[cold]
fn end(bytes: usize) -> ! {
    static ENDS: AtomicBool = AtomicBool::new(false);
    if ENDS.swap(true, Ordering::Relaxed) {
        // Another thread says it and ends the program; should it be this one, nothing more can be done.
        thread::sleep(Duration::from_secs(2));
        process::abort();
    }
    let mut line = Cursor::new([0; 256]);
    let _ = writeln!(
        line,
        "error: the system gave no more memory ({bytes} bytes were asked for); close other programs, raise the limit on this one's memory, or ask for less, such as shorter or fewer rows at a time"
    );
    let len = line.position() as usize;
    say(&line.into_inner()[..len]);
    process::exit(1)
}

#[cfg(unix)]
fn say(line: &[u8]) {
    use std::{fs::File, mem::ManuallyDrop, os::fd::FromRawFd};
    // SAFETY: standard error is open or not, which a write finds out; it is not closed here.
    let mut to = ManuallyDrop::new(unsafe { File::from_raw_fd(2) });
    let _ = to.write_all(line);
}

#[cfg(not(unix))]
fn say(line: &[u8]) {
    let _ = std::io::stderr().write_all(line);
}
