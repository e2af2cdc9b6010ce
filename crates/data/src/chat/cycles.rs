//! Templates that put a namespace into itself: printing it, or comparing it, would never end, and the engine does not notice.
//!
//! The text alone tells: `{% set ns.x = ns %}`, by this name or another one that was given to it. No template of a model does so.

/// The name of a namespace that a template puts into a namespace, if there is one.
pub(super) fn nested_namespace(source: &str) -> Option<String> {
    let sets: Vec<(&str, Vec<String>)> = tags(source).filter_map(assignment).collect();
    let mut spaces: Vec<String> = vec!["namespace".into()];
    loop {
        let more = sets.iter().filter(|it| it.1.iter().any(|word| spaces.contains(word)));
        let more: Vec<String> = more.map(|it| it.0.to_owned()).filter(|it| !it.contains('.')).collect();
        let before = spaces.len();
        for name in more {
            if !spaces.contains(&name) {
                spaces.push(name);
            }
        }
        if spaces.len() == before {
            break;
        }
    }
    let nested = sets.iter().filter(|it| it.0.contains('.')).flat_map(|it| &it.1);
    nested.into_iter().find(|it| spaces.contains(it)).cloned()
}

/// What stands in the tags of a template.
fn tags(source: &str) -> impl Iterator<Item = &str> {
    source
        .split("{%")
        .skip(1)
        .filter_map(|it| it.split_once("%}"))
        .map(|it| it.0.trim_matches(['-', '+', ' ', '\n', '\t']))
}

/// The target of a `set`, and the words of its value that stand for a value as a whole.
fn assignment(tag: &str) -> Option<(&str, Vec<String>)> {
    let (target, value) = tag.strip_prefix("set")?.split_once('=')?;
    (!value.starts_with('=')).then(|| (target.trim(), whole_names(value)))
}

/// Names that no point or bracket follows, outside of quotes and of what is handed to a function.
fn whole_names(value: &str) -> Vec<String> {
    let (mut found, mut word, mut quote, mut calls) = (Vec::new(), String::new(), None, Vec::new());
    let mut follows_point = false;
    for c in value.chars().chain([' ']) {
        if let Some(mark) = quote {
            if c == mark {
                quote = None;
            }
            continue;
        }
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        let is_whole = !word.is_empty() && !follows_point && !calls.contains(&true);
        if is_whole && !matches!(c, '.' | '[') && (c != '(' || word == "namespace") {
            found.push(word.clone());
        }
        match c {
            '\'' | '"' => quote = Some(c),
            '(' => calls.push(!word.is_empty()),
            ')' => drop(calls.pop()),
            _ => {}
        }
        follows_point = c == '.';
        word.clear();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::nested_namespace;

    #[test]
    fn a_namespace_in_a_namespace_is_seen() {
        let made = "{% set ns = namespace(n=0) %}";
        for nested in [
            "{% set ns.n = ns %}",
            "{%- set ns.n=[1, ns] -%}",
            "{% set b = ns %}{% set ns.n = b %}",
            "{% set ns.n = {'a': (ns)} %}",
            "{% set other = namespace() %}{% set ns.n = other %}",
        ] {
            assert!(nested_namespace(&format!("{made}{nested}")).is_some(), "{nested}");
        }
        for usual in [
            "{% set ns.n = ns.n + 1 %}",
            "{% set ns.n = ns['n'] %}",
            "{% set ns.n = 'ns' %}",
            "{% set ns.n = f(ns) %}",
            "{% set x.ns = 1 %}{% set ns.n = x.ns %}",
            "{% if ns == ns %}{% endif %}",
        ] {
            assert_eq!(nested_namespace(&format!("{made}{usual}")), None, "{usual}");
        }
    }
}
