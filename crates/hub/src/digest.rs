//! How a file is known for the one that was asked for: the SHA-256 of a large one, git's hash of a small one.

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// A hash under way.
pub(crate) struct Digest(Context);

impl Digest {
    /// The SHA-256 of the bytes themselves.
    pub(crate) fn sha256() -> Digest {
        Digest(Context::new(&SHA256))
    }

    /// As git names a blob of `size` bytes.
    pub(crate) fn git(size: u64) -> Digest {
        let mut it = Digest(Context::new(&SHA1_FOR_LEGACY_USE_ONLY));
        it.update(format!("blob {size}\0").as_bytes());
        it
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn hex(self) -> String {
        self.0.finish().as_ref().iter().map(|it| format!("{it:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_are_those_of_sha256sum_and_git() {
        let mut it = Digest::sha256();
        it.update(b"abc");
        assert_eq!(it.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let mut it = Digest::git(6);
        it.update(b"hello\n");
        assert_eq!(it.hex(), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
