//! Formats of text.

use crate::Dice;
use serde_json::Value;
use std::fmt::Write as _;

/// A template of a chat: statements and expressions with every filter, method and test that templates of models use.
pub fn template(dice: &mut Dice) -> String {
    let mut out = String::from("{%- set ns = namespace(n=0, x=[], t='') %}");
    statements(dice, &mut out, 0);
    out
}

fn statements(dice: &mut Dice, out: &mut String, depth: usize) {
    for _ in 0..1 + dice.below(4) {
        let e = expression(dice, 0);
        let _ = match if depth > 3 { dice.below(6) } else { dice.below(15) } {
            0 | 1 => write!(out, "{{{{ {e} }}}}"),
            2 => writeln!(out, "{{{{- {e} -}}}}"),
            3 => write!(out, "{{% set {} = {e} -%}}", dice.one_of(&["ns.n", "ns.x", "ns.t", "a", "b", "a, b"])),
            4 => write!(out, " text\n{{# a note #}}"),
            5 => write!(out, "{{% raw %}}{{{{ {e} {{% endraw %}}"),
            6..=8 => {
                let over = *dice.one_of(&[
                    "messages",
                    "messages[1:]",
                    "range(3)",
                    "ns.x",
                    "tools",
                    "a",
                    "messages[0].items()",
                ]);
                let filter = *dice.one_of(&["", " if m", " if m.role != 'system'", " recursive"]);
                let _ = write!(out, "{{% for {} in {over}{filter} %}}", dice.one_of(&["m", "m", "m", "a, b"]));
                statements(dice, out, depth + 1);
                let more = *dice.one_of(&["", "{% else %}nothing", "{% break %}", "{% continue %}", "{{ loop([1]) }}"]);
                write!(out, "{more}{{% endfor %}}")
            }
            9..=11 => {
                let _ = write!(out, "{{%- if {e} %}}");
                statements(dice, out, depth + 1);
                let other = expression(dice, 1);
                let _ = write!(out, "{{% elif {other} %}}b{{% else %}}");
                statements(dice, out, depth + 2);
                write!(out, "{{% endif %}}")
            }
            12 => {
                let _ = write!(out, "{{% macro f(a, b={e}) %}}");
                statements(dice, out, depth + 2);
                write!(out, "{{% endmacro %}}{{{{ f(1, b=m) }}}}")
            }
            13 => {
                let _ = write!(out, "{{% generation %}}");
                statements(dice, out, depth + 2);
                write!(out, "{{% endgeneration %}}")
            }
            _ => {
                let _ = write!(out, "{{% set {} %}}", dice.one_of(&["a", "ns.t"]));
                statements(dice, out, depth + 2);
                write!(out, "{{% endset %}}")
            }
        };
    }
}

