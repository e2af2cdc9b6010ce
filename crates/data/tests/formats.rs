//! Both formats give the same examples, whatever the layout of the file.

mod common;

use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, Float64Builder, Int64Builder, ListBuilder, StringBuilder, StructBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, DictionaryArray, Int64Array, LargeStringArray, StringArray, StringViewArray};
use arrow_schema::{DataType, Field};
use common::*;
use halfbyte_data::{ChatTemplate, ColumnNames, Columns, DataConfig, Dataset, Excess, LossOn, Report, columns};
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};

fn load(path: &std::path::Path, config: &DataConfig) -> (Dataset, Report) {
    Dataset::load(path, &tokenizer(), config).unwrap()
}

#[test]
fn parquet_and_json_lines_give_the_same_examples() {
    let folder = tempfile::tempdir().unwrap();
    let texts = texts(700);
    let lines = file(&folder, "a.jsonl");
    write_jsonl(&lines, &[("text", &texts)]);
    let expected = load(&lines, &config(16));
    assert_eq!(expected.1.rows_read, 700);
    assert_eq!((expected.1.null, expected.1.empty), (64, 126));
    assert_eq!(expected.1.rows_used as usize, expected.0.len());
    for group_rows in [1, 7, 256, 300, 10_000] {
        let path = file(&folder, "a.parquet");
        write_parquet(&path, &[("text", &texts)], group_rows);
        assert_eq!(load(&path, &config(16)), expected, "row groups of {group_rows}");
    }
}

#[test]
fn every_string_type_reads_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let texts = texts(60);
    let plain = StringArray::from_iter(texts.iter());
    let arrays: [(&str, ArrayRef); 4] = [
        ("plain", Arc::new(plain)),
        ("large", Arc::new(LargeStringArray::from_iter(texts.iter()))),
        ("view", Arc::new(StringViewArray::from_iter(texts.iter().map(Option::as_deref)))),
        ("dictionary", Arc::new(texts.iter().map(Option::as_deref).collect::<DictionaryArray<Int32Type>>())),
    ];
    let mut seen = Vec::new();
    for (name, array) in arrays {
        let path = file(&folder, name);
        write_arrays(&path, vec![("text", array)], 17);
        seen.push(load(&path, &config(64)));
    }
    assert!(seen.iter().all(|other| *other == seen[0]));
    assert_eq!(seen[0].0.len(), texts.iter().flatten().filter(|text| !text.trim().is_empty()).count());
}

#[test]
fn every_compression_reads_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let texts = texts(60);
    let read = |how: Compression| {
        let path = file(&folder, "a.parquet");
        write_compressed(&path, vec![("text", Arc::new(StringArray::from_iter(texts.iter())))], 17, how);
        load(&path, &config(64))
    };
    let expected = read(Compression::UNCOMPRESSED);
    let all = [
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ];
    for how in all {
        assert_eq!(read(how), expected, "{how:?}");
    }
}

#[test]
fn a_row_range_is_the_same_cut_in_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let texts: Vec<_> = (0..50).map(|row| Some(format!("row {row} good"))).collect();
    let (lines, parquet) = (file(&folder, "a.jsonl"), file(&folder, "a.parquet"));
    write_jsonl(&lines, &[("text", &texts)]);
    write_parquet(&parquet, &[("text", &texts)], 8);
    let arrow = file(&folder, "a.arrow");
    let columns: Vec<ArrayRef> = texts.chunks(20).map(|it| Arc::new(StringArray::from_iter(it)) as ArrayRef).collect();
    write_arrow(&arrow, "text", &columns);
    let whole = load(&lines, &config(32)).0;
    for range in [0..50, 0..8, 8..16, 7..9, 3..49, 49..50, 20..usize::MAX] {
        let config = DataConfig { rows: Some(range.clone()), ..config(32) };
        let (from_lines, report) = load(&lines, &config);
        assert_eq!(load(&parquet, &config), (from_lines.clone(), report), "{range:?}");
        assert_eq!(load(&arrow, &config), (from_lines.clone(), report), "{range:?}");
        let wanted = &(0..50).collect::<Vec<_>>()[range.start..range.end.min(50)];
        assert_eq!(report.rows_read as usize, wanted.len());
        let same = wanted.iter().zip(from_lines.rows()).all(|(&row, got)| got.ids == whole.row(row).ids);
        assert!(same && from_lines.len() == wanted.len(), "{range:?}");
    }
    for range in [0..51, 50..usize::MAX, 50..60, 10..1000] {
        let config = DataConfig { rows: Some(range.clone()), ..config(32) };
        for path in [&lines, &parquet, &arrow] {
            let message = Dataset::load(path, &tokenizer(), &config).unwrap_err().to_string();
            let end = if range.end == usize::MAX { String::new() } else { range.end.to_string() };
            let asked = format!("rows {}..{end} asked for, but the file has 50 rows", range.start);
            assert!(message.contains(&asked), "{range:?}: {message}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.parquet");
    write_parquet(&path, &[("text", &texts(1_000))], 333);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| load(&path, &config(24)))
    };
    let one = with(1);
    assert_eq!(with(2), one);
    assert_eq!(with(5), one);
}

