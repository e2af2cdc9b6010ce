use serde_json::{Map, Value};

/// A `config.json`, key by key. `null` is absence.
pub(crate) struct Keys<'a> {
    pub(super) raw: &'a Map<String, Value>,
}

/// What was found, or what is wrong with it.
pub(crate) type Parsed<T> = std::result::Result<T, String>;

/// No model has as many.
const MAX_LAYERS: usize = 1 << 16;
/// No size is as large: products of two, and some more, are numbers of the machine.
const SIZES: usize = 1 << 31;

impl<'a> Keys<'a> {
    pub(super) fn new(raw: &'a Map<String, Value>) -> Keys<'a> {
        Keys { raw }
    }

    /// The value of a key that is there and not `null`.
    pub(crate) fn given(&self, key: &str) -> Option<&'a Value> {
        self.raw.get(key).filter(|it| !it.is_null())
    }

    /// Whether the file has the key, be it `null`.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.raw.contains_key(key)
    }

    pub(crate) fn size(&self, key: &str, default: Option<usize>) -> Parsed<usize> {
        let found = match (self.raw.get(key), default) {
            (None | Some(Value::Null), Some(it)) => it,
            (None | Some(Value::Null), None) => return Err(format!("{key} is missing")),
            (Some(value), _) => {
                value.as_u64().ok_or_else(|| format!("{key} is {value}, expected a whole number"))? as usize
            }
        };
        // Refused here, since lists of so many layers are made while the rest is read.
        if matches!(key, "num_hidden_layers" | "num_layers" | "n_layer") && found > MAX_LAYERS {
            return Err(format!("{key} is {found}, which no model has"));
        }
        if found >= SIZES {
            return Err(format!("{key} is {found}, more than any model has"));
        }
        Ok(found)
    }

    pub(crate) fn float(&self, key: &str, default: f64) -> Parsed<f64> {
        number(self.raw, key)?.map_or(Ok(default), Ok)
    }

    /// A number above 0; `default` where the key is absent, and none where it is null.
    pub(crate) fn positive(&self, key: &str, default: Option<f64>) -> Parsed<Option<f64>> {
        if !self.has(key) {
            return Ok(default);
        }
        match number(self.raw, key)? {
            Some(it) if !((it as f32).is_finite() && it as f32 > 0.0) => {
                Err(format!("{key} is {it}, expected a number above 0"))
            }
            other => Ok(other),
        }
    }

    /// What is added to a variance before its root is taken: less than nothing makes NaN of some inputs.
    pub(crate) fn epsilon(&self, key: &str, default: f64) -> Parsed<f32> {
        let value = self.float(key, default)?;
        let narrow = value as f32;
        if narrow.is_finite() && narrow >= 0.0 {
            return Ok(narrow);
        }
        Err(format!("{key} is {value}, expected a small number that is not negative"))
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Parsed<bool> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or(format!("{key} is {value}, expected true or false")),
        }
    }

    pub(crate) fn eos(&self) -> Vec<u32> {
        let id = |it: &Value| it.as_u64().and_then(|it| u32::try_from(it).ok());
        match self.raw.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
            Some(one) => id(one).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// Refuses a name that is none of `names`, the first of which is the usual one.
    pub(crate) fn expect(&self, key: &str, names: &[&str]) -> Parsed<()> {
        match self.raw.get(key).and_then(Value::as_str) {
            Some(other) if !names.contains(&other) => Err(format!("{key} is {other}; only {} is supported", names[0])),
            _ => Ok(()),
        }
    }

    pub(crate) fn dropout_notes(&self, keys: &[&str]) -> Vec<String> {
        let set = |key: &&&str| self.raw.get(**key).and_then(Value::as_f64).is_some_and(|it| it > 0.0);
        keys.iter().filter(set).map(|key| format!("the base model's {key} is not applied; --lora-dropout is")).collect()
    }
}

pub(super) fn number(map: &Map<String, Value>, key: &str) -> Parsed<Option<f64>> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or(format!("{key} is {value}, expected a number")),
    }
}
