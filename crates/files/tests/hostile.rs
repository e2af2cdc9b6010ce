//! Files that were damaged, cut off or made to deceive: each is refused with its name, or means what any other reader sees in
//! it. The other reader is the `safetensors` crate.

use halfbyte_files::{Dtype, Error, TensorFile, TensorSpec, TensorWriter};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::{fs, path::Path, sync::LazyLock};

/// A header of any text before some bytes.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn open(bytes: &[u8]) -> Result<TensorFile, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    fs::write(&path, bytes).unwrap();
    TensorFile::open(&path)
}

/// Expects a refusal that names the file and has all of these parts.
#[track_caller]
fn refused(bytes: &[u8], parts: &[&str]) {
    let Err(error) = open(bytes) else { panic!("taken for good; expected {parts:?}") };
    assert!(matches!(error, Error::File { .. }), "the contents are wrong, not the system: {error:?}");
    let text = error.to_string();
    for part in parts.iter().chain(&["weights.safetensors"]) {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert!(SafeTensors::deserialize(bytes).is_err(), "another reader takes what is refused here: {text}");
}

fn entry(dtype: &str, shape: &[u64], offsets: [u64; 2]) -> Value {
    json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets })
}

#[test]
fn what_is_no_safetensors_file() {
    refused(b"", &["not a safetensors file", "0 bytes"]);
    refused(&[1, 2, 3], &["not a safetensors file", "3 bytes"]);
    refused(b"PK\x03\x04 a zip archive, as pickles are", &["not a whole file of torch.save", "fetch it again"]);
    refused(&file("not JSON", b""), &["header is damaged"]);
    refused(&file("[]", b""), &["header is damaged"]);
    refused(&[&3u64.to_le_bytes()[..], &[0xff; 3]].concat(), &["header is damaged"]);
}

#[test]
fn a_header_that_claims_too_much() {
    for claimed in [29, 1 << 20, 1 << 40, u64::MAX - 7, u64::MAX] {
        let bytes = [&u64::to_le_bytes(claimed)[..], b"{\"a\":1}             "].concat();
        refused(&bytes, &["not a whole safetensors file", &claimed.to_string(), "28"]);
    }
}

#[test]
fn tensors_that_do_not_fill_their_place() {
    for (shape, offsets) in [
        (&[2u64, 2][..], [0u64, 12]),
        (&[2, 2], [0, 20]),
        (&[2, 2], [16, 0]),
        (&[1 << 62], [0, 0]),
        (&[1 << 32, 1 << 32], [0, 0]),
        (&[1 << 31, 1 << 31, 4], [0, 16]),
    ] {
        let header = json!({ "layer.weight": entry("F32", shape, offsets) }).to_string();
        refused(&file(&header, &[0; 16]), &["layer.weight", "does not fill its place"]);
    }
}

#[test]
fn tensors_beyond_the_end() {
    let header = json!({ "layer.weight": entry("F32", &[4], [0, 16]) }).to_string();
    refused(&file(&header, &[0; 15]), &["layer.weight", "is truncated"]);
    let header = json!({ "layer.weight": entry("U8", &[1], [u64::MAX - 1, u64::MAX]) }).to_string();
    refused(&file(&header, &[0; 15]), &["layer.weight", "is truncated"]);
}

#[test]
fn bytes_of_two_tensors_or_of_none() {
    let two = |a: [u64; 2], b: [u64; 2]| {
        let spec = |it: [u64; 2]| entry("U8", &[it[1] - it[0]], it);
        json!({ "a": spec(a), "b": spec(b) }).to_string()
    };
    refused(&file(&two([0, 8], [7, 16]), &[0; 16]), &["b overlaps a"]);
    refused(&file(&two([0, 16], [0, 16]), &[0; 16]), &["b overlaps a"]);
    refused(&file(&two([0, 8], [9, 16]), &[0; 16]), &["before b", "belong to no tensor"]);
    refused(&file(&two([1, 8], [8, 16]), &[0; 16]), &["before a", "belong to no tensor"]);
    refused(&file(&two([0, 8], [8, 16]), &[0; 17]), &["goes on after its last tensor"]);
    assert!(open(&file(&two([8, 16], [0, 8]), &[0; 16])).is_ok(), "in any order");
}

#[test]
fn a_name_that_stands_twice() {
    let a = entry("U8", &[4], [0, 4]).to_string();
    let b = entry("U8", &[4], [4, 8]).to_string();
    let text = format!("{{\"w\":{a},\"w\":{b}}}");
    // The other reader takes the last and then misses the bytes of the first.
    refused(&file(&text, &[0; 8]), &["\"w\" stands in it twice"]);
}

