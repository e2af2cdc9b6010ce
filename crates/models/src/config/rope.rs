use super::keys::{Keys, Parsed, number};
use halfbyte_ops::rope::{Pairs, RopeScaling, RopeSpec};
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
    let spec = of(keys, (nested, false), (head_dim, max_position, theta), &mut notes)?;
    Ok((spec, notes))
}

/// [`spec`], or, where a file has none, what gpt-oss was made with.
pub(super) fn oss(keys: &Keys<'_>, sizes: (usize, usize), theta: f64) -> Parsed<(RopeSpec, Vec<String>)> {
    let (head_dim, max_position) = sizes;
    let (found, notes) = spec(keys, sizes, theta)?;
    if keys.given("rope_scaling").is_some() || keys.given("rope_parameters").is_some() {
        return Ok((found, notes));
    }
    let scaling = RopeScaling::Yarn {
        factor: 32.0,
        original_max_position: 4096,
        attention_factor: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: None,
        mscale_all_dim: None,
        truncate: false,
    };
    Ok((RopeSpec { theta: found.theta, channels: head_dim, max_position, scaling, pairs: Pairs::Halves }, notes))
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
        found.push(of(keys, (&nested, false), (head_dim, max_position, theta), &mut notes)?);
    }
    Ok((found, notes))
}

/// The one of GPT-NeoX: of as much of every head as `rotary_pct` says, a quarter where it does not.
pub(super) fn neox(keys: &Keys<'_>, (head_dim, max_position): (usize, usize)) -> Parsed<(RopeSpec, Vec<String>)> {
    let empty = Map::new();
    let nested = object(keys, "rope_scaling")?.or(object(keys, "rope_parameters")?).unwrap_or(&empty);
    let theta = number(nested, "rope_theta")?.map_or_else(|| keys.float("rotary_emb_base", 10_000.0), Ok)?;
    let share = number(nested, "partial_rotary_factor")?.map_or_else(|| keys.float("rotary_pct", 0.25), Ok)?;
    let mut notes = Vec::new();
    let channels = share_of(head_dim, share)?;
    let spec = of(keys, (nested, true), (channels, max_position, theta), &mut notes)?;
    Ok((spec, notes))
}

/// The channels of a share of a head.
fn share_of(head_dim: usize, share: f64) -> Parsed<usize> {
    let channels = (head_dim as f64 * share) as usize;
    if channels > 0 && channels <= head_dim {
        return Ok(channels);
    }
    Err(format!("partial_rotary_factor is {share}, expected a share of heads of {head_dim} channels"))
}

/// The one of Phi-3: of as much of every head as `partial_rotary_factor` says, plain or by longrope, which older files call `su` or `yarn`.
pub(super) fn of_part(
    keys: &Keys<'_>,
    (head_dim, max_position): (usize, usize),
    (default_theta, default_original): (f64, usize),
) -> Parsed<(Vec<RopeSpec>, Vec<String>)> {
    let empty = Map::new();
    let nested = object(keys, "rope_scaling")?.or(object(keys, "rope_parameters")?).unwrap_or(&empty);
    let theta = number(nested, "rope_theta")?.map_or_else(|| keys.float("rope_theta", default_theta), Ok)?;
    if !(theta.is_finite() && theta > 0.0) {
        return Err(format!("rope_theta is {theta}, expected a number above 0"));
    }
    let share = number(nested, "partial_rotary_factor")?.or(number(keys.raw, "partial_rotary_factor")?).unwrap_or(1.0);
    let channels = share_of(head_dim, share)?;
    let kind =
        ["rope_type", "type"].iter().find_map(|key| nested.get(*key).and_then(Value::as_str)).unwrap_or("default");
    let scaling = match kind {
        "default" => RopeScaling::None,
        "longrope" | "su" | "yarn" => {
            let original = keys.size("original_max_position_embeddings", Some(default_original))?;
            longrope(nested, original, max_position)?
        }
        other => return Err(format!("rope type {other} is not supported here; supported are default and longrope")),
    };
    Ok((vec![RopeSpec { theta, channels, max_position, scaling, pairs: Pairs::Halves }], Vec::new()))
}

fn longrope(nested: &Map<String, Value>, original: usize, max_position: usize) -> Parsed<RopeScaling> {
    let list = |key: &str| -> Parsed<Vec<f64>> {
        let all = nested.get(key).and_then(Value::as_array).ok_or(format!("rope type longrope needs {key}, a list"))?;
        all.iter().map(|it| it.as_f64().ok_or(format!("{key} holds {it}, expected numbers"))).collect()
    };
    let factor = number(nested, "factor")?.unwrap_or(max_position as f64 / original.max(1) as f64);
    let grown = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    let attention_factor = number(nested, "attention_factor")?.unwrap_or(grown);
    if !(attention_factor.is_finite() && attention_factor > 0.0) {
        return Err(format!(
            "rope type longrope: the factor on scores is {attention_factor}, expected a number above 0"
        ));
    }
    let (short, long) = (list("short_factor")?, list("long_factor")?);
    Ok(RopeScaling::LongRope { short, long, original_max_position: original, attention_factor })
}

/// One rotation, of the settings in `nested`; `in_part` if a share of heads is meant.
fn of(
    keys: &Keys<'_>,
    (nested, in_part): (&Map<String, Value>, bool),
    (head_dim, max_position, theta): (usize, usize, f64),
    notes: &mut Vec<String>,
) -> Parsed<RopeSpec> {
    if !(theta.is_finite() && theta > 0.0) {
        return Err(format!("rope_theta is {theta}, expected a number above 0"));
    }
    let kind =
        ["rope_type", "type"].iter().find_map(|key| nested.get(*key).and_then(Value::as_str)).unwrap_or("default");
    if !in_part {
        notes.extend(partial(keys, nested, kind)?);
    }
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
    Ok(RopeSpec { theta, channels: head_dim, max_position, scaling, pairs: Pairs::Halves })
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
