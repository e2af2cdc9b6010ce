//! Streams: every row once a pass, the same bits from any place on, and no more memory than two buffers.

mod common;

use std::path::{Path, PathBuf};

use common::*;
use halfbyte_data::{
    Batch, BatchConfig, DataConfig, DataFiles, Dataset, Excess, Packing, Position, Stream, StreamConfig, Tokenised,
};
use proptest::prelude::*;

const ROWS: usize = 700;

/// Rows that differ, some of which cannot be used.
fn texts(count: usize) -> Vec<Option<String>> {
    let text = |it: usize| (it % 13 != 5).then(|| format!("row {it} {}", "good ".repeat(it * 7 % 11)));
    (0..count).map(text).collect()
}

/// Two files, of two kinds.
fn files(folder: &Path) -> DataFiles {
    let texts = texts(ROWS);
    write_parquet(&folder.join("a.parquet"), &[("text", &texts[..300])], 77);
    write_jsonl(&folder.join("b.jsonl"), &[("text", &texts[300..])]);
    DataFiles::find(&["a.parquet", "b.jsonl"].map(|it| folder.join(it)), halfbyte_data::Part::Train).unwrap()
}

fn stream(files: &DataFiles, data: &DataConfig, buffer: usize) -> Stream {
    Stream::open(files.clone(), tokenizer(), data.clone(), StreamConfig { buffer, doubtful: 0.1 }).unwrap().0
}

fn batches(config: (usize, Option<u64>)) -> BatchConfig {
    BatchConfig { batch_size: config.0, shuffle: config.1, drop_last: false, packing: Packing::Off }
}

/// Batches until these have so many examples.
fn first(stream: &Stream, config: &BatchConfig, examples: usize) -> Vec<Batch> {
    let mut from = stream.batches(config, Position::default()).unwrap();
    let mut found = Vec::new();
    let mut count = 0;
    while count < examples {
        found.push(from.next_batch().unwrap());
        count += found.last().unwrap().lengths.len();
    }
    found
}

/// What fails among so many batches.
fn failure(stream: &Stream, config: &BatchConfig, batches: usize) -> Option<String> {
    match stream.batches(config, Position::default()) {
        Ok(mut from) => (0..batches).find_map(|_| from.next_batch().err()).map(|it| it.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

fn examples(batch: &Batch) -> Vec<Vec<u32>> {
    let mut start = 0;
    let mut found = Vec::new();
    for length in &batch.lengths {
        found.push(batch.ids[start..start + length].to_vec());
        start += length;
    }
    found
}

#[test]
fn a_pass_has_every_row_once_and_another_order_than_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (files, data) = (files(folder.path()), config(64));
    let all = Dataset::load_all(&files, &tokenizer(), &data).unwrap();
    let mut expected: Vec<Vec<u32>> = all.0.rows().map(|it| it.ids.to_vec()).collect();
    expected.sort_unstable();
    for (buffer, shuffle) in [(100, Some(3)), (1, Some(3)), (64, None), (10_000, Some(3)), (257, Some(4))] {
        let stream = stream(&files, &data, buffer);
        let config = batches((8, shuffle));
        let both: Vec<_> = first(&stream, &config, 2 * expected.len()).iter().flat_map(examples).collect();
        assert_eq!(both.len(), 2 * expected.len(), "a batch does not reach into the next pass");
        let (one, two) = both.split_at(expected.len());
        for pass in [one, two] {
            let mut sorted = pass.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, expected, "buffer {buffer}, shuffle {shuffle:?}");
        }
        assert_eq!(one == two, shuffle.is_none(), "buffer {buffer}");
        let report = stream.report();
        assert_eq!((report.rows_read, report.null, report.tokens), (2 * ROWS as u64, 2 * all.1.null, 2 * all.1.tokens));
    }
}

#[test]
fn each_buffer_of_each_pass_has_an_order_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    // Of which the second half is the first again.
    let rows: Vec<_> = (0..40).map(|it| Some(format!("row {}", it % 20))).collect();
    write_jsonl(&path, &[("text", &rows)]);
    let of = stream(&DataFiles::one(&path), &config(64), 20);
    let orders: Vec<Batch> = first(&of, &batches((20, Some(1))), 80);
    let ids: std::collections::HashSet<_> = orders.iter().map(|it| it.ids.clone()).collect();
    assert_eq!((orders.len(), ids.len()), (4, 4));
}

#[test]
fn one_buffer_for_all_rows_is_what_memory_would_hold() {
    let folder = tempfile::tempdir().unwrap();
    let (files, data) = (files(folder.path()), config(64));
    let (held, _) = Dataset::load_all(&files, &tokenizer(), &data).unwrap();
    let config = batches((8, None));
    let found = first(&stream(&files, &data, ROWS), &config, held.len());
    let expected: Vec<Batch> = held.batches(&config, Position::default()).unwrap().take(found.len()).collect();
    assert_eq!(found, expected);
}

