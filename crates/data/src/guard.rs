//! Panics of other people's parsers, turned into errors.
//!
//! `parquet` and `tokenizers` assert or unwrap on some damaged input where they should return an error (tokenizers
//! 0.23 does on a file that ends inside its decoder section), and a damaged file must not end the program.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a parser whose state is thrown away if it fails; the error is its message.
pub(crate) fn guarded<T, E: ToString>(parse: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(parse)) {
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
