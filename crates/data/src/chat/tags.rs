//! The tags of a template, and how deep they may nest. The engine limits brackets and blocks; chains of operators (`1+1+1…`) and of
//! `elif`, and values that a loop puts into each other, it follows by calling itself, so that one long enough would end the program.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};
use std::borrow::Cow;

/// Words and signs of a tag. Models' templates have a few hundred.
const LONGEST_TAG: usize = 2000;
/// Branches of all conditions. Models' templates have a few dozens.
const MOST_BRANCHES: usize = 500;
/// Lists and objects within each other. Those of rows are at most 128 deep.
const DEEPEST: usize = 256;
/// Values looked through that count as one step of a rendering.
const PER_STEP: u64 = 8;
/// The filter that values pass through when a template keeps them.
pub(super) const KEPT: &str = "__kept";

/// A part of a template.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part<'a> {
    /// What is written as it is, or not at all.
    Text(&'a str),
    /// What stands in `{{ }}`.
    Print(&'a str),
    /// What stands in `{% %}`.
    Block(&'a str),
}

/// That no tag is a chain on which the engine would give up; `Err` says what is too long.
pub(super) fn check(source: &str) -> Result<(), String> {
    let mut branches = 0;
    for part in parts(source) {
        let (Part::Print(inner) | Part::Block(inner)) = part else { continue };
        if words(inner) > LONGEST_TAG {
            return Err(format!("a tag of more than {LONGEST_TAG} words and signs"));
        }
        branches += usize::from(inner.trim_matches(is_edge).starts_with("elif"));
    }
    if branches > MOST_BRANCHES {
        return Err(format!("more than {MOST_BRANCHES} branches of conditions"));
    }
    Ok(())
}

/// The template, with all values that it gives names to passed through [`kept`]: only by a name can one grow from turn to turn of a loop.
pub(super) fn keeping(source: &str) -> String {
    let part = |it| match it {
        Part::Text(text) => Cow::Borrowed(text),
        Part::Print(inner) => Cow::Owned(format!("{{{{{inner}}}}}")),
        Part::Block(inner) => Cow::Owned(format!("{{%{}%}}", kept_in(inner).unwrap_or_else(|| inner.to_owned()))),
    };
    parts(source).into_iter().map(part).collect()
}

/// `set name = value` with the value passed on; `None` of another tag.
fn kept_in(inner: &str) -> Option<String> {
    let end = inner.len() - usize::from(inner.ends_with(['-', '+']));
    let (body, close) = inner.split_at(end);
    let at = body.find('=')?;
    let (target, value) = (&body[..at], &body[at + 1..]);
    let names = target.trim_start_matches(is_edge).strip_prefix("set")?;
    let is_name = |it: char| it.is_alphanumeric() || it.is_whitespace() || "_.,()".contains(it);
    let is_set = names.starts_with(char::is_whitespace) && names.chars().all(is_name);
    (is_set && !value.starts_with('=') && !value.trim().is_empty())
        .then(|| format!("{target}= ({value})|{KEPT} {close}"))
}

/// A value that a template keeps, unless it is nested too deeply. What is yet to be computed is, since it holds what it is computed of.
///
/// # Errors
/// One that is.
pub(super) fn kept(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    let value = match value.kind() {
        ValueKind::Iterable => value.try_iter()?.collect(),
        _ => value,
    };
    let mut seen = 0;
    let fits = is_at_most(&value, DEEPEST, &mut seen);
    state.consume_fuel(seen / PER_STEP)?;
    if fits {
        return Ok(value);
    }
    let reason = format!("it puts values into each other more than {DEEPEST} deep");
    Err(Error::new(ErrorKind::InvalidOperation, reason))
}

/// Whether a value holds none below so many others.
fn is_at_most(value: &Value, depth: usize, seen: &mut u64) -> bool {
    *seen += 1;
    let mut each = |it: &Value| depth > 0 && is_at_most(it, depth - 1, seen);
    match value.kind() {
        ValueKind::Seq => value.try_iter().into_iter().flatten().all(|it| each(&it)),
        ValueKind::Map => {
            let mut keys = value.try_iter().into_iter().flatten();
            keys.all(|key| value.get_item(&key).is_ok_and(|it| each(&it)))
        }
        _ => true,
    }
}

/// Strings, numbers and names, and every other sign.
fn words(inner: &str) -> usize {
    let (mut count, mut quote, mut escaped, mut in_word) = (0, None, false, false);
    for c in inner.chars() {
        let is_word = c.is_alphanumeric() || c == '_';
        match quote {
            Some(mark) => {
                quote = quote.filter(|_| escaped || c != mark);
                escaped = c == '\\' && !escaped;
            }
            None => {
                count += usize::from(!(c.is_whitespace() || is_word && in_word));
                quote = Some(c).filter(|it| matches!(it, '\'' | '"'));
            }
        }
        in_word = is_word && quote.is_none();
    }
    count
}

/// What stands around the word of a tag.
fn is_edge(c: char) -> bool {
    c.is_whitespace() || c == '-' || c == '+'
}

/// All of a template, in its order. Where a tag is not ended, the rest is text.
fn parts(source: &str) -> Vec<Part<'_>> {
    let (mut all, mut begin, mut at) = (Vec::new(), 0, 0);
    while let Some(found) = source[at..].find('{').map(|it| at + it) {
        let inside = found + 2;
        at = found + 1;
        let (close, is_block) = match source.as_bytes().get(at) {
            Some(b'#') => {
                at = source[inside..].find("#}").map_or(source.len(), |it| inside + it + 2);
                continue;
            }
            Some(b'%') => ("%}", true),
            Some(b'{') => ("}}", false),
            _ => continue,
        };
        let Some(end) = end_of_tag(&source[inside..], close).map(|it| inside + it) else { break };
        let inner = &source[inside..end];
        at = end + 2;
        if is_block && inner.trim_matches(is_edge) == "raw" {
            at = end_of_raw(source, at);
            continue;
        }
        all.extend([Part::Text(&source[begin..found]), if is_block { Part::Block(inner) } else { Part::Print(inner) }]);
        begin = at;
    }
    all.push(Part::Text(&source[begin..]));
    all
}

/// Where a tag's end stands, outside of texts and brackets.
fn end_of_tag(inner: &str, close: &str) -> Option<usize> {
    let (mut quote, mut escaped, mut open) = (None, false, 0i64);
    for (at, byte) in inner.bytes().enumerate() {
        if let Some(mark) = quote {
            quote = quote.filter(|_| escaped || byte != mark);
            escaped = byte == b'\\' && !escaped;
            continue;
        }
        if open == 0 && inner.as_bytes()[at..].starts_with(close.as_bytes()) {
            return Some(at);
        }
        match byte {
            b'\'' | b'"' => quote = Some(byte),
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open -= 1,
            _ => {}
        }
    }
    None
}

/// Behind the `{% endraw %}` that follows.
fn end_of_raw(source: &str, mut at: usize) -> usize {
    while let Some(tag) = source[at..].find("{%").map(|it| at + it + 2) {
        let Some(end) = source[tag..].find("%}").map(|it| tag + it) else { break };
        if source[tag..end].trim_matches(is_edge) == "endraw" {
            return end + 2;
        }
        at = tag;
    }
    source.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_end_outside_of_texts_and_brackets() {
        use Part::{Block, Print, Text};
        let source = "a{# {% no #}{% if '%}' %}b{{ {'a': {}} }}{% raw %}{{ no {% endraw %}{{ \"\\\"}}\" }}c{ {% no";
        let found = [
            Text("a{# {% no #}"),
            Block(" if '%}' "),
            Text("b"),
            Print(" {'a': {}} "),
            Text("{% raw %}{{ no {% endraw %}"),
            Print(" \"\\\"}}\" "),
            Text("c{ {% no"),
        ];
        assert_eq!(parts(source), found);
        assert_eq!(keeping(source), source);
    }

    #[test]
    fn what_is_given_a_name_is_kept() {
        let of = |inner: &str| keeping(&format!("{{%{inner}%}}"));
        assert_eq!(of("- set a.b = [1] -"), "{%- set a.b = ( [1] )|__kept -%}");
        assert_eq!(of(" set a, b = 1, 2 "), "{% set a, b = ( 1, 2 )|__kept %}");
        for other in
            [" set a ", " set a | indent(width=2) ", " set a = ", " if a == b ", " settle = 1 ", " for a in f(b=1) "]
        {
            assert_eq!(of(other), format!("{{%{other}%}}"));
        }
    }

    #[test]
    fn words_are_counted_outside_of_texts() {
        assert_eq!(words(" a.bc + 'd e \\' f' | g(1, \"\") "), 12);
        assert!(check(&format!("{{{{ 1{} }}}}", "+1".repeat(900))).is_ok());
        assert!(check(&format!("{{{{ 1{} }}}}", "+1".repeat(1100))).is_err());
        assert!(check(&format!("{{% if 1 %}}{}{{% endif %}}", "{%- elif 1 %}".repeat(501))).is_err());
    }
}
