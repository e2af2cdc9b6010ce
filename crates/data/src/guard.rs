//! Panics of other people's parsers, turned into errors.
//!
//! `parquet` and `tokenizers` assert or unwrap on some damaged input where they should return an error (tokenizers
//! 0.23 does on a file that ends inside its decoder section), and a damaged file must not end the program.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is about to become an error, so that it need not be told as a panic, too.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a parser whose state is thrown away if it fails; the error is its message.
pub(crate) fn guarded<T, E: ToString>(parse: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                loud(info);
            }
        }));
    });
    let before = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(parse));
    GUARDED.set(before);
    match done {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(payload) => {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
            Err(format!("the reader gave up: {}", text.unwrap_or("no reason given")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_message() {
        let number = 7;
        assert_eq!(guarded(|| Ok::<_, String>(number)), Ok(7));
        assert_eq!(guarded(|| Err::<(), _>("broken")), Err("broken".into()));
        let formatted = guarded(|| -> Result<(), String> { panic!("page {number}") });
        assert_eq!(formatted, Err("the reader gave up: page 7".into()));
        let plain = guarded(|| -> Result<(), String> { panic!("a page") });
        assert_eq!(plain, Err("the reader gave up: a page".into()));
    }
}
