//! What chat templates take from Python: its filters, the methods of its texts, and how it prints.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

/// Gives an environment what transformers gives its own.
pub(super) fn equip(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(format);
    // minijinja goes through nothing as through an empty list.
    environment.add_test("iterable", |value: Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::String | ValueKind::Undefined
        )
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: Value| printed(&value));
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
        let mut text = String::new();
        write!(text, "{}", chrono::Local::now().format(&format))
            .map_err(|_| wrong(format!("strftime_now cannot write {format:?}")))?;
        Ok(text)
    });
}

fn wrong(reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// Methods that minijinja's own compatibility lacks.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let text = |at: usize| args.get(at).and_then(Value::as_str).ok_or_else(|| wrong(format!("{name} needs a text")));
    if let Some(this) = value.as_str() {
        let found = match name {
            "removeprefix" => Some(Value::from(this.strip_prefix(text(0)?).unwrap_or(this))),
            "removesuffix" => Some(Value::from(this.strip_suffix(text(0)?).unwrap_or(this))),
            "index" => {
                Some(Value::from(position(this, this.find(text(0)?)).ok_or_else(|| wrong("substring not found"))?))
            }
            "rfind" => Some(position(this, this.rfind(text(0)?)).map_or(Value::from(-1), Value::from)),
            "partition" => Some(parts(this, text(0)?, this.find(text(0)?), false)),
            "rpartition" => Some(parts(this, text(0)?, this.rfind(text(0)?), true)),
            "rsplit" => Some(rsplit(this, args)?),
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Python counts characters.
fn position(text: &str, byte: Option<usize>) -> Option<i64> {
    byte.map(|it| text[..it].chars().count() as i64)
}

fn parts(text: &str, separator: &str, at: Option<usize>, from_right: bool) -> Value {
    let parts = match at {
        Some(at) => [&text[..at], separator, &text[at + separator.len()..]],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    parts.into_iter().map(Value::from).collect()
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let separator = args.first().and_then(Value::as_str).ok_or_else(|| wrong("rsplit needs a separator"))?;
    let most = args.get(1).and_then(Value::as_i64).and_then(|it| usize::try_from(it).ok());
    let found: Vec<&str> = match most {
        Some(most) => text.rsplitn(most + 1, separator).collect(),
        None => text.rsplit(separator).collect(),
    };
    Ok(found.into_iter().rev().map(Value::from).collect())
}

/// What `{{ value }}` writes.
fn format(out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    out.write_str(&printed(value)).map_err(Error::from)
}

/// As `str` has it.
fn printed(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        _ => {
            let mut out = String::new();
            represent(&mut out, value);
            out
        }
    }
}

/// As `repr` has it.
fn represent(out: &mut String, value: &Value) {
    let comma = |out: &mut String, at: usize| out.push_str(if at > 0 { ", " } else { "" });
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Number => number(out, value),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (at, item) in value.try_iter().into_iter().flatten().enumerate() {
                comma(out, at);
                represent(out, &item);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter().into_iter().flatten().enumerate() {
                comma(out, at);
                represent(out, &key);
                out.push_str(": ");
                represent(out, &value.get_item(&key).unwrap_or_default());
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

fn quote(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() && (c as u32) < 0x100 => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(mark);
}

fn number(out: &mut String, value: &Value) {
    match f64::try_from(value.clone()) {
        Ok(found) if !value.is_integer() => out.push_str(&float(found)),
        _ => out.push_str(&value.to_string()),
    }
}

/// The shortest digits that give the number back, as Python writes them: with an exponent below 1e-4 and from 1e16 on.
fn float(value: f64) -> String {
    let size = value.abs();
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |it| ('-', it));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{value:?}")
}

/// `json.dumps(value, ensure_ascii=False)`, which is what transformers puts in the place of Jinja's own filter.
fn to_json(state: &mut State<'_, '_>, value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorted: bool = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        _ => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let mut out = String::new();
    Json { item, key, indent, sorted, state }.write(&mut out, &value, 0)?;
    Ok(out)
}

struct Json<'a, 's, 'e> {
    item: String,
    key: String,
    indent: Option<usize>,
    sorted: bool,
    /// Pays for what is put between the values, which could be far longer than they are.
    state: &'a State<'s, 'e>,
}

impl Json<'_, '_, '_> {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => number(out, value),
            ValueKind::String => out.push_str(&serde_json::Value::from(value.as_str()).to_string()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.enclosed(out, ['[', ']'], items.len(), depth, |out, at| self.write(out, &items[at], depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.enclosed(out, ['{', '}'], keys.len(), depth, |out, at| {
                    let key = keys[at].as_str().map_or_else(|| keys[at].to_string(), str::to_owned);
                    out.push_str(&serde_json::Value::from(key).to_string());
                    out.push_str(&self.key);
                    self.write(out, &value.get_item(&keys[at])?, depth + 1)
                })?;
            }
            _ => return Err(wrong(format!("tojson: a value of kind {} is no JSON", value.kind()))),
        }
        Ok(())
    }

    fn enclosed(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        count: usize,
        depth: usize,
        mut each: impl FnMut(&mut String, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |out: &mut String, depth: usize| -> Result<(), Error> {
            if let Some(indent) = self.indent.filter(|_| count > 0) {
                let width = indent.saturating_mul(depth);
                self.state.consume_fuel(width as u64)?;
                out.push('\n');
                out.push_str(&" ".repeat(width));
            }
            Ok(())
        };
        out.push(open);
        for at in 0..count {
            self.state.consume_fuel((self.item.len() + self.key.len()) as u64)?;
            out.push_str(if at > 0 { &self.item } else { "" });
            line(out, depth + 1)?;
            each(out, at)?;
        }
        line(out, depth)?;
        out.push(close);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> String {
        let mut environment = Environment::new();
        equip(&mut environment);
        environment.render_str(template, minijinja::context! {}).unwrap()
    }

    #[test]
    fn values_are_printed_as_python_prints_them() {
        assert_eq!(render("{{ true }} {{ none }} {{ nothing }}|{{ 1.0 }} {{ 3 }}"), "True None |1.0 3");
        assert_eq!(render(r#"{{ ["a'b", 'c"d', 'e\nf', {'k': false}] }}"#), r#"["a'b", 'c"d', 'e\nf', {'k': False}]"#);
        assert_eq!(render("{{ true | string }}"), "True");
        let floats =
            [(1e-5, "1e-05"), (1e16, "1e+16"), (0.5, "0.5"), (123_456_789.0, "123456789.0"), (1.5e300, "1.5e+300")];
        for (number, text) in floats {
            assert_eq!(float(number), text);
        }
    }

    #[test]
    fn json_is_dumped_as_python_dumps_it() {
        let value = r#"{'b': [1, 2.5, none, true], 'a': 'é<"\n'}"#;
        assert_eq!(render(&format!("{{{{ {value} | tojson }}}}")), r#"{"b": [1, 2.5, null, true], "a": "é<\"\n"}"#);
        assert_eq!(
            render(&format!("{{{{ {value} | tojson(indent=2, sort_keys=true) }}}}")),
            "{\n  \"a\": \"é<\\\"\\n\",\n  \"b\": [\n    1,\n    2.5,\n    null,\n    true\n  ]\n}"
        );
        assert_eq!(
            render("{{ [] | tojson(indent=2) }} {{ {'a': 1} | tojson(separators=(',', ':')) }}"),
            "[] {\"a\":1}"
        );
    }

    #[test]
    fn methods_of_texts_are_pythons() {
        assert_eq!(render("{{ 'äbc'.index('c') }} {{ 'abab'.rfind('b') }} {{ 'ab'.rfind('x') }}"), "2 3 -1");
        assert_eq!(render("{{ 'a-b-c'.partition('-') }}"), "['a', '-', 'b-c']");
        assert_eq!(render("{{ 'a-b-c'.rsplit('-', 1) }} {{ 'a-b'.removeprefix('a-') }}"), "['a-b', 'c'] b");
        assert_eq!(render("{{ ' x '.strip() }}{{ 'a b'.split() }}"), "x['a', 'b']");
    }

    #[test]
    fn methods_that_find_nothing_and_from_the_right() {
        let joined = |call: &str| render(&format!("{{{{ {call}|join('|') }}}}"));
        assert_eq!(render("{{ 'name.py'.removesuffix('.py') }} {{ 'name'.removesuffix('.py') }}"), "name name");
        assert_eq!(render("{{ 'abcabc'.rfind('b') }} {{ 'x'.rfind('q') }} {{ 'é-b'.rfind('b') }}"), "4 -1 2");
        assert_eq!([joined("'a.b.c'.partition('.')"), joined("'a.b.c'.rpartition('.')")], ["a|.|b.c", "a.b|.|c"]);
        assert_eq!([joined("'abc'.partition('.')"), joined("'abc'.rpartition('.')")], ["abc||", "||abc"]);
    }

    #[test]
    fn values_within_values_are_represented() {
        assert_eq!(
            render("{{ [none, missing, true, false, 1, 2.5, 'a', {'k': [1, 'b']}] }}"),
            "[None, None, True, False, 1, 2.5, 'a', {'k': [1, 'b']}]"
        );
        assert_eq!(render(r#"{{ ["it's", 'say "hi"', "it's \"x\""] }}"#), r#"["it's", 'say "hi"', 'it\'s "x"']"#);
        assert_eq!(render("{{ ['\x07\x7f\u{85}é\\\\'] }}"), r"['\x07\x7f\x85é\\']");
        assert_eq!(render("{{ [1e16, 1e-5, 1e15, 0.0001] }}"), "[1e+16, 1e-05, 1000000000000000.0, 0.0001]");
        assert_eq!(render("{{ [1e308 * 10, -1e308 * 10]|tojson }}"), "[Infinity, -Infinity]");
        assert_eq!(
            render("{{ {'a': [1, {'b': 2}], 'c': []}|tojson(indent=2) }}"),
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": 2\n    }\n  ],\n  \"c\": []\n}"
        );
    }
}
