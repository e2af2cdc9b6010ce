//! Parquet through the arrow reader, one row group after another, only the wanted columns decoded.
//!
//! The schema that arrow writers embed is left aside: a string column then always arrives as plain UTF-8, whether it
//! was written as a large string, a string view or a dictionary, and one more thing that a hostile file could bend
//! is gone. The bytes are the same in all of these.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::ColumnChunkMetaData;

use super::{CHUNK_ROWS, Column, Fields, Rows, Wanted, cells, footer, open};
use crate::error::{Error, Result};
use crate::guard::guarded;
use serde_json::Value;

pub(crate) struct ParquetRows {
    path: PathBuf,
    file: File,
    metadata: ArrowReaderMetadata,
    mask: ProjectionMask,
    /// The wanted columns by name, `None` for one that the file lacks.
    names: Vec<Option<String>>,
    spans: VecDeque<Span>,
    /// Rows of the file.
    total: usize,
    current: Option<(Span, ParquetRecordBatchReader)>,
}

/// The wanted rows of one row group.
struct Span {
    group: usize,
    skip: usize,
    take: usize,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, wanted: &[Wanted], range: &Range<usize>) -> Result<Self> {
        let file = open::file(path)?;
        let metadata = load(path, &file)?;
        let places = cells::places(path, wanted, metadata.schema())?;
        let (spans, total) = spans(path, &metadata, range)?;
        let names = wanted.iter().zip(&places).map(|(it, place)| place.map(|_| it.name.clone())).collect();
        Ok(Self {
            mask: ProjectionMask::roots(metadata.parquet_schema(), places.into_iter().flatten()),
            spans,
            total,
            path: path.into(),
            names,
            file,
            metadata,
            current: None,
        })
    }

    fn start(&self, span: Span) -> Result<(Span, ParquetRecordBatchReader)> {
        let file = self.file.try_clone().map_err(|source| Error::Read { path: self.path.clone(), source })?;
        let reader = guarded(|| {
            ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
                .with_row_groups(vec![span.group])
                .with_projection(self.mask.clone())
                .with_offset(span.skip)
                .with_limit(span.take)
                .with_batch_size(CHUNK_ROWS)
                .build()
        });
        let reader = reader.map_err(|reason| self.corrupt(span.group, reason))?;
        Ok((span, reader))
    }

    fn rows(&self, batch: &RecordBatch) -> Result<Vec<Fields>, String> {
        let column =
            |name: &String| batch.column_by_name(name).ok_or_else(|| format!("column {name:?} did not arrive"));
        let columns: Vec<_> =
            self.names.iter().map(|it| it.as_ref().map(column).transpose()).collect::<Result<_, _>>()?;
        let field = |row: usize, column: &Option<_>| match column {
            Some(column) => cells::value(column, row),
            None => Ok(Value::Null),
        };
        (0..batch.num_rows()).map(|row| columns.iter().map(|column| field(row, column)).collect()).collect()
    }

    fn corrupt(&self, group: usize, reason: String) -> Error {
        Error::CorruptParquet { path: self.path.clone(), row_group: Some(group), reason }
    }
}

impl Rows for ParquetRows {
    fn seen(&self) -> usize {
        self.total
    }

    fn next_chunk(&mut self) -> Result<Option<Vec<Fields>>> {
        loop {
            let (mut span, mut reader) = match self.current.take() {
                Some(current) => current,
                None => match self.spans.pop_front() {
                    Some(span) => self.start(span)?,
                    None => return Ok(None),
                },
            };
            let wrong = |reason| self.corrupt(span.group, reason);
            let batch = match guarded(|| reader.next().transpose()).map_err(wrong)? {
                Some(batch) => batch,
                None if span.take == 0 => continue,
                None => return Err(wrong(format!("{} rows fewer than the footer says", span.take))),
            };
            let rows = guarded(|| self.rows(&batch)).map_err(wrong)?;
            span.take =
                span.take.checked_sub(rows.len()).ok_or_else(|| wrong("more rows than the footer says".into()))?;
            self.current = Some((span, reader));
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
        }
    }
}

pub(super) fn columns(path: &Path) -> Result<Vec<Column>> {
    Ok(cells::columns(load(path, &open::file(path)?)?.schema()))
}

pub(super) fn count(path: &Path) -> Result<usize> {
    Ok(spans(path, &load(path, &open::file(path)?)?, &(0..0))?.1)
}

fn load(path: &Path, file: &File) -> Result<ArrowReaderMetadata> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let corrupt = |row_group, reason| Error::CorruptParquet { path: path.into(), row_group, reason };
    let read = |source| Error::Read { path: path.into(), source };
    footer::check(file).map_err(read)?.map_err(|reason| corrupt(None, reason))?;
    let metadata = guarded(|| ArrowReaderMetadata::load(file, options)).map_err(|reason| corrupt(None, reason))?;
    let length = file.metadata().map_err(read)?.len();
    for (group, info) in metadata.metadata().row_groups().iter().enumerate() {
        if let Some(column) = info.columns().iter().find(|column| !lies_within(column, length)) {
            let reason = format!("column {:?} is said to lie outside the file", column.column_path().string());
            return Err(corrupt(Some(group), reason));
        }
    }
    Ok(metadata)
}

/// The page reader asserts that offsets and lengths make sense, so that is looked at before.
fn lies_within(column: &ColumnChunkMetaData, file_length: u64) -> bool {
    let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
    match (u64::try_from(start), u64::try_from(column.compressed_size())) {
        (Ok(start), Ok(size)) => start.checked_add(size).is_some_and(|end| end <= file_length),
        _ => false,
    }
}

/// Cuts the row range into the row groups that it touches, the others of which are never read; and how many rows there are in all.
fn spans(path: &Path, metadata: &ArrowReaderMetadata, range: &Range<usize>) -> Result<(VecDeque<Span>, usize)> {
    let mut spans = VecDeque::new();
    let mut first = 0usize;
    for (group, info) in metadata.metadata().row_groups().iter().enumerate() {
        let end = usize::try_from(info.num_rows()).ok().and_then(|rows| first.checked_add(rows));
        let Some(end) = end else {
            let reason = format!("impossible number of rows {}", info.num_rows());
            return Err(Error::CorruptParquet { path: path.into(), row_group: Some(group), reason });
        };
        let wanted = range.start.max(first)..range.end.min(end);
        if !wanted.is_empty() {
            spans.push_back(Span { group, skip: wanted.start - first, take: wanted.len() });
        }
        first = end;
    }
    Ok((spans, first))
}
