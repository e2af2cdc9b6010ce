//! Damaged and mistaken files: an error that names the place, never a panic.

mod common;

use std::path::{Path, PathBuf};

use common::*;
use halfbyte_data::{DataConfig, Dataset, Error, Tokenizer, columns};
use parquet::file::{
    metadata::ParquetMetaDataWriter,
    reader::{FileReader, SerializedFileReader},
};

fn fails(path: &Path, config: &DataConfig) -> Error {
    Dataset::load(path, &tokenizer(), config).expect_err("this file cannot be loaded")
}

fn written(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = file(folder, name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn sample(folder: &tempfile::TempDir) -> Vec<u8> {
    let path = file(folder, "sample.parquet");
    write_parquet(&path, &[("text", &texts(300))], 100);
    std::fs::read(path).unwrap()
}

#[test]
fn what_is_not_a_data_file_is_said_plainly() {
    let folder = tempfile::tempdir().unwrap();
    let expect = |path: &Path, words: &str| {
        let message = fails(path, &config(8)).to_string();
        assert!(message.contains(words) && message.contains(path.to_str().unwrap()), "{message}");
    };
    expect(&file(&folder, "absent.parquet"), "no such file");
    expect(folder.path(), "a folder");
    expect(&written(&folder, "empty.parquet", b""), "the file is empty");
    expect(&written(&folder, "empty.jsonl", b""), "the file is empty");
    expect(&written(&folder, "page.parquet", b"<html>not found</html>"), "does not begin with the bytes PAR1");
    expect(&written(&folder, "a.bin", b"text,label\n"), "unknown format");
    expect(&written(&folder, "a.jsonl.bz2", b"BZh91AY&SY"), "compressed by bzip2");
    expect(&written(&folder, "a.jsonl.xz", b"\xfd7zXZ\0\0\x04"), "compressed by xz");
    expect(&written(&folder, "a.zip", b"PK\x03\x04\x14\0"), "compressed by zip");
    expect(&written(&folder, "a.txt", b"\xff\xfet\0"), "UTF-16");
    expect(&written(&folder, "lfs.parquet", b"version https://git-lfs.github.com/spec/v1\n"), "PAR1");
    expect(&written(&folder, "lfs.jsonl", b"version https://git-lfs.github.com/spec/v1\n"), "not JSON");
    expect(
        &written(&folder, "a.csv", b"text,n\nx,1\ny,2,3\n"),
        "line 3: 3 values, where the first line names 2 columns",
    );
    expect(&written(&folder, "a.csv", b"text\n\xff\n"), "line 2: not UTF-8");
    expect(&written(&folder, "a.json", b"[{\"text\": \"x\"}"), "ends inside the array");
    expect(&written(&folder, "a.json", b"[{\"text\": \"x\"} {}]"), "'{' where `,` or `]` is expected");
    expect(&written(&folder, "a.json", b"[,{\"text\": \"x\"}]"), "not JSON");
    expect(&written(&folder, "a.json", b"[{\"text\": \"x\"}] 7"), "after the end of the array");
    expect(&written(&folder, "a.json", b"[{\"text\": \"x\"},\n{\"text\": tru}]"), "line 2: not JSON");
    expect(&written(&folder, "a.json", b"{\"text\":\n \"x\"\n}\n{\"text\":\n 7}"), "line 4");
    expect(&written(&folder, "a.json", b"{\"text\":\n \"x\"\n}\n{\"text\":\n tru}"), "line 5");
    expect(&written(&folder, "a.arrow", b"ARROW1\0\0rubbish"), "corrupt Arrow");
    expect(&written(&folder, "a.arrow", b"\xff\xff\xff\xff\x10\0\0\0rubbish"), "corrupt Arrow");
    expect(&written(&folder, "blank.jsonl", b"\n \n"), "no usable rows");
    expect(&written(&folder, "magic.parquet", b"PAR1"), "corrupt parquet");
}

#[test]
fn json_errors_name_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let expect = |second: &[u8], words: &[&str]| {
        let bytes = [b"{\"text\": \"good\"}\n\n", second, b"\n"].concat();
        let message = fails(&written(&folder, "a.jsonl", &bytes), &config(8)).to_string();
        assert!(message.contains("line 3") && words.iter().all(|word| message.contains(word)), "{message}");
    };
    expect(b"{\"text\": \"go", &["not JSON", "column 12"]);
    expect(b"{\"text\": \"\xff\xfe\"}", &["not UTF-8 at byte 10"]);
    expect(b"[1, 2]", &["an array"]);
    expect(b"7", &["a number"]);
    expect(b"{\"text\": 7, \"id\": \"a\"}", &["\"text\" holds number", "id: string"]);
    expect(&[b'['; 4_000], &["recursion limit"]);
}

#[test]
fn a_column_that_is_not_there_lists_those_that_are() {
    let folder = tempfile::tempdir().unwrap();
    let texts = texts(30);
    let (lines, parquet) = (file(&folder, "a.jsonl"), file(&folder, "a.parquet"));
    write_jsonl(&lines, &[("review", &texts), ("title", &texts)]);
    write_parquet(&parquet, &[("review", &texts)], 8);
    let message = fails(&lines, &config(8)).to_string();
    assert!(message.contains("no column \"text\"; the columns are review: string, title: string"), "{message}");
    let message = fails(&parquet, &config(8)).to_string();
    assert!(message.contains("no column \"text\"; the columns are label: Int64, review: Utf8"), "{message}");
    for (count, end) in [(40, "c39: string"), (41, "c39: string, and 1 more"), (43, "c39: string, and 3 more")] {
        let row: String = (0..count).map(|it| format!(",\"c{it}\": \"x\"")).collect();
        let many = written(&folder, "many.jsonl", format!("{{{}}}\n", &row[1..]).as_bytes());
        let message = fails(&many, &config(8)).to_string();
        assert!(message.ends_with(end), "{count}: {message}");
    }
    let config = DataConfig { columns: halfbyte_data::Columns::Text("label".into()), ..config(8) };
    let message = fails(&parquet, &config).to_string();
    assert!(message.contains("\"label\" holds Int64 where text is expected"), "{message}");
}

#[test]
fn a_truncated_parquet_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = sample(&folder);
    for keep in (4..bytes.len()).step_by(37).chain([bytes.len() - 1]) {
        let path = written(&folder, "cut.parquet", &bytes[..keep]);
        let error = fails(&path, &config(16));
        assert!(matches!(error, Error::CorruptParquet { .. }), "{keep} bytes: {error}");
        assert!(columns(&path).is_err(), "{keep} bytes");
    }
}

