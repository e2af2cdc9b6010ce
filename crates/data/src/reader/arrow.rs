//! Arrow IPC, as a file or as the stream that Hugging Face's datasets keeps in its cache.

use std::collections::VecDeque;
use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_ipc::reader::{FileReader, StreamReader};
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
    let file: BufReader<File> = BufReader::new(open::file(path)?);
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
