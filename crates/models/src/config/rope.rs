use super::keys::{Keys, Parsed, number};
use halfbyte_ops::rope::{RopeScaling, RopeSpec};
use serde_json::{Map, Value};

/// Rotary settings: `rope_parameters` (version 5), or `rope_theta` and `rope_scaling` (before).
pub(super) fn spec(keys: &Keys<'_>, head_dim: usize, max_position: usize) -> Parsed<RopeSpec> {
    let empty = Map::new();
    let nested = ["rope_parameters", "rope_scaling"]
        .iter()
        .find_map(|key| keys.raw.get(*key).and_then(Value::as_object))
        .unwrap_or(&empty);
    if let Some(share) = number(nested, "partial_rotary_factor")?.or(number(keys.raw, "partial_rotary_factor")?)
        && share != 1.0
    {
        return Err(format!("partial_rotary_factor is {share}; only heads that are rotated whole are supported"));
    }
    let theta = number(nested, "rope_theta")?.map_or_else(|| keys.float("rope_theta", 10000.0), Ok)?;
    if !(theta.is_finite() && theta > 0.0) {
        return Err(format!("rope_theta is {theta}, expected a number above 0"));
    }
    let kind =
        ["rope_type", "type"].iter().find_map(|key| nested.get(*key).and_then(Value::as_str)).unwrap_or("default");
    let need = |key: &str| match number(nested, key)? {
        None => Err(format!("rope type {kind} needs {key}")),
        Some(it) if it > 0.0 => Ok(it),
        Some(it) => Err(format!("rope type {kind}: {key} is {it}, expected a number above 0")),
    };
    let original = number(nested, "original_max_position_embeddings")?.map_or(max_position, |it| it as usize);
    let scaling = match kind {
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
    };
    Ok(RopeSpec { theta, head_dim, max_position, scaling })
}
