//! Just enough of Rust's lexical grammar to tell code from comments and literals.
//!
//! A search for `unsafe` over raw text would stumble over every sentence that speaks of it, this one included.

/// One line of a source file, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// The code, with what stood inside string and character literals left out.
    pub(super) code: String,
    /// The text of the comments on the line.
    pub(super) comment: String,
    /// What stood inside string literals.
    pub(super) text: String,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Code,
    LineComment,
    /// Block comments nest in Rust.
    BlockComment(usize),
    Text,
    /// Number of `#` that close it.
    RawText(usize),
}

/// Splits a source text into its lines.
pub(super) fn lines(source: &str) -> Vec<Line> {
    let chars: Vec<char> = source.chars().collect();
    let mut lines = vec![Line::default()];
    let mut state = State::Code;
    let mut i = 0;
    while i < chars.len() {
        if chars[i] == '\n' {
            if state == State::LineComment {
                state = State::Code;
            }
            lines.push(Line::default());
            i += 1;
            continue;
        }
        let line = lines.last_mut().expect("there is a line from the start");
        let (next, taken) = step(state, &chars[i..], i.checked_sub(1).map(|p| chars[p]), line);
        state = next;
        i += taken;
    }
    lines
}

/// Consumes at least one character of `rest`, which starts in `state` and follows `before`.
fn step(state: State, rest: &[char], before: Option<char>, line: &mut Line) -> (State, usize) {
    let pair = (rest[0], rest.get(1).copied().unwrap_or('\n'));
    match state {
        State::Code => code(rest, before, line),
        State::LineComment => {
            line.comment.push(rest[0]);
            (state, 1)
        }
        State::BlockComment(depth) => match pair {
            ('/', '*') => (State::BlockComment(depth + 1), 2),
            ('*', '/') if depth == 1 => (State::Code, 2),
            ('*', '/') => (State::BlockComment(depth - 1), 2),
            _ => {
                line.comment.push(rest[0]);
                (state, 1)
            }
        },
        // An escaped line end must not hide the end of the line from the caller.
        State::Text if pair.0 == '\\' && pair.1 != '\n' => (state, 2),
        State::Text if pair.0 == '"' => (State::Code, 1),
        State::RawText(hashes) if pair.0 == '"' && closes(rest, hashes) => (State::Code, 1 + hashes),
        State::Text | State::RawText(_) => {
            line.text.push(rest[0]);
            (state, 1)
        }
    }
}

fn code(rest: &[char], before: Option<char>, line: &mut Line) -> (State, usize) {
    let next = rest.get(1).copied().unwrap_or('\n');
    match rest[0] {
        '/' if next == '/' => return (State::LineComment, 2),
        '/' if next == '*' => return (State::BlockComment(1), 2),
        '"' => return (State::Text, 1),
        'r' if !before.is_some_and(|b| is_word(b) && b != 'b' && b != 'c') => {
            let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
            if rest.get(1 + hashes) == Some(&'"') {
                return (State::RawText(hashes), 2 + hashes);
            }
        }
        '\'' => {
            if let Some(length) = character(rest) {
                return (State::Code, length);
            }
        }
        _ => {}
    }
    line.code.push(rest[0]);
    (State::Code, 1)
}

/// The length of the character literal that `rest` begins with; none for a lifetime.
fn character(rest: &[char]) -> Option<usize> {
    if rest.get(1) == Some(&'\\') {
        // The escaped character itself may be a quote.
        return rest.iter().skip(3).position(|c| *c == '\'').map(|at| at + 4);
    }
    (rest.get(2) == Some(&'\'')).then_some(3)
}

fn closes(rest: &[char], hashes: usize) -> bool {
    rest.len() > hashes && rest[1..=hashes].iter().all(|c| *c == '#')
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` stands in `code` with no letter, digit or underscore at its sides.
pub(super) fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}