#[test]
fn counted_rows_give_the_batches_of_a_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let rows: Vec<_> = texts(500).into_iter().map(|it| Some(it.unwrap_or_else(|| "the good one".into()))).collect();
    write_parquet(&path, &[("text", &rows)], 77);
    for (buffer, range, rows) in
        [(100, None, 500), (64, None, 500), (33, Some(10..321), 311), (1000, Some(400..usize::MAX), 100)]
    {
        let data = DataConfig { rows: range, ..config(64) };
        let stream = stream(&DataFiles::one(&path), &data, buffer);
        assert_eq!(stream.rows(), Some(rows));
        for drop_last in [false, true] {
            let config = BatchConfig { drop_last, ..batches((8, Some(1))) };
            let mut from = stream.batches(&config, Position::default()).unwrap();
            // Up to the first batch of the next pass.
            let count = (0..).take_while(|_| from.next_batch().is_ok() && from.position().epoch == 0).count();
            assert_eq!(stream.batches_per_pass(&config), Some(count), "buffer {buffer}");
        }
    }
    let packed = BatchConfig { packing: Packing::On { max_length: 64 }, ..batches((8, None)) };
    let counted = stream(&DataFiles::one(&path), &config(64), 10);
    assert_eq!(counted.batches_per_pass(&packed), None, "packed rows are not known before");
    assert_eq!(stream(&files(folder.path()), &config(64), 10).rows(), None, "one of two does not tell");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_stream_goes_on_from_any_place_as_if_it_had_not_stopped(
        buffer in 1usize..300, size in 1usize..9, seed in proptest::option::of(any::<u64>()), stop in 0usize..200,
        drop_last in any::<bool>(), packed in any::<bool>(), split in any::<bool>(), range in any::<bool>()
    ) {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let excess = if split { Excess::Split } else { Excess::Truncate };
        let data = DataConfig { excess, rows: range.then_some(100..600), ..config(24) };
        let packing = if packed { Packing::On { max_length: 24 } } else { Packing::Off };
        let config = BatchConfig { drop_last, packing, ..batches((size, seed)) };
        let whole = stream(&files, &data, buffer);
        let Ok(mut whole) = whole.batches(&config, Position::default()) else { return Ok(()) };
        for _ in 0..stop {
            whole.next_batch().unwrap();
        }
        let mut rest = stream(&files, &data, buffer).batches(&config, whole.position()).unwrap();
        for _ in 0..40 {
            prop_assert_eq!(whole.next_batch().unwrap(), rest.next_batch().unwrap());
            prop_assert_eq!(whole.position(), rest.position());
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let run = |threads: usize| {
        // With one, who takes the batches is the only one of its pool.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| first(&stream(&files, &config(64), 90), &batches((4, Some(1))), ROWS))
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn what_cannot_go_on_is_said_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &PathBuf, data: &DataConfig, doubtful: f64| {
        Stream::open(DataFiles::one(path), tokenizer(), data.clone(), StreamConfig { buffer: 100, doubtful })
    };
    let until_it_fails = |stream: &Stream| failure(stream, &batches((8, None)), 10_000).expect("an error");
    // A bad row far from the beginning.
    let path = folder.path().join("late.jsonl");
    write_jsonl(&path, &[("text", &texts(450))]);
    let text = std::fs::read_to_string(&path).unwrap() + "{\"text\": 7}\n";
    std::fs::write(&path, text).unwrap();
    let message = until_it_fails(&open(&path, &config(64), 0.1).unwrap().0);
    assert!(message.contains("late.jsonl: line 451"), "{message}");
    // A row too long is named by its place in the file, though its buffer began in the middle of what is read at a time.
    let long = folder.path().join("long.jsonl");
    let rows: Vec<_> = (0..600).map(|it| Some(if it == 350 { "x".repeat(80) } else { format!("row {it}") })).collect();
    write_jsonl(&long, &[("text", &rows)]);
    let raise = DataConfig { excess: Excess::Raise, ..config(64) };
    let message = until_it_fails(&open(&long, &raise, 0.1).unwrap().0);
    assert!(message.contains("long.jsonl: row 350") && message.contains("80 tokens"), "{message}");
    // One among the first rows is said before anything is trained on.
    let first = DataConfig { max_length: 3, ..raise };
    assert!(open(&long, &first, 0.1).unwrap_err().to_string().contains("long.jsonl: row 0"));
    // Rows none of which is usable end it, and not an endless search for one.
    let empty = folder.path().join("empty.jsonl");
    write_jsonl(&empty, &[("text", &vec![Some(" ".to_owned()); 300])]);
    let message = until_it_fails(&open(&empty, &config(64), 1.0).unwrap().0);
    assert!(message.contains("empty.jsonl") && message.contains("no usable rows: 300 rows read"), "{message}");
    // Rows of a single token teach nothing: half of them after the first thousand.
    let doubtful = folder.path().join("doubtful.jsonl");
    let rows: Vec<_> =
        (0..3000).map(|it| Some(if it > 1000 && it % 2 == 0 { "x".into() } else { format!("row {it}") })).collect();
    write_jsonl(&doubtful, &[("text", &rows)]);
    let message = until_it_fails(&open(&doubtful, &config(64), 0.1).unwrap().0);
    assert!(message.contains("doubtful.jsonl: of the first 1300 rows 149 teach nothing"), "{message}");
    let fine = open(&doubtful, &config(64), 0.5).unwrap().0;
    assert!(fine.batches(&batches((8, None)), Position::default()).is_ok());
    // A place that is not there.
    let elsewhere = Position { epoch: 0, row: 100, batch: 14 };
    let message = fine.batches(&batches((8, None)), elsewhere).err().unwrap().to_string();
    assert!(message.contains("batch 14 after row 100") && message.contains("changed"), "{message}");
    let none = Stream::open(DataFiles::one(&path), tokenizer(), config(64), StreamConfig { buffer: 0, doubtful: 0.1 });
    assert!(none.unwrap_err().to_string().contains("shuffle_buffer"));
}

#[test]
fn a_small_file_of_doubtful_rows_is_refused_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    // A token alone teaches nothing; these stand at the beginning.
    let rows: Vec<_> = (0..90).map(|it| Some(if it < 30 { "x".into() } else { format!("row {it}") })).collect();
    write_jsonl(&path, &[("text", &rows)]);
    let ends = |doubtful: f64| {
        let how = StreamConfig { buffer: 40, doubtful };
        let (stream, report) = Stream::open(DataFiles::one(&path), tokenizer(), config(64), how).unwrap();
        assert_eq!((report.rows_read, report.untrained), (90, 30), "of the first rows");
        let mut from = stream.batches(&batches((8, None)), Position::default()).unwrap();
        // Ten examples of the first buffer and forty of the second: a share of so few says little.
        (0..2 + 5).for_each(|_| drop(from.next_batch().unwrap()));
        from.next_batch().err().map(|it| it.to_string())
    };
    let message = ends(0.3).unwrap();
    assert!(message.contains("of the first 90 rows 30 teach nothing"), "{message}");
    assert_eq!(ends(0.34), None);
    // The last buffer may be full, and the file all of one.
    for buffer in [45, 30, 90] {
        let how = StreamConfig { buffer, doubtful: 0.3 };
        let stream = Stream::open(DataFiles::one(&path), tokenizer(), config(64), how).unwrap().0;
        // One batch each, of which the last is not handed out.
        let message = failure(&stream, &batches((90, None)), 90 / buffer).unwrap_or_default();
        assert!(message.contains("of the first 90 rows 30 teach nothing"), "{buffer}: {message}");
    }
}

#[test]
fn a_range_of_rows_counts_through_the_files_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let data = DataConfig { rows: Some(0..300), ..config(64) };
    let (held, _) = Dataset::load_all(&files, &tokenizer(), &data).unwrap();
    let of_first: std::collections::HashSet<Vec<u32>> = held.rows().map(|it| it.ids.to_vec()).collect();
    let found = first(&stream(&files, &data, 100), &batches((8, Some(3))), 6 * held.len());
    assert!(found.iter().flat_map(examples).all(|it| of_first.contains(&it)));
}