#[test]
fn json_lines_as_they_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.json");
    let text = "\u{feff}{\"text\": \"good\", \"n\": 1}\r\n\n  \n{\"n\": 2}\n{\"text\": null}\n{\"text\": \"the\", \"x\": [{}]}";
    std::fs::write(&path, text).unwrap();
    let (dataset, report) = load(&path, &DataConfig { append_eos: Some(true), ..config(32) });
    assert_eq!((report.rows_read, report.null, dataset.len()), (4, 2, 2));
    let named = |column: &str| columns(&path).unwrap().into_iter().find(|c| c.name == column).unwrap().kind;
    assert_eq!((named("text"), named("n"), named("x")), ("string".into(), "number".into(), "array".into()));
}

#[test]
fn columns_are_listed_with_their_types() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.parquet");
    write_parquet(&path, &[("review", &texts(3))], 8);
    let listed: Vec<_> = columns(&path).unwrap().into_iter().map(|c| (c.name, c.kind)).collect();
    assert_eq!(listed, [("label".into(), "Int64".into()), ("review".to_owned(), "Utf8".to_owned())]);
    let listed = |name: &str, text: &str| -> Vec<String> {
        std::fs::write(file(&folder, name), text).unwrap();
        columns(&file(&folder, name)).unwrap().into_iter().map(|it| format!("{}: {}", it.name, it.kind)).collect()
    };
    assert_eq!(listed("a.csv", "text,n\nx,1\n"), ["text: string", "n: string"]);
    // The first value that is something.
    let lines = "{\"a\": null, \"b\": null}\n{\"a\": \"x\", \"c\": 1}\n{\"a\": 2}\n";
    assert_eq!(listed("a.jsonl", lines), ["a: string", "b: null", "c: number"]);
}

#[test]
fn of_a_long_text_the_beginning_is_as_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.jsonl");
    let words = ["the", "good", "oo", "é🙂", "\n\n", "goods", "  the", "x"];
    // Whatever the cut falls on: words, white space, a word without an end.
    let texts = [
        (0..9000)
            .map(|i| words[(i * i + i / 7) % words.len()].to_owned() + if i % 3 == 0 { "" } else { " " })
            .collect(),
        "good".repeat(9000),
        " ".repeat(40_000) + "the end",
        "the ".to_owned() + &"🙂".repeat(9000),
    ];
    for text in texts {
        let text: String = text;
        write_jsonl(&path, &[("text", &[Some(text.clone())])]);
        let whole = tokenizer().encode(&text).unwrap();
        for max_length in [2, 12, 100] {
            let (data, report) = load(&path, &config(max_length));
            assert_eq!(data.row(0).ids, &whole[..max_length], "{max_length}");
            let cut = (whole.len() - max_length) as u64;
            assert!(report.truncated == 1 && report.tokens_cut.abs_diff(cut) <= 4, "{report:?}, {cut} expected");
        }
        // What is split is all of it.
        let (data, report) = load(&path, &DataConfig { excess: Excess::Split, ..config(1000) });
        assert!(data.rows().flat_map(|it| it.ids).eq(&whole) && data.len() == whole.len().div_ceil(1000));
        assert_eq!((report.split, report.truncated, report.tokens_cut), (1, 0, 0));
    }
    let prompt = "the good ".repeat(9000);
    write_jsonl(&path, &[("instruction", &[Some(prompt)]), ("input", &[None]), ("output", &[Some("good".into())])]);
    let refused = Dataset::load(&path, &tokenizer(), &instruction_config(50)).unwrap_err();
    assert!(refused.to_string().contains("no usable rows"), "the answer is beyond the cut: {refused}");
}

