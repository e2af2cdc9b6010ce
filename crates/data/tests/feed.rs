//! Batches without end, from memory and from files that are read as training goes.

mod common;

use common::*;
use halfbyte_data::{BatchConfig, DataFiles, Dataset, Examples, Packing, Position, Stream, StreamConfig};

const ROWS: usize = 10;
const BUFFER: usize = 4;

/// The same rows in memory and as a stream, of which each has at least two tokens.
fn both(folder: &tempfile::TempDir) -> (Dataset, Stream) {
    let path = file(folder, "a.parquet");
    let rows: Vec<_> = (0..ROWS).map(|it| Some(format!("row {it}"))).collect();
    write_parquet(&path, &[("text", &rows)], 3);
    let held = Dataset::load(&path, &tokenizer(), &config(32)).unwrap().0;
    let how = StreamConfig { buffer: BUFFER, doubtful: 0.1 };
    (held, Stream::open(DataFiles::one(path), tokenizer(), config(32), how).unwrap().0)
}

fn batches_of(batch_size: usize) -> BatchConfig {
    BatchConfig { batch_size, shuffle: None, drop_last: false, packing: Packing::Off }
}

fn at(epoch: u64, row: usize, batch: usize) -> Position {
    Position { epoch, row, batch }
}

#[test]
fn rows_and_batches_are_counted_where_they_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let (held, stream) = both(&folder);
    let (of_held, of_stream) = (Examples::from(&held), Examples::from(&stream));
    assert_eq!((of_held.count(), of_stream.count()), (ROWS, ROWS));
    // Buffers of 4, 4 and 2 rows.
    assert_eq!(of_held.batches_per_pass(&batches_of(3)).unwrap(), Some(4));
    assert_eq!(of_stream.batches_per_pass(&batches_of(3)).unwrap(), Some(5));
    let feed = |from: Examples<'_>| from.batches(&batches_of(3), Position::default()).unwrap().per_pass();
    assert_eq!((feed(of_held), feed(of_stream)), (Some(4), Some(5)));
    let lines = file(&folder, "a.jsonl");
    write_jsonl(&lines, &[("text", &[Some("not counted".into())])]);
    let how = StreamConfig { buffer: BUFFER, doubtful: 0.1 };
    let uncounted = Stream::open(DataFiles::one(lines), tokenizer(), config(32), how).unwrap().0;
    assert_eq!(Examples::from(&uncounted).count(), 0);
    assert_eq!(Examples::from(&uncounted).batches(&batches_of(3), Position::default()).unwrap().per_pass(), None);
    assert!(Examples::from(&held).batches_per_pass(&batches_of(0)).is_err());
}

#[test]
fn a_group_ends_with_the_pass_in_memory_and_goes_on_in_a_stream() {
    let folder = tempfile::tempdir().unwrap();
    let (held, stream) = both(&folder);
    let mut feed = Examples::from(&held).batches(&batches_of(3), Position::default()).unwrap();
    let mut rows = |size| feed.next_group(size).unwrap().into_iter().map(|it| it.rows).collect::<Vec<_>>();
    assert_eq!(rows(2), [vec![0, 1, 2], vec![3, 4, 5]]);
    assert_eq!(rows(1), [vec![6, 7, 8]]);
    assert_eq!(rows(2), [vec![9]], "the rest of the pass");
    assert_eq!(rows(100), [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7, 8], vec![9]], "a pass");
    let mut feed = Examples::from(&stream).batches(&batches_of(3), Position::default()).unwrap();
    let mut lengths = |size| feed.next_group(size).unwrap().iter().map(|it| it.rows.len()).collect::<Vec<_>>();
    assert_eq!(lengths(6), [3, 1, 3, 1, 2, 3]);
    assert_eq!(lengths(1), [1]);
}

#[test]
fn places_and_passes_are_those_of_the_next_batch() {
    let folder = tempfile::tempdir().unwrap();
    let (held, stream) = both(&folder);
    let mut feed = Examples::from(&held).batches(&batches_of(3), at(2, 0, 1)).unwrap();
    assert_eq!((feed.position(), feed.passes()), (at(2, 0, 1), 2.25));
    feed.next_group(1).unwrap();
    assert_eq!((feed.position(), feed.passes()), (at(2, 0, 2), 2.5));
    feed.next_group(2).unwrap();
    assert_eq!((feed.position(), feed.passes()), (at(3, 0, 0), 3.0));
    // Two batches of each buffer of four rows, and one of the last two rows.
    let mut feed = Examples::from(&stream).batches(&batches_of(3), at(2, 4, 1)).unwrap();
    assert_eq!((feed.position(), feed.passes()), (at(2, 4, 1), 2.0 + 6.0 / 10.0));
    feed.next_group(1).unwrap();
    assert_eq!((feed.position(), feed.passes()), (at(2, 8, 0), 2.0 + 8.0 / 10.0));
    feed.next_group(1).unwrap();
    assert_eq!((feed.position(), feed.passes()), (at(2, 10, 0), 3.0));
    feed.next_group(1).unwrap();
    assert_eq!((feed.position(), feed.passes()), (at(3, 0, 1), 3.0 + 2.0 / 10.0));
}

#[test]
fn the_end_of_a_buffer_is_the_beginning_of_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (_, stream) = both(&folder);
    let from = |row, batch| stream.batches(&batches_of(3), at(0, row, batch)).unwrap();
    let (mut end, mut beginning) = (from(0, 2), from(4, 0));
    assert_eq!(end.position(), beginning.position());
    for _ in 0..6 {
        assert_eq!(end.next_batch().unwrap(), beginning.next_batch().unwrap());
    }
    assert!(stream.batches(&batches_of(3), at(0, 0, 3)).is_err());
}