#[test]
fn entries_of_another_form() {
    for (value, part) in [
        (json!({ "dtype": "F99", "shape": [1], "data_offsets": [0, 4] }), "F99"),
        (json!({ "dtype": "F32", "shape": [-1], "data_offsets": [0, 4] }), "damaged"),
        (json!({ "dtype": "F32", "shape": [1.5], "data_offsets": [0, 4] }), "damaged"),
        (json!({ "dtype": "F32", "shape": [1], "data_offsets": [0] }), "damaged"),
        (json!({ "dtype": "F32", "shape": [1] }), "damaged"),
        (json!(7), "damaged"),
    ] {
        refused(&file(&json!({ "w": value }).to_string(), &[0; 4]), &[part]);
    }
    refused(&file("{\"__metadata__\":{\"format\":3}}", b""), &["damaged"]);
}

/// Tensors of several dtypes and shapes, one of them empty, one a single number.
fn specs() -> Vec<TensorSpec> {
    vec![
        TensorSpec::new("norm.weight", Dtype::Bf16, &[3]),
        TensorSpec::new("layer.weight", Dtype::F32, &[2, 3]),
        TensorSpec::new("nothing", Dtype::F16, &[0, 5]),
        TensorSpec::new("one", Dtype::I64, &[]),
        TensorSpec::new("codes", Dtype::U8, &[7]),
    ]
}

fn write(path: &Path, specs: &[TensorSpec]) -> Vec<Vec<u8>> {
    let mut writer = TensorWriter::create(path, specs.to_vec()).unwrap();
    let bytes = |it: &TensorSpec| (0..it.bytes()).map(|i| (i * 37 + it.name.len()) as u8).collect::<Vec<u8>>();
    let all: Vec<Vec<u8>> = specs.iter().map(bytes).collect();
    for (it, bytes) in specs.iter().zip(&all) {
        // In one piece and in many.
        let size = if it.name == "layer.weight" { 5 } else { bytes.len().max(1) };
        let mut pieces = bytes.chunks(size).peekable();
        if pieces.peek().is_none() {
            writer.write(&it.name, &[]).unwrap();
        }
        pieces.for_each(|piece| writer.write(&it.name, piece).unwrap());
    }
    writer.finish().unwrap();
    all
}

#[test]
fn what_is_written_is_read_here_and_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    let all = write(&path, &specs());
    let (ours, bytes) = (TensorFile::open(&path).unwrap(), fs::read(&path).unwrap());
    let theirs = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(ours.tensors().len(), 5);
    for (spec, data) in specs().iter().zip(&all) {
        let (it, that) = (ours.get(&spec.name).unwrap(), theirs.tensor(&spec.name).unwrap());
        assert_eq!((&it.shape, it.dtype, &ours.read(it).unwrap()), (&spec.shape, spec.dtype, data));
        assert_eq!((that.shape(), format!("{:?}", that.dtype()), that.data()), {
            (&spec.shape[..], spec.dtype.name().to_owned(), &data[..])
        });
        let mut part = vec![0; data.len() / 2];
        ours.read_part(it, data.len() - part.len(), &mut part).unwrap();
        assert_eq!(part, data[data.len() - part.len()..]);
    }
    let first = ours.tensors().values().map(|it| it.begin).min().unwrap();
    assert_eq!(first % 8, 0, "numbers are aligned in a mapped file");
}

#[test]
fn a_file_that_shrinks_while_it_is_open_is_an_error_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    write(&path, &specs());
    let file = TensorFile::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    let error = file.read(file.get("codes").unwrap()).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("weights.safetensors")), "{error:?}");
}

