//! Comparing declarations of kernels with the text of their file, when a crate is compiled. For [`crate::kernels!`] alone.

/// What begins a kernel at the start of a line.
const BEGINNING: &[u8] = b"KERNEL ";

/// How a declaration differs from its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// There is no such kernel.
    NoKernel,
    /// A parameter is of another type, or in another place.
    Type,
    /// A parameter has another name, or is in another place.
    Name,
    /// The kernel has more parameters, or fewer.
    Number,
}

/// # Panics
/// Unless the kernel has these parameters (type, name) in this order.
pub const fn check(text: &str, (kernel, parameters): (&str, &[(&str, &str)])) {
    match compare(text.as_bytes(), kernel.as_bytes(), parameters) {
        Ok(()) => {}
        Err(Mismatch::NoKernel) => panic!("the file of kernels has no kernel of this name"),
        Err(Mismatch::Type) => panic!("a parameter of the kernel is of another type than its declaration says"),
        Err(Mismatch::Name) => panic!("a parameter of the kernel has another name than its declaration says"),
        Err(Mismatch::Number) => panic!("the kernel has more or fewer parameters than its declaration"),
    }
}

/// # Panics
/// Unless the file has as many kernels as are declared.
pub const fn check_all(text: &str, declared: &[&str]) {
    assert!(
        count(text.as_bytes()) == declared.len(),
        "the file has kernels that are not declared, or the other way round"
    );
}

const fn count(text: &[u8]) -> usize {
    let (mut at, mut found) = (0, 0);
    while at < text.len() {
        if begins(text, at) {
            found += 1;
        }
        at += 1;
    }
    found
}

const fn compare(text: &[u8], kernel: &[u8], parameters: &[(&str, &str)]) -> Result<(), Mismatch> {
    let Some(mut at) = find(text, kernel) else { return Err(Mismatch::NoKernel) };
    let mut i = 0;
    while i < parameters.len() {
        let (of_type, name) = (parameters[i].0.as_bytes(), parameters[i].1.as_bytes());
        at = match skip_type(text, skip_space(text, at), of_type) {
            Some(end) if skip_space(text, end) > end => skip_space(text, end),
            _ => return Err(Mismatch::Type),
        };
        if !is_at(text, at, name) || (at + name.len() < text.len() && is_word(text[at + name.len()])) {
            return Err(Mismatch::Name);
        }
        at = skip_space(text, at + name.len());
        i += 1;
        let wanted = if i < parameters.len() { b',' } else { b')' };
        if at >= text.len() || text[at] != wanted {
            return Err(Mismatch::Number);
        }
        at += 1;
    }
    Ok(())
}

/// Behind the parenthesis that opens a kernel's parameters.
const fn find(text: &[u8], kernel: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < text.len() {
        if begins(text, at) && is_at(text, at + BEGINNING.len(), kernel) {
            let end = at + BEGINNING.len() + kernel.len();
            if end < text.len() && text[end] == b'(' {
                return Some(end + 1);
            }
        }
        at += 1;
    }
    None
}

const fn begins(text: &[u8], at: usize) -> bool {
    text[at] == BEGINNING[0] && (at == 0 || text[at - 1] == b'\n') && is_at(text, at, BEGINNING)
}

const fn is_at(text: &[u8], at: usize, word: &[u8]) -> bool {
    if at + word.len() > text.len() {
        return false;
    }
    let mut i = 0;
    while i < word.len() {
        if text[at + i] != word[i] {
            return false;
        }
        i += 1;
    }
    true
}

const fn skip_space(text: &[u8], mut at: usize) -> usize {
    while at < text.len() && text[at].is_ascii_whitespace() {
        at += 1;
    }
    at
}

/// Behind a type, whose words may be parted by any white space.
const fn skip_type(text: &[u8], mut at: usize, of_type: &[u8]) -> Option<usize> {
    let mut i = 0;
    while i < of_type.len() {
        if of_type[i] == b' ' {
            let next = skip_space(text, at);
            if next == at {
                return None;
            }
            at = next;
        } else if at < text.len() && text[at] == of_type[i] {
            at += 1;
        } else {
            return None;
        }
        i += 1;
    }
    Some(at)
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "// A KERNEL is none here.\nKERNEL add(const T* a, const  float* b,\n           T* y, unsigned long long n) {\n}\nKERNEL adds(int c) {}\n";

    fn of(kernel: &str, parameters: &[(&str, &str)]) -> Result<(), Mismatch> {
        compare(TEXT.as_bytes(), kernel.as_bytes(), parameters)
    }

    #[test]
    fn every_way_to_differ_is_seen() {
        let right = [("const T*", "a"), ("const float*", "b"), ("T*", "y"), ("unsigned long long", "n")];
        assert_eq!(of("add", &right), Ok(()));
        assert_eq!(of("adds", &[("int", "c")]), Ok(()));
        assert_eq!(of("ad", &right), Err(Mismatch::NoKernel));
        assert_eq!(of("add", &right[..3]), Err(Mismatch::Number));
        assert_eq!(of("adds", &[("int", "c"), ("int", "d")]), Err(Mismatch::Number));
        assert_eq!(of("adds", &[("unsigned", "c")]), Err(Mismatch::Type));
        assert_eq!(of("adds", &[("int", "cc")]), Err(Mismatch::Name));
        for i in 0..4 {
            let mut other = right;
            other[i].0 = "double";
            assert_eq!(of("add", &other), Err(Mismatch::Type), "{i}");
            other[i] = (right[i].0, "z");
            assert_eq!(of("add", &other), Err(Mismatch::Name), "{i}");
        }
        let swapped = [("const float*", "b"), ("const T*", "a"), right[2], right[3]];
        assert_eq!(of("add", &swapped), Err(Mismatch::Type));
        assert_eq!(count(TEXT.as_bytes()), 2);
    }
}
