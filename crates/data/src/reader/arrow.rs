//! Arrow IPC, as a file or as the stream that Hugging Face's datasets keeps in its cache.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_ipc::root_as_footer;
use arrow_schema::{ArrowError, Schema};

use super::{CHUNK_ROWS, Column, Counted, Fields, Rows, Wanted, cells, open};
use crate::error::{Error, Result};
use crate::guard::guarded;

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

pub(super) struct ArrowRows {
    path: PathBuf,
    batches: Batches,
    places: Vec<Option<usize>>,
    counted: Counted,
    /// Rows of the current batch that were not given yet.
    waiting: VecDeque<RecordBatch>,
}

impl ArrowRows {
    pub(super) fn open(path: &Path, wanted: &[Wanted], range: &Range<usize>) -> Result<Self> {
        let (schema, batches) = read(path)?;
        let places = cells::places(path, wanted, &schema)?;
        Ok(Self { path: path.into(), batches, places, counted: Counted::new(range), waiting: VecDeque::new() })
    }

    fn corrupt(&self, reason: String) -> Error {
        Error::CorruptArrow { path: self.path.clone(), reason }
    }

    fn fields(&self, batch: &RecordBatch) -> Result<Vec<Fields>, String> {
        let field = |row: usize, place: &Option<usize>| match place {
            Some(column) => cells::value(batch.column(*column), row),
            None => Ok(serde_json::Value::Null),
        };
        (0..batch.num_rows()).map(|row| self.places.iter().map(|place| field(row, place)).collect()).collect()
    }
}

impl Rows for ArrowRows {
    fn next_chunk(&mut self) -> Result<Option<Vec<Fields>>> {
        loop {
            if let Some(batch) = self.waiting.pop_front() {
                return guarded(|| self.fields(&batch)).map(Some).map_err(|reason| self.corrupt(reason));
            }
            if !self.counted.goes_on() {
                return Ok(None);
            }
            let next = guarded(|| self.batches.next().transpose());
            let Some(batch) = next.map_err(|reason| self.corrupt(reason))? else {
                return Ok(None);
            };
            let wanted = self.counted.take_some(batch.num_rows());
            for first in wanted.clone().step_by(CHUNK_ROWS) {
                self.waiting.push_back(batch.slice(first, CHUNK_ROWS.min(wanted.end - first)));
            }
        }
    }

    fn seen(&self) -> usize {
        self.counted.seen
    }
}

pub(super) fn columns(path: &Path) -> Result<Vec<Column>> {
    Ok(cells::columns(&read(path)?.0))
}

fn read(path: &Path) -> Result<(std::sync::Arc<Schema>, Batches)> {
    let is_file = open::head(path, 6)? == b"ARROW1";
    let file = open::file(path)?;
    if is_file {
        let read = |source| Error::Read { path: path.into(), source };
        let corrupt = |reason| Error::CorruptArrow { path: path.into(), reason };
        within(&file).map_err(read)?.map_err(|reason| corrupt(reason.into()))?;
    }
    let file: BufReader<File> = BufReader::new(file);
    let opened = guarded(|| -> Result<_, ArrowError> {
        Ok(if is_file {
            let reader = FileReader::try_new(file, None)?;
            (reader.schema(), Box::new(reader) as Batches)
        } else {
            let reader = StreamReader::try_new(file, None)?;
            (reader.schema(), Box::new(reader) as Batches)
        })
    });
    opened.map_err(|reason| Error::CorruptArrow { path: path.into(), reason })
}

/// That a file's footer and its pieces lie within it: the arrow reader sets aside as much memory as they claim, before it reads.
fn within(mut file: &File) -> io::Result<Result<(), &'static str>> {
    const TRAILER: u64 = 10;
    let length = file.metadata()?.len();
    let Some(end) = length.checked_sub(TRAILER) else { return Ok(Err("it is cut off")) };
    let mut size = [0; 4];
    file.seek(SeekFrom::Start(end))?;
    file.read_exact(&mut size)?;
    let size = u64::from(u32::from_le_bytes(size));
    let Some(begin) = end.checked_sub(size) else { return Ok(Err("its footer is said to be longer than the file")) };
    let mut footer = vec![0; size as usize];
    file.seek(SeekFrom::Start(begin))?;
    file.read_exact(&mut footer)?;
    file.rewind()?;
    // What is no footer is told by the reader.
    let Ok(footer) = root_as_footer(&footer) else { return Ok(Ok(())) };
    let is_inside = |offset: i64, head: i32, body: i64| {
        let end = offset.checked_add(head.into()).and_then(|it| it.checked_add(body));
        offset >= 0 && head >= 0 && body >= 0 && end.is_some_and(|it| it as u64 <= length)
    };
    let mut blocks = [footer.dictionaries(), footer.recordBatches()].into_iter().flatten().flatten();
    let fits = blocks.all(|it| is_inside(it.offset(), it.metaDataLength(), it.bodyLength()));
    Ok(if fits { Ok(()) } else { Err("a part of it is said to lie outside the file") })
}
