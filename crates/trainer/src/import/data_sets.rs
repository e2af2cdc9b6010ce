//! The data sets of another program's settings: lists of them in axolotl's files and TRL's, names that are looked up in
//! `dataset_info.json` in LLaMA-Factory's.

use super::{
    Import, Program,
    yaml::{is_nothing, scalar},
};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Keys that are read here.
pub(super) const KEYS: [&str; 6] =
    ["datasets", "test_datasets", "pretraining_dataset", "dataset", "eval_dataset", "dataset_dir"];

/// A data set as flags have it.
#[derive(Debug, Default, PartialEq)]
struct Source {
    data: Vec<String>,
    layout: Option<&'static str>,
    columns: Vec<(&'static str, String)>,
}

pub(super) fn take(import: &mut Import, keys: &Map<String, Value>, file: &Path) -> anyhow::Result<()> {
    let mut trained = Vec::new();
    let mut held_out = Vec::new();
    for key in ["datasets", "pretraining_dataset"] {
        listed(import, (key, keys.get(key)), &mut trained);
    }
    listed(import, ("test_datasets", keys.get("test_datasets")), &mut held_out);
    for (key, sources) in [("dataset", &mut trained), ("eval_dataset", &mut held_out)] {
        let Some(names) = keys.get(key).filter(|it| !is_nothing(it)) else { continue };
        if import.program == Program::LlamaFactory {
            registered(import, (key, names), keys, file, sources)?;
        } else if let Some(name) = scalar(names) {
            sources.push(Source { data: vec![name], ..Source::default() });
        }
    }
    import.sets = trained.len();
    rows(import, &trained);
    if let Some(first) = trained.first() {
        // Rows that are held out are read as those that train.
        let data = |sources: &[Source]| sources.iter().flat_map(|it| it.data.clone()).collect::<Vec<_>>();
        flag_of(import, "--data", data(&trained));
        flag_of(import, "--eval-data", data(&held_out));
        if held_out.iter().any(|it| (it.layout, &it.columns) != (first.layout, &first.columns)) {
            import
                .leave_out("eval", "the columns of held-out rows are not those of the others; see layout and columns");
        }
    }
    Ok(())
}

fn flag_of(import: &mut Import, flag: &str, values: Vec<String>) {
    if !values.is_empty() {
        import.ours.take([flag.to_owned()].into_iter().chain(values).map(Into::into).collect());
    }
}

/// The layout and the columns, where all data sets agree on them.
fn rows(import: &mut Import, sources: &[Source]) {
    let Some(first) = sources.first() else { return };
    if sources.iter().any(|it| (it.layout, &it.columns) != (first.layout, &first.columns)) {
        return import.leave_out(
            "datasets",
            "they differ in layout or columns, which are found in each by their names; look at them with `halfbyte data`",
        );
    }
    if let Some(layout) = first.layout {
        import.flag("layout", Some(layout.to_owned()));
    }
    if !first.columns.is_empty() {
        let columns: Vec<String> = first.columns.iter().map(|(role, name)| format!("{role}={name}")).collect();
        import.flag("columns", Some(columns.join(",")));
    }
}

/// A list of tables with `path`, `name`, `split`, `type`.
fn listed(import: &mut Import, (key, list): (&str, Option<&Value>), sources: &mut Vec<Source>) {
    let items = match list {
        Some(Value::Array(items)) => items.as_slice(),
        Some(it) if !is_nothing(it) => std::slice::from_ref(it),
        _ => return,
    };
    for (at, item) in items.iter().enumerate() {
        let key = format!("{key}[{at}]");
        let text = |name: &str| item.get(name).and_then(scalar).filter(|it| !it.is_empty());
        let Some(path) = scalar(item).or_else(|| text("path")) else {
            import.leave_out(&key, "has no path");
            continue;
        };
        let data = match item.get("data_files") {
            Some(Value::Array(files)) => files.iter().filter_map(scalar).collect(),
            Some(it) if !is_nothing(it) => scalar(it).into_iter().collect(),
            _ => vec![with_split(path, text("name"), text("split"))],
        };
        let mut source = Source { data, ..Source::default() };
        style(import, (&key, item), &mut source);
        sources.push(source);
    }
}

/// A name with the configuration and the split as `--data` has them.
fn with_split(path: String, config: Option<String>, split: Option<String>) -> String {
    let local = Path::new(&path).exists() || Path::new(&path).extension().is_some_and(|it| it != "0");
    let split = split.filter(|it| it != "train");
    match (config, split) {
        _ if local => path,
        (None, None) => path,
        (config, split) => {
            let config = config.map_or_else(String::new, |it| format!("{it}/"));
            format!("{path}:{config}{}", split.unwrap_or_else(|| "train".to_owned()))
        }
    }
}

/// How axolotl's `type` writes a row.
fn style(import: &mut Import, (key, item): (&str, &Value), source: &mut Source) {
    let text = |name: &str| item.get(name).and_then(scalar).filter(|it| !it.is_empty());
    let kind = item.get("type").and_then(scalar);
    source.layout = match kind.as_deref() {
        Some("alpaca") => Some("instruction"),
        Some("chat_template" | "sharegpt" | "alpaca_chat.load_qa" | "alpaca:chat") => Some("chat"),
        Some("completion" | "pretrain") => Some("text"),
        None if import.program != Program::Axolotl => None,
        None if item.is_string() => Some("text"),
        _ => {
            let why = format!(
                "the style {} is not known; rows are written as their columns' names say",
                item.get("type").unwrap_or(&Value::Null)
            );
            return import.leave_out(&format!("{key}.type"), &why);
        }
    };
    if source.layout == Some("chat") && kind.as_deref() != Some("alpaca:chat") {
        source.columns.extend(text("field_messages").map(|it| ("messages", it)));
    }
    let system = text("field_system").filter(|it| it != "system");
    source.columns.extend(system.map(|it| ("system", it)));
    if source.layout == Some("text") {
        source
            .columns
            .extend(text("field").or_else(|| text("text_column")).filter(|it| it != "text").map(|it| ("text", it)));
    }
    let known = [
        "path",
        "name",
        "split",
        "type",
        "ds_type",
        "data_files",
        "field_messages",
        "field_system",
        "field",
        "text_column",
        "trust_remote_code",
        "skip",
        "shards",
    ];
    for (name, value) in item.as_object().into_iter().flatten().filter(|it| !is_nothing(it.1)) {
        let usual = name == "message_property_mappings" && usual_properties(value);
        if !known.contains(&name.as_str()) && !usual && !is_usual_role(name, value) {
            import.leave_out(&format!("{key}.{name}"), "is not known here");
        }
    }
}

/// Messages have `role` and `content`, or `from` and `value`; nothing needs to be said of that.
fn usual_properties(value: &Value) -> bool {
    let of = |name: &'static str| value.get(name).and_then(Value::as_str).unwrap_or(name);
    [("role", "content"), ("from", "value")].contains(&(of("role"), of("content")))
        && value.as_object().is_some_and(|it| it.keys().all(|key| key == "role" || key == "content"))
}

fn is_usual_role(name: &str, value: &Value) -> bool {
    let usual: &[&str] = match name {
        "message_field_role" => &["role", "from"],
        "message_field_content" => &["content", "value"],
        // Only what an assistant says is learned, to the token that ends it.
        "roles_to_train" => return *value == Value::Array(vec!["assistant".into()]),
        "train_on_eos" => &["turn"],
        _ => return false,
    };
    value.as_str().is_some_and(|it| usual.contains(&it))
}

/// Names that LLaMA-Factory looks up in `dataset_info.json`, in `dataset_dir` or the folder `data`.
fn registered(
    import: &mut Import,
    (key, names): (&str, &Value),
    keys: &Map<String, Value>,
    file: &Path,
    sources: &mut Vec<Source>,
) -> anyhow::Result<()> {
    let dir = keys.get("dataset_dir").and_then(scalar).unwrap_or_else(|| "data".to_owned());
    let beside = file.parent().unwrap_or(Path::new("")).join(&dir);
    let dir = [PathBuf::from(&dir), beside].into_iter().find(|it| it.join(INFO).exists());
    let info: Map<String, Value> = match &dir {
        None => Map::new(),
        Some(dir) => {
            let path = dir.join(INFO);
            let text = halfbyte_files::read_text(&path)?;
            serde_json::from_str(&text).map_err(|it| crate::failure::user_error(format!("{}: {it}", path.display())))?
        }
    };
    let names = match names {
        Value::Array(items) => items.iter().filter_map(scalar).collect::<Vec<_>>().join(","),
        it => scalar(it).unwrap_or_default(),
    };
    for name in names.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        match (info.get(name), &dir) {
            (Some(entry), Some(dir)) => match described(import, (name, entry), dir, keys) {
                Some(source) => sources.push(source),
                None => import.leave_out(
                    &format!("{key}.{name}"),
                    "is fetched by a script, or from another hub; fetch it and name its files with data",
                ),
            },
            _ if name.contains('/') || Path::new(name).exists() => {
                sources.push(Source { data: vec![name.to_owned()], ..Source::default() });
            }
            _ => import.leave_out(
                &format!("{key}.{name}"),
                &format!("is in no {INFO} in dataset_dir or data; name its files with data"),
            ),
        }
    }
    Ok(())
}