#[test]
fn columns_say_what_they_are_and_whether_they_are_there() {
    let column = |name: &str, kind: &str| halfbyte_data::Column { name: name.into(), kind: kind.into() };
    let chosen = |columns: &[halfbyte_data::Column], given: &str| {
        Columns::choose(columns, &ColumnNames::parse(given).unwrap(), None).unwrap().columns
    };
    let text = [column("text", "string"), column("id", "number")];
    let it = chosen(&text, "");
    assert_eq!((it.template().as_deref(), it.are_conversations(&text)), (Some("{text}"), false));
    assert!(it.are_among(&text) && !it.are_among(&text[1..]));
    let task = ["instruction", "input", "output"].map(|it| column(it, "string"));
    let it = chosen(&task, "");
    let template = it.template().unwrap();
    assert!(template.contains("{instruction}") && template.contains("{input}") && template.ends_with("{output}"));
    assert!(it.are_among(&task) && !it.are_among(&task[..2]) && !it.are_conversations(&task));
    let pair = |kind: &str| ["prompt", "completion"].map(|it| column(it, kind));
    let it = chosen(&pair("string"), "");
    assert_eq!(it.template().as_deref(), Some("{prompt}{completion}"));
    assert!(!it.are_conversations(&pair("string")) && it.are_conversations(&pair("array")));
    // The other one's type says nothing.
    assert!(!it.are_conversations(&[column("prompt", "string"), column("completion", "array")]));
    let chat = [column("messages", "array"), column("tools", "array")];
    let it = chosen(&chat, "");
    assert_eq!((it.template(), it.are_conversations(&chat)), (None, true));
    assert!(it.are_among(&chat) && it.are_among(&chat[..1]), "tools need not be there");
}

#[test]
fn lists_of_messages_are_read_from_arrow_as_from_json() {
    let folder = tempfile::tempdir().unwrap();
    let (lines, arrow) = (file(&folder, "a.jsonl"), file(&folder, "a.arrow"));
    // A key that a row lacks is null there, since a column of objects has all keys of all of them.
    let rows = [
        r#"{"messages": [{"role": "user", "content": "a", "n": 7}, {"role": "assistant", "content": "b"}]}"#,
        r#"{"messages": [{"role": "user", "content": "c", "x": 0.5, "ok": true}, {"role": "assistant", "content": "d"}]}"#,
    ];
    std::fs::write(&lines, rows.join("\n")).unwrap();
    let mut roles = ListBuilder::new(StructBuilder::from_fields(
        vec![
            Field::new("role", DataType::Utf8, true),
            Field::new("content", DataType::Utf8, true),
            Field::new("n", DataType::Int64, true),
            Field::new("x", DataType::Float64, true),
            Field::new("ok", DataType::Boolean, true),
        ],
        4,
    ));
    for (role, content, n, x, ok, ends) in [
        ("user", "a", Some(7), None, None, false),
        ("assistant", "b", None, None, None, true),
        ("user", "c", None, Some(0.5), Some(true), false),
        ("assistant", "d", None, None, None, true),
    ] {
        let message = roles.values();
        message.field_builder::<StringBuilder>(0).unwrap().append_value(role);
        message.field_builder::<StringBuilder>(1).unwrap().append_value(content);
        message.field_builder::<Int64Builder>(2).unwrap().append_option(n);
        message.field_builder::<Float64Builder>(3).unwrap().append_option(x);
        message.field_builder::<BooleanBuilder>(4).unwrap().append_option(ok);
        message.append(true);
        if ends {
            roles.append(true);
        }
    }
    write_arrow(&arrow, "messages", &[Arc::new(roles.finish())]);
    // All that a message holds is written, in the order of its keys.
    let source = "{% for m in messages %}{{ m|dictsort }};{% endfor %}";
    let template = ChatTemplate::new(source.into(), "a template", &tokenizer()).unwrap();
    let read = |path: &std::path::Path| {
        let chosen = Columns::choose(&columns(path).unwrap(), &ColumnNames::default(), None).unwrap().columns;
        let template = Some(Arc::new(template.clone()));
        load(path, &DataConfig { columns: chosen, template, loss_on: Some(LossOn::All), ..config(500) })
    };
    let (made, _) = read(&arrow);
    assert_eq!(made, read(&lines).0);
    let text = tokenizer().decode(made.row(0).ids, false).unwrap();
    assert_eq!(text, "[['content', 'a'], ['n', 7], ['role', 'user']];[['content', 'b'], ['role', 'assistant']];");
}

#[test]
fn words_of_a_dictionary_are_texts() {
    let folder = tempfile::tempdir().unwrap();
    let (lines, arrow) = (file(&folder, "a.jsonl"), file(&folder, "a.arrow"));
    let texts: Vec<_> = (0..30).map(|row| (row % 4 != 3).then(|| format!("the good {}", row % 3))).collect();
    write_jsonl(&lines, &[("text", &texts)]);
    let words: DictionaryArray<Int32Type> = texts.iter().map(Option::as_deref).collect();
    write_arrow(&arrow, "text", &[Arc::new(words)]);
    assert_eq!(load(&arrow, &config(32)), load(&lines, &config(32)));
    // Numbers in one are not.
    let numbers = DictionaryArray::<Int32Type>::new(vec![0, 0].into(), Arc::new(Int64Array::from(vec![7])));
    write_arrow(&arrow, "text", &[Arc::new(numbers)]);
    assert!(Dataset::load(&arrow, &tokenizer(), &config(32)).unwrap_err().to_string().contains("text is expected"));
}