/// One change of a file's bytes.
#[derive(Clone, Debug)]
enum Change {
    Flip(usize, u8),
    Set(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Repeat(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    // Characters of JSON, so that the header often stays one.
    let character = prop::sample::select(b"0123456789,:[]{}\"eE-. UFI".to_vec());
    prop_oneof![
        (any::<usize>(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        (any::<usize>(), character.clone()).prop_map(|(at, to)| Change::Set(at, to)),
        any::<usize>().prop_map(Change::Cut),
        (any::<usize>(), prop::collection::vec(character, 1..4)).prop_map(|(at, text)| Change::Insert(at, text)),
        (any::<usize>(), any::<usize>()).prop_map(|(from, to)| Change::Repeat(from, to)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change, header: usize) {
    // Most of them in the header, where the meaning is.
    let within = |at: usize| if at.is_multiple_of(8) { at % bytes.len() } else { at % header };
    match change {
        Change::Flip(at, bit) => {
            let at = within(*at);
            bytes[at] ^= 1 << bit;
        }
        Change::Set(at, to) => {
            let at = within(*at);
            bytes[at] = *to;
        }
        Change::Cut(at) => bytes.truncate(at % bytes.len()),
        Change::Insert(at, text) => {
            let at = within(*at);
            bytes.splice(at..at, text.iter().copied());
        }
        Change::Repeat(from, to) => {
            let (from, to) = (within(*from), within(*to));
            let piece = bytes[from.min(to)..from.max(to)].to_vec();
            bytes.splice(to..to, piece);
        }
    }
}

/// A good file. Written once: a file that is to last is synced, which takes its time.
static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    write(&path, &specs());
    fs::read(&path).unwrap()
});

/// One change of what a header says, of the tensor that a number chooses.
#[derive(Clone, Debug)]
enum Lie {
    Begin(usize, i64),
    End(usize, i64),
    Move(usize, i64),
    Extent(usize, u64),
    Dtype(usize, &'static str),
    Length(i64),
}

fn lie() -> impl Strategy<Value = Lie> {
    let (at, by) = (any::<usize>(), -4i64..5);
    prop_oneof![
        (at, by.clone()).prop_map(|(at, by)| Lie::Begin(at, by)),
        (at, by.clone()).prop_map(|(at, by)| Lie::End(at, by)),
        (at, by.clone()).prop_map(|(at, by)| Lie::Move(at, by)),
        (at, prop::sample::select(vec![0, 1, 2, 1 << 32, 1 << 62, 1 << 63])).prop_map(|(at, to)| Lie::Extent(at, to)),
        (at, prop::sample::select(vec!["U8", "BF16", "F32", "I64", "BOOL"])).prop_map(|(at, to)| Lie::Dtype(at, to)),
        by.prop_map(Lie::Length),
    ]
}

/// The bytes of a file of such tensors of one extent, after some lies.
fn lying(extents: &[u64], lies: &[Lie]) -> Vec<u8> {
    let mut begin = 0;
    let place = |extent: &u64| {
        begin += extent;
        ("U8", *extent, [(begin - extent) as i64, begin as i64])
    };
    let mut all: Vec<(&str, u64, [i64; 2])> = extents.iter().map(place).collect();
    let mut len = extents.iter().sum::<u64>() as i64;
    for lie in lies {
        let count = all.len();
        match lie {
            Lie::Begin(at, by) => all[at % count].2[0] += by,
            Lie::End(at, by) => all[at % count].2[1] += by,
            Lie::Move(at, by) => all[at % count].2.iter_mut().for_each(|it| *it += by),
            Lie::Extent(at, to) => all[at % count].1 = *to,
            Lie::Dtype(at, to) => all[at % count].0 = to,
            Lie::Length(by) => len += by,
        }
    }
    let entry = |(i, (dtype, extent, offsets)): (usize, &(&str, u64, [i64; 2]))| {
        (format!("t{i}"), json!({ "dtype": dtype, "shape": [extent], "data_offsets": offsets }))
    };
    let header: serde_json::Map<String, Value> = all.iter().enumerate().map(entry).collect();
    file(&Value::Object(header).to_string(), &vec![7; len.max(0) as usize])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// A header's numbers are believed here exactly if they are elsewhere.
    #[test]
    fn a_header_that_lies_is_refused_by_all_or_by_none(
        extents in prop::collection::vec(0u64..6, 1..5),
        lies in prop::collection::vec(lie(), 0..4),
    ) {
        let bytes = lying(&extents, &lies);
        let (ours, theirs) = (open(&bytes), SafeTensors::deserialize(&bytes));
        prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?}", ours.err(), theirs.err());
    }

    /// Never a panic, never an allocation that a header asked for, never a byte from outside of a tensor, and never a tensor
    /// that another reader sees otherwise.
    #[test]
    fn any_file_is_refused_or_read_as_others_read_it(
        changes in prop::collection::vec(change(), 1..4),
        keep_length in any::<bool>(),
    ) {
        let mut bytes = WHOLE.clone();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for change in &changes {
            if bytes.len() > 8 {
                let header = header.min(bytes.len());
                let before = bytes.len();
                apply(&mut bytes, change, header);
                // As a forger would, who knows where the length is.
                if keep_length && bytes.len() > before {
                    let longer = (header - 8 + bytes.len() - before) as u64;
                    bytes[..8].copy_from_slice(&longer.to_le_bytes());
                }
            }
        }
        match open(&bytes) {
            Err(error) => prop_assert!(error.to_string().contains("weights.safetensors"), "{error}"),
            Ok(ours) => {
                let theirs = SafeTensors::deserialize(&bytes);
                prop_assert!(theirs.is_ok(), "another reader refuses it: {:?}", theirs.err());
                let theirs = theirs.unwrap();
                prop_assert_eq!(ours.tensors().len(), theirs.len());
                for (name, it) in ours.tensors() {
                    let that = theirs.tensor(name).unwrap();
                    prop_assert_eq!((&it.shape[..], &ours.read(it).unwrap()[..]), (that.shape(), that.data()));
                }
            }
        }
    }
}
