use std::{
    io,
    path::{Path, PathBuf},
};

/// The result of looking something up or fetching it.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a name gave no folder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for cannot be had as things stand; whoever asked can put it right.
    #[error("{what}: {message}")]
    Asked {
        /// The name, or the setting.
        what: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The hub, or the way to it, failed. What had come is kept, and the next attempt goes on from it.
    #[error("{what}: {message}")]
    Transfer {
        /// The name, or a file of it.
        what: String,
        /// What happened.
        message: String,
    },
    /// The system refused something in the cache.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn asked(what: impl Into<String>, message: impl Into<String>) -> Error {
        Error::Asked { what: what.into(), message: message.into() }
    }

    #[cfg(feature = "network")]
    pub(crate) fn transfer(what: impl Into<String>, message: impl Into<String>) -> Error {
        Error::Transfer { what: what.into(), message: message.into() }
    }

    /// For `map_err` on what the system says about `path`.
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Error {
        move |source| Error::Io { path: path.to_owned(), source }
    }
}
