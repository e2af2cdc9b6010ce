//! Files of rows in every format: texts, and conversations as lists of objects.

use arrow_array::{
    ArrayRef, DictionaryArray, Int64Array, LargeStringArray, NullArray, RecordBatch, StringArray, StringViewArray,
    builder::{
        BooleanBuilder, Float32Builder, Float64Builder, Int8Builder, Int16Builder, Int32Builder, Int64Builder,
        ListBuilder, StringBuilder, StructBuilder, UInt8Builder, UInt16Builder, UInt32Builder, UInt64Builder,
    },
    types::{Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type},
};
use arrow_ipc::writer::{FileWriter, StreamWriter};
use arrow_schema::{DataType, Field};
use e2e::{ROWS, tokenizer_json};
use halfbyte_data::{
    CHATML, ChatColumns, ChatTemplate, Columns, DataConfig, Dataset, SpecialTokens, Tokenizer, Turns, columns,
};
use halfbyte_testkit::{
    mutate,
    readers::{Scratch, tries},
};
use parquet::arrow::ArrowWriter;
use serde_json::json;
use std::sync::Arc;

/// A conversation a row, whose messages hold a value of each type that they may.
fn conversations() -> ArrayRef {
    use DataType::{Boolean, Float32, Float64, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64, Utf8};
    let kinds = [Utf8, Utf8, Int64, Boolean, Float64, UInt8, Int8, Int16, Int32, UInt16, UInt32, UInt64, Float32];
    let names = ["role", "content", "number", "flag", "share", "byte", "a", "b", "c", "d", "e", "f", "g"];
    let fields: Vec<Field> = names.into_iter().zip(kinds).map(|(name, kind)| Field::new(name, kind, true)).collect();
    let mut list = ListBuilder::new(StructBuilder::from_fields(fields, 4));
    for row in ROWS {
        for role in ["user", "assistant"] {
            let message = list.values();
            message.field_builder::<StringBuilder>(0).unwrap().append_value(role);
            message.field_builder::<StringBuilder>(1).unwrap().append_value(row);
            message.field_builder::<Int64Builder>(2).unwrap().append_value(-7);
            message.field_builder::<BooleanBuilder>(3).unwrap().append_value(true);
            message.field_builder::<Float64Builder>(4).unwrap().append_option(Some(0.5).filter(|_| role == "user"));
            message.field_builder::<UInt8Builder>(5).unwrap().append_value(3);
            message.field_builder::<Int8Builder>(6).unwrap().append_value(-1);
            message.field_builder::<Int16Builder>(7).unwrap().append_value(-2);
            message.field_builder::<Int32Builder>(8).unwrap().append_null();
            message.field_builder::<UInt16Builder>(9).unwrap().append_value(4);
            message.field_builder::<UInt32Builder>(10).unwrap().append_value(5);
            message.field_builder::<UInt64Builder>(11).unwrap().append_value(u64::MAX);
            message.field_builder::<Float32Builder>(12).unwrap().append_value(f32::NAN);
            message.append(true);
        }
        list.append(true);
    }
    Arc::new(list.finish())
}

/// Tables with a column `text` of each type, and conversations beside it.
fn tables() -> Vec<RecordBatch> {
    let texts: [ArrayRef; 9] = [
        Arc::new(StringArray::from(ROWS.to_vec())),
        Arc::new(LargeStringArray::from(ROWS.to_vec())),
        Arc::new(StringViewArray::from(ROWS.to_vec())),
        Arc::new(ROWS.into_iter().collect::<DictionaryArray<Int32Type>>()),
        Arc::new(ROWS.into_iter().collect::<DictionaryArray<Int8Type>>()),
        Arc::new(ROWS.into_iter().collect::<DictionaryArray<Int16Type>>()),
        Arc::new(ROWS.into_iter().collect::<DictionaryArray<Int64Type>>()),
        Arc::new(ROWS.into_iter().collect::<DictionaryArray<UInt8Type>>()),
        Arc::new(NullArray::new(ROWS.len())),
    ];
    let ids = || -> ArrayRef { Arc::new(Int64Array::from_iter_values(0..ROWS.len() as i64)) };
    let table = |it: ArrayRef| {
        let columns = [("text", it, true), ("messages", conversations(), true), ("id", ids(), true)];
        RecordBatch::try_from_iter_with_nullable(columns)
    };
    texts.into_iter().map(|it| table(it).unwrap()).collect()
}

