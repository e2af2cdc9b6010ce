//! Small repairs that make filled templates read as English.

/// Stands for "a" or "an" until the next word is known.
pub(crate) const ARTICLE: &str = "\u{1}";

/// Words whose first letter and first sound disagree.
const SILENT_H: [&str; 3] = ["hour", "honest", "heir"];
const YOU_SOUND: [&str; 5] = ["useful", "useless", "unicorn", "uniform", "ukulele"];

/// "a" or "an" for the word that follows.
pub(crate) fn article(next: &str) -> &'static str {
    let vowel = next.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U']);
    let exception = YOU_SOUND.iter().any(|w| next.starts_with(w));
    if (vowel && !exception) || SILENT_H.iter().any(|w| next.starts_with(w)) { "an" } else { "a" }
}

/// Replaces the article marks and capitalises the first letter.
pub(crate) fn finish(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(ARTICLE) {
        out.push_str(before);
        out.push_str(article(after.trim_start()));
        rest = after;
    }
    out.push_str(rest);
    capitalise(&out)
}

/// The text with its first letter (after an opening quote, if there is one) in upper case.
pub(crate) fn capitalise(text: &str) -> String {
    let mut done = false;
    text.chars()
        .map(|c| {
            if done || !c.is_alphanumeric() {
                return c;
            }
            done = true;
            c.to_ascii_uppercase()
        })
        .collect()
}

/// The last full stop as a comma, for direct speech that goes on with "said".
pub(crate) fn speech(sentence: &str) -> String {
    match sentence.strip_suffix('.') {
        Some(body) => format!("\"{body},\""),
        None => format!("\"{sentence}\""),
    }
}

/// Replaces every `{name}` by what `fill` returns for it.
///
/// # Panics
/// If a brace is not closed: the templates are ours.
pub(crate) fn expand(template: &str, mut fill: impl FnMut(&str) -> String) -> String {
    let mut out = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let (slot, tail) =
            after.split_once('}').unwrap_or_else(|| panic!("the template `{template}` has an open brace"));
        out.push_str(&fill(slot));
        rest = tail;
    }
    out.push_str(rest);
    out
}