#[test]
fn a_flipped_bit_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = sample(&folder);
    let mut failed = 0;
    for place in (0..bytes.len()).step_by(13) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1 << (place % 8);
        let path = written(&folder, "flipped.parquet", &damaged);
        // Without checksums a flip inside a text is simply another text; what matters is that nothing panics.
        failed += usize::from(Dataset::load(&path, &tokenizer(), &config(16)).is_err());
    }
    assert!(failed > 10, "{failed} of {} flips were noticed", bytes.len() / 13);
}

#[test]
fn a_damaged_page_names_its_row_group() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = sample(&folder);
    let path = file(&folder, "sample.parquet");
    let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
    let (start, length) = reader.metadata().row_group(2).column(1).byte_range();
    bytes[start as usize..(start + length) as usize].fill(0xff);
    let error = fails(&written(&folder, "page.parquet", &bytes), &config(16));
    assert!(matches!(error, Error::CorruptParquet { row_group: Some(2), .. }), "{error}");
    assert!(error.to_string().contains("row group 2"), "{error}");
    let untouched = DataConfig { rows: Some(0..200), ..config(16) };
    let path = file(&folder, "page.parquet");
    assert!(Dataset::load(&path, &tokenizer(), &untouched).is_ok(), "row groups that are not asked for are not read");
}

#[test]
fn a_footer_that_promises_more_rows_than_there_are_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = sample(&folder);
    let reader = SerializedFileReader::new(std::fs::File::open(file(&folder, "sample.parquet")).unwrap()).unwrap();
    let mut groups = reader.metadata().row_groups().to_vec();
    groups[2] = groups[2].clone().into_builder().set_num_rows(110).build().unwrap();
    let promised = reader.metadata().clone().into_builder().set_row_groups(groups).build();
    let mut footer = Vec::new();
    ParquetMetaDataWriter::new(&mut footer, &promised).finish().unwrap();
    let old = 8 + u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap()) as usize;
    let path = written(&folder, "short.parquet", &[&bytes[..bytes.len() - old], &footer].concat());
    let error = fails(&path, &config(16)).to_string();
    assert!(error.contains("row group 2") && error.contains("10 rows fewer than the footer says"), "{error}");
}

#[test]
fn a_column_outside_the_file_names_its_row_group() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = sample(&folder);
    // The footer of the whole file behind too few bytes of pages: every offset still points to where pages were.
    let footer = 8 + u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap()) as usize;
    let moved = [b"PAR1", &bytes[bytes.len() - footer..]].concat();
    let error = fails(&written(&folder, "moved.parquet", &moved), &config(16)).to_string();
    assert!(error.contains("outside the file") && error.contains("row group"), "{error}");
}

