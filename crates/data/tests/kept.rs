//! What was made of rows as bytes: read again it is the same, damaged it is refused, and its fingerprint tells one from another.

mod common;

use common::*;
use halfbyte_data::{DataFiles, Dataset, Example, Part, Report, Tokenised};

/// Of so many rows; some are null or empty.
fn made(rows: usize) -> Tokenised {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    write_jsonl(&path, &[("text", &texts(rows))]);
    let files = DataFiles::find(&[path], Part::Train).unwrap();
    Tokenised::read(&files, &tokenizer(), &config(64)).unwrap()
}

fn bytes(of: &Tokenised) -> Vec<u8> {
    let mut bytes = Vec::new();
    of.write_to(&mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> std::io::Result<Tokenised> {
    Tokenised::read_from(&mut &bytes[..], bytes.len() as u64)
}

#[test]
fn what_was_written_is_read() {
    // Numbers are written in pieces: of 64 KiB some hold parts of one, one or several.
    for rows in [1, 90, 4000] {
        let all = made(rows);
        let written = bytes(&all);
        assert_eq!(read(&written).unwrap(), all, "{rows} rows");
        // Of a number each: ids in 4 bytes, a bit of the mask, and for each row its length and the hash of its contents.
        let (tokens, examples) = (all.dataset.tokens(), all.dataset.len());
        let report = serde_json::to_vec(&all.report).unwrap().len();
        assert_eq!(written.len(), 24 + report + 16 * examples + 4 * tokens + 8 * tokens.div_ceil(64));
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    let written = bytes(&made(90));
    for cut in [0, 10, 23, 24, 100, written.len() - 8, written.len() - 1] {
        assert!(read(&written[..cut]).is_err(), "the first {cut} bytes");
    }
    let more = [&written[..], &[0; 8]].concat();
    assert!(read(&more).is_err(), "eight bytes more");
    let number = |at: usize| u64::from_le_bytes(written[at..at + 8].try_into().unwrap());
    // Lengths of the report, rows and tokens that fit no memory, or another file.
    for at in [0, 8, 16] {
        for wrong in [u64::MAX, 1 << 60, number(at) + 1, number(at) - 1] {
            let mut other = written.clone();
            other[at..at + 8].copy_from_slice(&wrong.to_le_bytes());
            assert!(read(&other).is_err(), "{wrong} in place of {} at {at}", number(at));
        }
    }
    // A row of no token, and lengths that are not those of the tokens.
    let first = 24 + number(0) as usize;
    for wrong in [0, number(first) + 1, u64::MAX] {
        let mut other = written.clone();
        other[first..first + 8].copy_from_slice(&wrong.to_le_bytes());
        assert!(read(&other).is_err(), "a row of {wrong} tokens");
    }
}

#[test]
fn a_fingerprint_is_of_tokens_of_what_is_trained_and_of_lengths() {
    let of = |rows: &[(&[u32], &[bool])]| {
        let example = |(ids, mask): &(&[u32], &[bool])| Example { ids: ids.to_vec(), mask: mask.to_vec() };
        Dataset::from_examples(rows.iter().map(example)).unwrap().fingerprint()
    };
    let (ids, mask) = ([5, 6, 7, 8], [true; 4]);
    let all = [
        of(&[(&ids, &mask)]),
        of(&[(&[5, 6, 7, 9], &mask)]),
        of(&[(&ids, &[true, true, false, true])]),
        of(&[(&ids[..2], &mask[..2]), (&ids[2..], &mask[2..])]),
    ];
    for (i, one) in all.iter().enumerate() {
        assert!(all.iter().skip(i + 1).all(|other| other != one), "{i} of {all:?}");
    }
    assert_eq!(of(&[(&ids, &mask)]), all[0]);
    // Beyond the first piece that is summed up.
    let long: Vec<u32> = (0..100_000).collect();
    let trained = vec![true; long.len()];
    let mut other = long.clone();
    other[90_000] += 1;
    assert_ne!(of(&[(&long, &trained)]), of(&[(&other, &trained)]));
}

#[test]
fn reports_add_up_count_by_count() {
    let fields = |it: &Report| match serde_json::to_value(it).unwrap() {
        serde_json::Value::Object(fields) => fields,
        other => panic!("{other}"),
    };
    // Another number in each.
    let numbers = |from: u64| -> Report {
        let named = fields(&Report::default()).into_iter().zip(from..).map(|((name, _), it)| (name, it.into()));
        serde_json::from_value(serde_json::Value::Object(named.collect())).unwrap()
    };
    let mut sum = numbers(100);
    sum.add(&numbers(1000));
    let (sum, each) = (fields(&sum), [numbers(100), numbers(1000)].map(|it| fields(&it)));
    assert_eq!(sum.len(), 15);
    for (name, value) in &sum {
        let expected: u64 = each.iter().map(|it| it[name].as_u64().unwrap()).sum();
        assert_eq!(value.as_u64(), Some(expected), "{name}");
    }
    let it = numbers(100);
    assert_eq!(it.doubtful(), it.untrained + it.doubled_bos + it.unended);
}