fn expression(dice: &mut Dice, depth: usize) -> String {
    let atoms = [
        "messages",
        "messages[0]",
        "messages[-1].content",
        "m.content",
        "m['role']",
        "m",
        "tools",
        "bos_token",
        "loop.index",
        "loop.last",
        "add_generation_prompt",
        "ns.n",
        "ns.x",
        "ns.t",
        "a",
        "b",
        "none",
        "true",
        "1",
        "0",
        "-3",
        "2.5",
        "1e300",
        "9223372036854775807",
        "'a b\\n'",
        "\"it's\"",
        "''",
        "'é…'",
        "[]",
        "[1, 'a', none]",
        "{'a': 1, 'b': [2.5, {'c': true}]}",
        "(1, 'b')",
        "nothing.at.all",
        "namespace(k=1)",
        "range(3)",
        "1e-7",
        "0.0",
        "\"a\\tb\\x01'\\\"\"",
        "strftime_now('%Y-%m-%d')",
        "loop",
        "messages|map(attribute='role')|list",
    ];
    if depth > 2 || dice.once_in(3) {
        return (*dice.one_of(&atoms)).to_owned();
    }
    let (a, b) = (expression(dice, depth + 1), expression(dice, depth + 1));
    let filters = [
        "trim",
        "upper",
        "lower",
        "tojson",
        "tojson(indent=2)",
        "tojson(indent=999999999999)",
        "tojson(separators=(',', ':'))",
        "string",
        "tojson(sort_keys=true, ensure_ascii=false)",
        "list",
        "length",
        "first",
        "last",
        "join(', ')",
        "default('x')",
        "int",
        "float",
        "items",
        "replace('a', 'bb')",
        "reverse",
        "sort",
        "unique",
        "map('upper')",
        "selectattr('role', 'equalto', 'user')",
        "indent(3)",
        "escape",
        "rejectattr('content')",
        "dictsort",
        "tojson(indent=none, separators=['ab', 'c'])",
        "batch(2)",
        "sum",
        "min",
        "max",
        "abs",
        "round",
        "title",
    ];
    let methods = [
        "strip()",
        "split('a')",
        "split()",
        "startswith('a')",
        "endswith(('a', 'b'))",
        "lstrip('\\n')",
        "rstrip()",
        "upper()",
        "items()",
        "keys()",
        "get('content', '')",
        "replace('a', 'b')",
        "find('a')",
        "rfind('b')",
        "index('a')",
        "partition(' ')",
        "rpartition(' ')",
        "rsplit(' ', 1)",
        "rsplit('')",
        "removeprefix('a')",
        "removesuffix('b')",
        "title()",
        "count('a')",
        "join(['a', 'b'])",
        "format(1)",
        "splitlines()",
        "rsplit(1)",
        "index(1)",
        "partition('')",
    ];
    let tests = [
        "defined",
        "none",
        "string",
        "mapping",
        "iterable",
        "sequence",
        "number",
        "true",
        "not defined",
        "undefined",
        "boolean",
        "sameas(1)",
    ];
    let signs = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">=", "in", "not in", "and", "or"];
    match dice.below(10) {
        0 | 1 => format!("({a}) {} ({b})", dice.one_of(&signs)),
        2..=4 => format!("({a})|{}", dice.one_of(&filters)),
        5 | 6 => format!("({a}).{}", dice.one_of(&methods)),
        7 => format!("({a}) is {}", dice.one_of(&tests)),
        8 => format!("({a})[{}]", dice.one_of(&["0", "-1", "1:", ":2", "::-1", "'content'", "99"])),
        _ => format!("({a}) if ({b}) else not ({a})"),
    }
}

/// A JSON value as YAML in blocks, some of its values with names and used again.
pub fn yaml(dice: &mut Dice, value: &Value) -> String {
    let mut out = String::new();
    block(dice, value, 0, &mut 0, &mut out);
    out
}

fn block(dice: &mut Dice, value: &Value, depth: usize, anchors: &mut usize, out: &mut String) {
    if depth > 0 && *anchors > 0 && dice.once_in(20) {
        let known = *anchors + usize::from(dice.once_in(20));
        let _ = writeln!(out, " *a{}", dice.below(known));
        return;
    }
    if depth > 0 && dice.once_in(10) {
        let _ = write!(out, " &a{anchors}");
        *anchors += 1;
    }
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(all) if !all.is_empty() => {
            out.push_str(if depth > 0 { "\n" } else { "" });
            for (key, it) in all {
                let _ = write!(out, "{pad}{}:", if dice.once_in(20) { format!("{key:?}") } else { key.clone() });
                block(dice, it, depth + 1, anchors, out);
            }
        }
        Value::Array(all) if !all.is_empty() => {
            out.push('\n');
            for it in all {
                let _ = write!(out, "{pad}-");
                block(dice, it, depth + 1, anchors, out);
            }
        }
        Value::String(text) if dice.once_in(3) && !text.contains('\n') => {
            let _ = writeln!(out, " {text}");
        }
        Value::String(text) if dice.once_in(10) => {
            let _ = writeln!(out, " |\n{pad}  {}", text.replace('\n', "\n  "));
        }
        Value::Null => out.push_str(if dice.once_in(2) { "\n" } else { " ~\n" }),
        Value::Bool(it) if dice.once_in(3) => out.push_str(if *it { " yes\n" } else { " no\n" }),
        Value::Number(_) if dice.once_in(8) => {
            let _ = writeln!(out, " {}", dice.one_of(&[".inf", ".nan", "0x1f", "1_000", "2e-4"]));
        }
        other => {
            let _ = writeln!(out, " {other}");
        }
    }
}
