//! Inputs that are nearly right: a good one with some changes, to its bytes or to its structure.

use crate::Dice;
use serde_json::{Map, Value, json};

/// Most values and bytes of text that come by repetition in one place.
const LONGEST: usize = 1 << 18;

/// Changes one to four places of a text or file: bits, bytes, numbers at their limits, pieces cut, doubled or moved.
pub fn bytes(dice: &mut Dice, good: &[u8]) -> Vec<u8> {
    let mut all = good.to_vec();
    for _ in 0..1 + dice.below(4) {
        let at = dice.below(all.len());
        let end = (at + 1 + dice.below(16)).min(all.len());
        match dice.below(8) {
            0 if !all.is_empty() => all[at] ^= 1 << dice.below(8),
            1 if !all.is_empty() => all[at] = dice.below(256) as u8,
            2 => all.truncate(at),
            3 => drop(all.drain(at..end.max(at))),
            4 => {
                let piece = all[at..end.max(at)].to_vec();
                let to = dice.below(all.len() + 1);
                all.splice(to..to, piece);
            }
            5 => {
                let number = *dice.one_of(&[0u64, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX]);
                let width = *dice.one_of(&[1, 2, 4, 8]);
                all.iter_mut().skip(at).zip(&number.to_le_bytes()[..width]).for_each(|(to, from)| *to = *from);
            }
            6 => {
                let text = *dice.one_of(&[
                    "{", "}", "[", "]", "\"", "\\u0000", ",", ":", "\n", "\0", "-1", "1e999", "{{", "{%", "%}",
                ]);
                all.splice(at..at, text.bytes());
            }
            _ => all.splice(at..at, vec![*dice.one_of(b"[{(\"a 0"); 1 << dice.below(12)]).for_each(drop),
        }
    }
    all
}

/// Changes one to three places of a JSON document: values of another kind or size, keys left out, doubled or of another name.
pub fn json(dice: &mut Dice, good: &Value) -> Value {
    let mut all = good.clone();
    for _ in 0..1 + dice.below(3) {
        let mut count = 0;
        walk(&mut all, &mut |_| count += 1);
        let (chosen, mut at) = (dice.below(count), 0);
        let mut dice = Dice::new(dice.below(usize::MAX) as u64);
        walk(&mut all, &mut |it| {
            at += 1;
            if at - 1 == chosen {
                change(&mut dice, it);
            }
        });
    }
    all
}

/// An object with some more keys, of which `choices` lists the values that it may have; those that it has are replaced.
pub fn with(dice: &mut Dice, good: &Value, choices: &Value) -> Value {
    let mut all = good.clone();
    let keys: Vec<_> = choices.as_object().into_iter().flatten().collect();
    if let Value::Object(all) = &mut all {
        for _ in 0..dice.below(4).min(keys.len()) {
            let (key, values) = dice.one_of(&keys);
            all.insert((*key).clone(), dice.one_of(values.as_array().map_or(&[], Vec::as_slice)).clone());
        }
    }
    all
}

/// A changed document as text, at times no JSON any more.
pub fn document(dice: &mut Dice, good: &Value) -> Vec<u8> {
    let text = json(dice, good).to_string().into_bytes();
    if dice.once_in(4) { bytes(dice, &text) } else { text }
}

fn walk(value: &mut Value, visit: &mut impl FnMut(&mut Value)) {
    visit(value);
    match value {
        Value::Array(all) => all.iter_mut().for_each(|it| walk(it, visit)),
        Value::Object(all) => all.values_mut().for_each(|it| walk(it, visit)),
        _ => {}
    }
}

fn change(dice: &mut Dice, value: &mut Value) {
    match (dice.below(3), &mut *value) {
        (0, Value::Object(all)) if !all.is_empty() => {
            let key = all.keys().nth(dice.below(all.len())).cloned().expect("there are so many");
            let old = all.remove(&key);
            if dice.once_in(2) {
                all.insert(format!("{key}_"), old.expect("it was there"));
            }
        }
        (0, Value::Array(all)) if !all.is_empty() => {
            let at = dice.below(all.len());
            let it = all.remove(at);
            if dice.once_in(2) {
                let times = at_most(1 << dice.below(8), &it);
                all.extend(vec![it; times]);
            }
        }
        (0, Value::Number(number)) => {
            let was = number.as_f64().unwrap_or(0.0);
            *value = json!(*dice.one_of(&[was + 1.0, was - 1.0, -was, was * 2.0, was / 2.0, was * 1e9, 0.0]));
        }
        (0, it @ Value::String(_)) => {
            let times = at_most(1 << dice.below(10), it);
            *value = json!(it.as_str().unwrap_or_default().repeat(times));
        }
        _ => *value = odd(dice),
    }
}

/// As often as that, or as there is room for it: what is repeated three times, each time a hundredfold, would fill the memory.
fn at_most(times: usize, value: &Value) -> usize {
    times.min(LONGEST / size(value)).max(1)
}

/// Values, and bytes of text.
fn size(value: &Value) -> usize {
    1 + match value {
        Value::String(text) => text.len(),
        Value::Array(all) => all.iter().map(size).sum(),
        Value::Object(all) => all.iter().map(|(key, it)| key.len() + size(it)).sum(),
        _ => 0,
    }
}

fn odd(dice: &mut Dice) -> Value {
    let depth = 1 << dice.below(8);
    let texts = ["", "a", "\u{0}", "../../etc", "float16", "(((((a+)+)+)+)+)$", "\u{202e}", "[", "1e400", "-1"];
    let text = *dice.one_of(&texts);
    match dice.below(17) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(1),
        5 => json!(i64::MAX),
        6 => json!(u64::MAX),
        7 => json!(1e308),
        8 => json!(-0.5),
        9 => json!(65_537),
        10 => json!([]),
        11 => json!({}),
        12 => json!([1, "a", null]),
        13 => json!({ "a": { "b": 1 } }),
        14 => json!(text),
        15 => (0..depth).fold(Value::Null, |deep, _| Value::Array(vec![deep])),
        _ => Value::Object(Map::from_iter([("type".to_owned(), json!("made_up"))])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_input_and_another_one_another() {
        let good = json!({ "a": [1, 2, { "b": "c" }], "d": null });
        let of = |seed| (json(&mut Dice::new(seed), &good), bytes(&mut Dice::new(seed), b"a file of some bytes"));
        assert_eq!(of(1), of(1));
        let all: std::collections::BTreeSet<String> = (0..100).map(|it| of(it).0.to_string()).collect();
        assert!(all.len() > 50, "{}", all.len());
        bytes(&mut Dice::new(1), b"");
    }

    #[test]
    fn what_is_long_is_not_repeated() {
        let long = "a".repeat(LONGEST - LONGEST / 8);
        for good in [json!(long), json!([[long]])] {
            let longest = (0..100).map(|seed| size(&json(&mut Dice::new(seed), &good))).max().unwrap();
            assert!((long.len()..2 * LONGEST).contains(&longest), "{longest}");
        }
    }
}