const INFO: &str = "dataset_info.json";

/// An entry of `dataset_info.json`.
fn described(
    import: &mut Import,
    (name, entry): (&str, &Value),
    dir: &Path,
    keys: &Map<String, Value>,
) -> Option<Source> {
    let text = |key: &str| entry.get(key).and_then(scalar).filter(|it| !it.is_empty());
    let data = match (text("hf_hub_url"), text("file_name")) {
        (Some(hub), _) => with_split(hub, text("subset"), text("split")),
        (None, Some(file)) => dir.join(file).display().to_string(),
        (None, None) => return None,
    };
    let column = |key: &str| entry.get("columns")?.get(key).and_then(scalar);
    if keys.get("stage").and_then(Value::as_str) == Some("pt") {
        let columns = column("prompt").filter(|it| it != "text").map(|it| ("text", it)).into_iter().collect();
        return Some(Source { data: vec![data], layout: None, columns });
    }
    let chat = text("formatting").as_deref() == Some("sharegpt");
    let roles: &[(&str, &'static str, &str)] = match chat {
        true => {
            &[("messages", "messages", "conversations"), ("system", "system", "system"), ("tools", "tools", "tools")]
        }
        false => &[
            ("prompt", "instruction", "instruction"),
            ("query", "input", "input"),
            ("response", "output", "output"),
            ("system", "system", "system"),
        ],
    };
    let mut columns = Vec::new();
    for (theirs, ours, usual) in roles {
        columns.extend(column(theirs).filter(|it| it != usual).map(|it| (*ours, it)));
    }
    for other in ["history", "images", "videos", "audios", "chosen", "rejected", "kto_tag"] {
        if column(other).is_some() {
            import.leave_out(&format!("{name}.{other}"), "this column is not read here");
        }
    }
    // Either format is written by the model's template.
    Some(Source { data: vec![data], layout: Some("chat"), columns })
}
