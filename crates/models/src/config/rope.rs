use super::keys::{Keys, Parsed, number};
use halfbyte_ops::rope::{RopeScaling, RopeSpec};
use serde_json::{Map, Value};

/// Keys of every kind.
const COMMON: [&str; 4] = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];

/// Rotary settings: `rope_parameters` (version 5), or `rope_theta` and `rope_scaling` (before), with what a user should know.
///
/// As in transformers 5 a `rope_scaling` that is not empty wins over `rope_parameters`, and an
/// `original_max_position_embeddings` outside of both over one inside.
pub(super) fn spec(
    keys: &Keys<'_>,
    (head_dim, max_position): (usize, usize),
    default_theta: f64,
) -> Parsed<(RopeSpec, Vec<String>)> {
    let mut notes = Vec::new();
    let empty = Map::new();
    let (scaling, parameters) = (object(keys, "rope_scaling")?, object(keys, "rope_parameters")?);
    if scaling.is_some() && parameters.is_some() && scaling != parameters {
        notes.push(
            "config.json has rope_scaling and rope_parameters; rope_scaling is used, as in transformers".to_owned(),
        );
    }
    let nested = scaling.or(parameters).unwrap_or(&empty);
    let theta = number(nested, "rope_theta")?.map_or_else(|| keys.float("rope_theta", default_theta), Ok)?;
    let spec = of(keys, nested, (head_dim, max_position, theta), &mut notes)?;
    Ok((spec, notes))
}

/// Those of layers that see all keys and of those with a window, as Gemma 3 has them: under `full_attention` and `sliding_attention` in
/// `rope_parameters`, or, in files of before, `rope_theta` with `rope_scaling` for the former and `rope_local_base_freq` for the latter.
pub(super) fn by_window(
    keys: &Keys<'_>,
    (head_dim, max_position): (usize, usize),
) -> Parsed<(Vec<RopeSpec>, Vec<String>)> {
    const KINDS: [(&str, &str, f64); 2] =
        [("full_attention", "rope_theta", 1e6), ("sliding_attention", "rope_local_base_freq", 1e4)];
    let (parameters, scaling) = (object(keys, "rope_parameters")?, object(keys, "rope_scaling")?);
    let (mut notes, mut found) = (Vec::new(), Vec::new());
    for (kind, theta_key, default) in KINDS {
        let mut nested = match parameters.and_then(|it| it.get(kind)) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(map)) => map.clone(),
            Some(other) => return Err(format!("rope_parameters: {kind} is {other}, expected an object")),
        };
        if kind == "full_attention" {
            nested.extend(scaling.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        }
        let theta = number(&nested, "rope_theta")?.map_or_else(|| keys.float(theta_key, default), Ok)?;
        found.push(of(keys, &nested, (head_dim, max_position, theta), &mut notes)?);
    }
    Ok((found, notes))
}

/// One rotation, of the settings in `nested`.
fn of(
    keys: &Keys<'_>,
    nested: &Map<String, Value>,
    (head_dim, max_position, theta): (usize, usize, f64),
    notes: &mut Vec<String>,
) -> Parsed<RopeSpec> {
    if !(theta.is_finite() && theta > 0.0) {
        return Err(format!("rope_theta is {theta}, expected a number above 0"));
    }
    let kind =
        ["rope_type", "type"].iter().find_map(|key| nested.get(*key).and_then(Value::as_str)).unwrap_or("default");
    notes.extend(partial(keys, nested, kind)?);
    let inner = number(nested, "original_max_position_embeddings")?;
    let original =
        number(keys.raw, "original_max_position_embeddings")?.or(inner).map_or(max_position, |it| it as usize);
    let scaling = scaling_of(kind, nested, original)?;
    let known = |key: &&String| COMMON.contains(&key.as_str()) || settings(kind).contains(&key.as_str());
    let ignored: Vec<&str> =
        nested.iter().filter(|it| !it.1.is_null()).map(|it| it.0).filter(|it| !known(it)).map(String::as_str).collect();
    if !ignored.is_empty() {
        let named =
            if nested.contains_key("rope_type") || nested.contains_key("type") { "is" } else { "is not named, so" };
        notes.push(format!(
            "the rope type {named} {kind}, which has no use for {}: positions are rotated without; name another rope_type in config.json if that is not meant",
            ignored.join(", ")
        ));
    }
    Ok(RopeSpec { theta, head_dim, max_position, scaling })
}

/// The object under a key; none where it is absent, `null` or empty.
fn object<'a>(keys: &Keys<'a>, key: &str) -> Parsed<Option<&'a Map<String, Value>>> {
    match keys.given(key) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map).filter(|it| !it.is_empty())),
        Some(other) => {
            Err(format!("{key} is {other}, expected an object such as {{\"rope_type\": \"linear\", \"factor\": 2.0}}"))
        }
    }
}

/// Settings of a kind beyond those of all.
fn settings(kind: &str) -> &'static [&'static str] {
    match kind {
        "linear" => &["factor"],
        "dynamic" => &["factor", "original_max_position_embeddings"],
        "llama3" => &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
        "yarn" => &[
            "factor",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
            "original_max_position_embeddings",
        ],
        _ => &[],
    }
}

fn scaling_of(kind: &str, nested: &Map<String, Value>, original: usize) -> Parsed<RopeScaling> {
    let need = |key: &str| match number(nested, key)? {
        None => Err(format!("rope type {kind} needs {key}")),
        Some(it) if it > 0.0 => Ok(it),
        Some(it) => Err(format!("rope type {kind}: {key} is {it}, expected a number above 0")),
    };
    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: need("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: need("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_max_position: original,
        },
        "yarn" => RopeScaling::Yarn {
            factor: need("factor")?,
            beta_fast: number(nested, "beta_fast")?.unwrap_or(32.0),
            beta_slow: number(nested, "beta_slow")?.unwrap_or(1.0),
            attention_factor: number(nested, "attention_factor")?,
            mscale: number(nested, "mscale")?,
            mscale_all_dim: number(nested, "mscale_all_dim")?,
            truncate: nested.get("truncate").and_then(Value::as_bool).unwrap_or(true),
            original_max_position: original,
        },
        other => {
            return Err(format!(
                "rope type {other} is not supported; supported are default, linear, dynamic, llama3, yarn"
            ));
        }
    })
}

/// These families rotate whole heads: in transformers the default kind has no use for the share, and the others fail.
fn partial(keys: &Keys<'_>, nested: &Map<String, Value>, kind: &str) -> Parsed<Option<String>> {
    let share = number(nested, "partial_rotary_factor")?.or(number(keys.raw, "partial_rotary_factor")?);
    match share.filter(|it| *it != 1.0) {
        None => Ok(None),
        Some(share) if kind == "default" => Ok(Some(format!(
            "partial_rotary_factor {share} is not applied: this architecture rotates whole heads, as in transformers"
        ))),
        Some(share) => {
            Err(format!("partial_rotary_factor is {share}; only heads that are rotated whole are supported"))
        }
    }
}
