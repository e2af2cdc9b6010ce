//! A line-aligned buffer of 32-bit words: vector loads of a panel must not straddle cache lines.

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// A growable buffer of 32-bit words that starts on a cache line.
#[derive(Default)]
pub(crate) struct Words {
    lines: Vec<Line>,
}

impl Words {
    /// The first `len` words; they hold whatever earlier use left.
    pub(crate) fn words(&mut self, len: usize) -> &mut [u32] {
        let lines = len.div_ceil(16);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 16]));
        }
        // SAFETY: `Line` is 16 words without padding, and `len` is at most 16 * lines <= 16 * self.lines.len().
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast::<u32>(), len) }
    }

    /// The first `len` words of a buffer that has them.
    pub(crate) fn filled(&self, len: usize) -> &[u32] {
        assert!(len <= 16 * self.lines.len(), "a buffer holds no more words than were asked of it");
        // SAFETY: `Line` is 16 words without padding, and there are enough of them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast::<u32>(), len) }
    }

    /// As [`Words::words`], read as f32.
    pub(crate) fn floats(&mut self, len: usize) -> &mut [f32] {
        let words = self.words(len);
        // SAFETY: f32 has the size and alignment of u32, and every bit pattern is a value of both.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<f32>(), len) }
    }
}
