//! What a person names as data: files, folders, patterns.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::reader::{self, Column, Fields, Rows, Wanted};

/// Data files in the order in which their rows are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFiles(Vec<PathBuf>);

/// Which of the parts of a folder's data is meant, where the names of its files tell parts apart, as `train-00000-of-00002.parquet`
/// and `test.jsonl` do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What is trained on.
    Train,
    /// What is held out: files named for testing, else those named for validation.
    HeldOut,
}

impl Part {
    /// Words in the names of its files; those of one line stand for the same, and the first line that is met counts.
    fn words(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Train => &[&["train", "training"]],
            Self::HeldOut => &[&["test", "testing"], &["validation", "valid", "val", "dev", "eval"]],
        }
    }

    const ALL: [Self; 2] = [Self::Train, Self::HeldOut];
}

impl DataFiles {
    /// One file, which need not exist.
    pub fn one(path: impl Into<PathBuf>) -> Self {
        Self(vec![path.into()])
    }

    /// The files that names stand for, each of which is a file, a folder of data files (or one that has them in a folder `data`), a
    /// pattern such as `data/*.jsonl`, or several of these with commas between them. The files of a folder and of a pattern come in
    /// the order of their names.
    ///
    /// # Errors
    /// A folder without data files or with files of several kinds, a pattern that nothing matches, nothing named. A file that does
    /// not exist is an error when it is read.
    pub fn find(named: &[PathBuf], part: Part) -> Result<Self> {
        let mut found = Vec::new();
        for path in named {
            found.extend(expand(path, part)?);
        }
        if found.is_empty() {
            return Err(Error::Setting { setting: "data", reason: "no file is named; give at least one".into() });
        }
        Ok(Self(found))
    }

    /// The files.
    pub fn paths(&self) -> &[PathBuf] {
        &self.0
    }

    /// For people: the file, or the first and how many more.
    pub fn described(&self) -> String {
        match &self.0[..] {
            [one] => one.display().to_string(),
            [first, rest @ ..] => format!("{} and {} more", first.display(), rest.len()),
            [] => "nothing".into(),
        }
    }

    /// How many rows there are, where all files tell without being read, as parquet does.
    ///
    /// # Errors
    /// A file that is missing or corrupt.
    pub fn count(&self) -> Result<Option<usize>> {
        self.0
            .iter()
            .map(|it| reader::count(it))
            .try_fold(Some(0usize), |sum, count| Ok(sum.zip(count?).map(|it| it.0 + it.1)))
    }

    /// These files in another order.
    pub(crate) fn reordered(&self, order: &[usize]) -> Self {
        Self(order.iter().map(|it| self.0[*it].clone()).collect())
    }

    /// The columns of the first file.
    ///
    /// # Errors
    /// Those of [`columns`](crate::columns).
    pub fn columns(&self) -> Result<Vec<Column>> {
        self.0.first().map_or_else(|| Ok(Vec::new()), |it| reader::columns(it))
    }
}

/// The files of one name.
fn expand(path: &Path, part: Part) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        return in_folder(path, part);
    }
    let text = path.to_string_lossy();
    if path.exists() {
        return Ok(vec![path.into()]);
    }
    if text.contains(['*', '?', '[']) {
        return matching(path, &text);
    }
    let parts: Vec<PathBuf> = text.split(',').map(|it| PathBuf::from(it.trim())).collect();
    if parts.len() > 1 && parts.iter().all(|it| !it.as_os_str().is_empty()) {
        return Ok(DataFiles::find(&parts, part)?.0);
    }
    Ok(vec![path.into()])
}

fn matching(path: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let wrong = |reason: String| Error::Format { path: path.into(), reason };
    let found = glob::glob(pattern).map_err(|error| wrong(format!("no pattern of file names: {error}")))?;
    let mut files: Vec<PathBuf> = found.filter_map(Result::ok).filter(|it| it.is_file()).collect();
    files.sort();
    if files.is_empty() {
        return Err(wrong("no file matches this pattern".into()));
    }
    Ok(files)
}