/// Good files by name.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = Vec::new();
    for table in tables() {
        let schema = table.schema();
        let mut rows = ArrowWriter::try_new(Vec::new(), schema.clone(), None).unwrap();
        rows.write(&table).unwrap();
        all.push(("a.parquet", rows.into_inner().unwrap()));
        let (mut file, mut stream) = (Vec::new(), Vec::new());
        let mut writer = FileWriter::try_new(&mut file, &schema).unwrap();
        writer.write(&table).and_then(|()| writer.finish()).unwrap();
        drop(writer);
        let mut writer = StreamWriter::try_new(&mut stream, &schema).unwrap();
        writer.write(&table).and_then(|()| writer.finish()).unwrap();
        drop(writer);
        all.extend([("a.arrow", file), ("a.arrow", stream)]);
    }
    let rows = ROWS.map(|it| {
        let messages =
            json!([{ "role": "user", "content": it }, { "from": "gpt", "value": it, "n": [1.5, { "a": null }] }]);
        json!({ "text": it, "messages": messages, "prompt": it, "completion": "yes" })
    });
    let lines: String = rows.iter().map(|it| format!("{it}\n")).collect();
    let broad: String = rows.iter().map(|it| format!("{it:#}\n")).collect();
    let list = json!(rows);
    let quoted = |mark: &str| ROWS.iter().map(|it| format!("1{mark}\"{it}\"\n")).collect::<String>();
    let text = |it: String| it.into_bytes();
    all.extend([
        ("a.jsonl", text(lines.clone())),
        ("a.json", text(lines.clone())),
        ("a.ndjson", text(format!("\u{feff}{lines}"))),
        ("a.json", text(list.to_string())),
        ("a.json", text(format!("\u{feff}\n {list:#}"))),
        ("a.json", text(broad)),
        ("a.json", text(json!({ "data": list, "version": 1 }).to_string())),
        ("a.json", text(format!("{:#}", json!({ "rows": list })))),
        ("a.csv", text(format!("id,text\n{}", quoted(",")))),
        ("a.tsv", text(format!("\u{feff}id\ttext\n{}", quoted("\t")))),
        ("a.csv", text(format!("id;text\n{}", quoted(";")))),
        ("a.txt", text(ROWS.join("\n"))),
        ("a.dat", text(ROWS.join("\n"))),
    ]);
    for head in [
        &b"\x1f\x8b\x08\0"[..],
        b"\x28\xb5\x2f\xfd\x20",
        b"BZh9",
        b"\xfd7zXZ\0",
        b"PK\x03\x04",
        b"\xff\xfe{",
        b"version https://git-lfs",
    ] {
        all.push(("a.unknown", [head, b"\0\0 and more"].concat()));
    }
    all
}

#[test]
fn files_of_rows() {
    let scratch = Scratch::new();
    let tokenizer = Tokenizer::from_json(tokenizer_json(0).as_bytes(), SpecialTokens::default()).unwrap();
    let template = Arc::new(ChatTemplate::new(CHATML.to_owned(), "chatml", &tokenizer).unwrap());
    let chat = ChatColumns { turns: Turns::Messages("messages".into()), system: None, tools: None };
    let ways = [
        Columns::Text("text".into()),
        Columns::Chat(chat),
        Columns::Completion { prompt: "prompt".into(), completion: "completion".into() },
        Columns::Instruction { instruction: "text".into(), input: Some("input".into()), output: "text".into() },
        Columns::Text("nowhere".into()),
        Columns::Text("id".into()),
    ];
    let all = files();
    tries("files of rows", 400, |dice| {
        let (name, good) = dice.one_of(&all).clone();
        let bytes = match dice.below(8) {
            0 | 1 => good,
            // Rows each changed in its own way.
            2 if name == "a.jsonl" || name == "a.json" => {
                let row = json!({ "text": "the cat", "id": 1, "messages": [{ "role": "user", "content": "a" }], "input": null });
                let line = |it: &mut _| mutate::json(it, &row).to_string();
                let lines: Vec<String> = (0..1 + dice.below(4)).map(|_| line(dice)).collect();
                if name == "a.json" {
                    format!("[{}]", lines.join(",\n")).into_bytes()
                } else {
                    lines.join("\n").into_bytes()
                }
            }
            _ => mutate::bytes(dice, &good),
        };
        // Seldom under another's name.
        let name = if dice.once_in(20) { all[dice.below(all.len())].0 } else { name };
        let path = scratch.write(name, &bytes);
        let way = if dice.once_in(2) { 0 } else { dice.below(ways.len()) };
        let first = dice.below(4) * dice.below(2);
        let rows =
            Some(first..if dice.once_in(2) { usize::MAX } else { first + dice.below(7) }).filter(|_| dice.once_in(2));
        let config = DataConfig {
            columns: ways[way].clone(),
            rows,
            max_length: 16,
            template: Some(template.clone()),
            ..DataConfig::default()
        };
        drop(columns(&path));
        drop(Dataset::load(&path, &tokenizer, &config));
    });
}