#[test]
fn two_buffers_take_what_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write_parquet(&path, &[("text", &vec![Some("x".repeat(64)); 500])], 100);
    let held = Dataset::load(&path, &tokenizer(), &config(64)).unwrap().0;
    assert_eq!(held.tokens(), 500 * 64);
    // What a row is known by is a number of 8 bytes.
    let taken = held.bytes() + 8 * held.len();
    let planned = Stream::bytes_of(500, 64);
    assert!((2 * taken - 32..=2 * taken).contains(&planned), "{planned} planned, {taken} taken by one");
    let of = |buffer| stream(&DataFiles::one(&path), &config(64), buffer).bytes();
    assert_eq!((of(500), of(10_000), of(50)), (planned, planned, Stream::bytes_of(50, 64)));
}

#[test]
fn tokens_that_do_not_fit_are_refused_while_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let all = Dataset::load_all(&files, &tokenizer(), &config(64)).unwrap().0.bytes();
    assert!(Tokenised::read_within(&files, &tokenizer(), &config(64), 2 * all).is_ok());
    let message = Tokenised::read_within(&files, &tokenizer(), &config(64), all / 2).unwrap_err().to_string();
    assert!(
        message.contains("b.jsonl: the tokens of the first 556 rows") && message.contains("streaming"),
        "{message}"
    );
}

#[test]
fn what_two_buffers_take_is_told_before_they_are_there() {
    // Ten rows of 64 tokens: 4 bytes and a bit each, and two words a row.
    assert_eq!(Stream::bytes_of(10, 64), 2 * 10 * (264 + 16));
}