fn in_folder(folder: &Path, part: Part) -> Result<Vec<PathBuf>> {
    let mut files = data_files(folder)?;
    if files.is_empty() && folder.join("data").is_dir() {
        files = data_files(&folder.join("data"))?;
    }
    let files = of_part(files, part);
    let wrong = |reason: String| Error::Format { path: folder.into(), reason };
    if files.is_empty() {
        return Err(wrong("a folder without data files".into()));
    }
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for file in &files {
        let kind = file.extension().unwrap_or_default().to_string_lossy().into_owned();
        *kinds.entry(kind).or_default() += 1;
    }
    if kinds.len() > 1 {
        let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} .{kind}")).collect();
        return Err(wrong(format!(
            "a folder with files of several kinds ({}); name those that are meant",
            kinds.join(", ")
        )));
    }
    Ok(files)
}

/// The files of a folder whose names are those of data, in order. Hidden ones, and JSON that describes data, are none.
fn data_files(folder: &Path) -> Result<Vec<PathBuf>> {
    const ABOUT_DATA: [&str; 4] = ["dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"];
    let read = |source| Error::Read { path: folder.into(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hidden = name.starts_with(['.', '_']) || ABOUT_DATA.contains(&name.as_str());
        if !hidden && path.is_file() && reader::is_named_as_data(&path) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Those of one part, if the names tell parts apart.
fn of_part(files: Vec<PathBuf>, part: Part) -> Vec<PathBuf> {
    let has = |path: &Path, words: &[&str]| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        name.split(|c: char| !c.is_ascii_alphabetic()).any(|word| words.contains(&word))
    };
    let in_any = |path: &Path| Part::ALL.iter().flat_map(|it| it.words()).any(|words| has(path, words));
    if !files.iter().any(|it| in_any(it)) {
        return files;
    }
    for words in part.words() {
        let found: Vec<PathBuf> = files.iter().filter(|it| has(it, words)).cloned().collect();
        if !found.is_empty() {
            return found;
        }
    }
    files
}

/// The rows of several files, one file after the other.
pub(crate) struct AllRows<'a> {
    files: &'a [PathBuf],
    wanted: Vec<Wanted>,
    /// What was asked for.
    asked: Range<usize>,
    /// What of it is read.
    range: Range<usize>,
    rows: Option<Box<dyn Rows>>,
    /// The rows of the files that were read to their ends.
    before: usize,
    /// Where the next row stands in its file.
    row: usize,
}

/// Where a row stands.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    /// From 0.
    pub(crate) row: u64,
}

impl<'a> AllRows<'a> {
    /// Rows in a range, whose end is `usize::MAX` for the end of the last file.
    pub(crate) fn new(files: &'a DataFiles, wanted: Vec<Wanted>, range: Range<usize>) -> Self {
        Self { files: &files.0, wanted, asked: range.clone(), range, rows: None, before: 0, row: 0 }
    }

    /// Without the first of them, which may be all.
    pub(crate) fn skipping(mut self, rows: usize) -> Self {
        self.range.start = self.range.start.saturating_add(rows).min(self.range.end);
        self
    }

    /// The next rows, and where the first of them stands; none at the end.
    ///
    /// # Errors
    /// Those of reading, and at the end a range that goes past it.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<(Place, Vec<Fields>)>> {
        while let Some((path, others)) = self.files.split_first() {
            let mut rows = match self.rows.take() {
                Some(rows) => rows,
                None => {
                    let within = |row: usize| row.saturating_sub(self.before);
                    let end = if self.range.end == usize::MAX { usize::MAX } else { within(self.range.end) };
                    self.row = within(self.range.start);
                    reader::open(path, &self.wanted, &(self.row..end))?
                }
            };
            if let Some(chunk) = rows.next_chunk()? {
                let place = Place { path: path.clone(), row: self.row as u64 };
                self.row += chunk.len();
                self.rows = Some(rows);
                return Ok(Some((place, chunk)));
            }
            self.before += rows.seen();
            if self.before >= self.range.end {
                break;
            }
            if others.is_empty() {
                self.check_end(path)?;
            }
            self.files = others;
        }
        Ok(None)
    }

    fn check_end(&self, last: &Path) -> Result<()> {
        let Range { start, end } = self.asked;
        if end == usize::MAX && (start == 0 || start < self.before) {
            return Ok(());
        }
        Err(Error::Rows { path: last.into(), start, end, available: self.before as u64 })
    }
}