/// A parquet file whose one column is nested so deep: the footer's version, its schema, no rows and no groups of them.
fn nested(depth: usize) -> Vec<u8> {
    let varint = |mut n: usize| {
        let mut bytes = Vec::new();
        while n >= 0x80 {
            bytes.push((n as u8) | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    };
    let group = [0x35, 0, 0x18, 1, b'a', 0x15, 2, 0];
    let mut footer = [&[0x15, 2, 0x19, 0xfc][..], &varint(depth + 1), &[0x48, 1, b'r', 0x15, 2, 0]].concat();
    (1..depth).for_each(|_| footer.extend(group));
    footer.extend([0x15, 12, 0x25, 0, 0x18, 1, b'b', 0x25, 0, 0]);
    footer.extend([0x16, 0, 0x19, 0x0c, 0]);
    [b"PAR1", &footer[..], &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat()
}

#[test]
fn columns_nested_without_end_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |depth| written(&folder, "nested.parquet", &nested(depth));
    assert_eq!(halfbyte_data::columns(&path(90)).unwrap().len(), 1);
    let message = halfbyte_data::columns(&path(100_000)).unwrap_err().to_string();
    assert!(message.contains("nested.parquet") && message.contains("nested more than 100 deep"), "{message}");
}

/// A claim of two gigabytes in a file of some hundred bytes, in each of the two places for one: refused before memory is asked for.
#[test]
fn parts_of_an_arrow_file_that_lie_outside_of_it_are_refused() {
    use arrow_array::{ArrayRef, RecordBatch, StringArray};
    let folder = tempfile::tempdir().unwrap();
    let texts: ArrayRef = std::sync::Arc::new(StringArray::from(vec!["a", "b"]));
    let batch = RecordBatch::try_from_iter([("text", texts)]).unwrap();
    let mut good = Vec::new();
    let mut writer = arrow_ipc::writer::FileWriter::try_new(&mut good, &batch.schema()).unwrap();
    writer.write(&batch).and_then(|()| writer.finish()).unwrap();
    drop(writer);
    let read =
        |bytes: &[u8]| columns(&written(&folder, "rows.arrow", bytes)).map(|it| it.len()).map_err(|it| it.to_string());
    assert_eq!(read(&good), Ok(1));
    let mut long = good.clone();
    let at = long.len() - 10;
    long[at..at + 4].copy_from_slice(&0x7fff_ffffi32.to_le_bytes());
    let refused = read(&long).unwrap_err();
    assert!(refused.contains("rows.arrow") && refused.contains("longer than the file"), "{refused}");
    // Of the one batch, the length of its body is the last number of the footer that is not zero but for its head's.
    let footer = good.len() - 10 - i32::from_le_bytes(good[at..at + 4].try_into().unwrap()) as usize;
    let parts = arrow_ipc::root_as_footer(&good[footer..at]).unwrap();
    let body = parts.recordBatches().unwrap().get(0).bodyLength().to_le_bytes();
    let place = footer + good[footer..at].windows(8).rposition(|it| it == body).unwrap();
    let mut wide = good.clone();
    wide[place..place + 8].copy_from_slice(&(1i64 << 40).to_le_bytes());
    let refused = read(&wide).unwrap_err();
    assert!(refused.contains("lie outside the file"), "{refused}");
}

#[test]
fn columns_that_are_not_asked_for_are_not_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = sample(&folder);
    let path = file(&folder, "sample.parquet");
    let intact = Dataset::load(&path, &tokenizer(), &config(16)).unwrap();
    let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
    for group in reader.metadata().row_groups() {
        let (start, length) = group.column(0).byte_range();
        bytes[start as usize..(start + length) as usize].fill(0xff);
    }
    let path = written(&folder, "label.parquet", &bytes);
    assert_eq!(Dataset::load(&path, &tokenizer(), &config(16)).unwrap(), intact);
}

#[test]
fn any_bytes_behind_the_magic_are_survived() {
    use proptest::prelude::*;
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    proptest!(ProptestConfig::with_cases(200), |(body in proptest::collection::vec(any::<u8>(), 0..200), parquet: bool)| {
        let length = (body.len() as u32).to_le_bytes();
        let bytes = if parquet { [b"PAR1", &body[..], &length, b"PAR1"].concat() } else { [b"{\"text\"", &body[..]].concat() };
        let path = written(&folder, "any", &bytes);
        prop_assert!(Dataset::load(&path, &tokenizer, &config(16)).is_err());
    });
}

#[test]
fn a_damaged_tokenizer_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Tokenizer::load(folder.path()).unwrap_err();
    assert!(matches!(&missing, Error::Missing { path } if path.ends_with("tokenizer.json")), "{missing}");
    let json = tokenizer_json().to_string();
    for keep in (0..json.len()).step_by(211) {
        let cut = json.char_indices().map(|(place, _)| place).find(|&place| place >= keep).unwrap_or(json.len());
        written(&folder, "tokenizer.json", &json.as_bytes()[..cut]);
        let error = Tokenizer::load(folder.path()).unwrap_err();
        assert!(matches!(error, Error::CorruptTokenizer { .. }), "{cut} bytes: {error}");
    }
    let mut bytes = json.clone().into_bytes();
    for place in (0..bytes.len()).step_by(17) {
        bytes[place] ^= 4;
        if let Ok(tokenizer) = Tokenizer::from_json(&bytes, special()) {
            tokenizer.encode("the good é").map(|ids| tokenizer.decode(&ids, true)).ok();
        }
        bytes[place] ^= 4;
    }
    written(&folder, "tokenizer.json", json.as_bytes());
    written(&folder, "tokenizer_config.json", b"{\"eos_token\": 7}");
    let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json") && error.contains("eos_token is 7"), "{error}");
}
