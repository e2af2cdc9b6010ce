//! Which parquet files of a data set are which split, by the places where people and the hub put them.
//!
//! `CONFIG/SPLIT/0000.parquet` is the hub's own conversion, `data/SPLIT-00000-of-00002.parquet` and `CONFIG/SPLIT-...` are what the
//! `datasets` library writes; of other files a word in the name or of a folder tells (`test.parquet`, `val/a.parquet`), and what has none
//! is `train`.

use crate::DataName;

/// The files of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) config: String,
    pub(crate) split: String,
    pub(crate) paths: Vec<String>,
}

const DEFAULT: &str = "default";
const TRAIN: &str = "train";
/// Words by which a split is known.
const WORDS: [(&str, &[&str]); 3] = [
    (TRAIN, &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The splits of the parquet files among some paths.
pub(crate) fn splits<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<Split> {
    let mut found: Vec<Split> = Vec::new();
    for path in paths.filter(|it| it.ends_with(".parquet") && !it.split('/').any(|it| it.starts_with('.'))) {
        let (config, split) = place(path);
        match found.iter_mut().find(|it| it.config == config && it.split == split) {
            Some(it) => it.paths.push(path.to_owned()),
            None => found.push(Split { config, split, paths: vec![path.to_owned()] }),
        }
    }
    found.iter_mut().for_each(|it| it.paths.sort());
    found.sort_by(|a, b| (&a.config, &a.split).cmp(&(&b.config, &b.split)));
    found
}

fn place(path: &str) -> (String, String) {
    let parts: Vec<&str> = path.trim_end_matches(".parquet").split('/').collect();
    let Some((stem, folders)) = parts.split_last() else { return (DEFAULT.into(), TRAIN.into()) };
    if let [config, split] = folders
        && is_number(stem)
    {
        return ((*config).to_owned(), split.trim_start_matches("partial-").to_owned());
    }
    let said = numbered(stem).map(str::to_owned).or_else(|| word(stem));
    let of_folder = folders.iter().rposition(|it| word(it).is_some());
    let split = said.clone().or_else(|| of_folder.and_then(|it| word(folders[it]))).unwrap_or_else(|| TRAIN.into());
    let is_split = |i: usize| said.is_none() && of_folder == Some(i);
    let config: Vec<&str> =
        folders.iter().enumerate().filter(|(i, it)| **it != "data" && !is_split(*i)).map(|it| *it.1).collect();
    (if config.is_empty() { DEFAULT.into() } else { config.join("-") }, split)
}

/// `train` of `train-00000-of-00002` and `train-00000-of-00002-0123456789abcdef`.
fn numbered(stem: &str) -> Option<&str> {
    let (before, after) = stem.split_once("-of-")?;
    let (split, number) = before.rsplit_once('-')?;
    let count = after.split('-').next()?;
    (is_number(number) && is_number(count) && !split.is_empty()).then_some(split)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit())
}

fn word(text: &str) -> Option<String> {
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_lowercase);
    words.find_map(|it| Some(WORDS.iter().find(|(_, all)| all.contains(&it.as_str()))?.0.to_owned()))
}

/// The split that is meant: the one that is named, else the first of `usual` that there is, else the only one; of several sets the named
/// one, else `default`.
///
/// # Errors
/// What there is instead, as a sentence.
pub(crate) fn pick(all: &[Split], name: &DataName, usual: &[&str]) -> Result<Split, String> {
    let (config, split) = (name.config.as_deref(), name.split.as_deref());
    let mut configs: Vec<&str> = all.iter().map(|it| it.config.as_str()).collect();
    configs.dedup();
    let named = config.or(if configs.len() == 1 { configs.first().copied() } else { Some(DEFAULT) });
    let of_config: Vec<&Split> = all.iter().filter(|it| Some(it.config.as_str()) == named).collect();
    if of_config.is_empty() {
        let part = split.or(usual.first().copied()).unwrap_or(TRAIN);
        return Err(match config {
            Some(it) => format!("has no part {it}; there is {}", configs.join(", ")),
            None => format!("holds several sets: {}; say which, as in :{}/{part}", configs.join(", "), configs[0]),
        });
    }
    let named = |split: &str| of_config.iter().find(|it| it.split == split);
    let found = match split {
        Some(split) => named(split),
        None => usual.iter().find_map(|it| named(it)).or(of_config.first().filter(|_| of_config.len() == 1)),
    };
    let there: Vec<&str> = of_config.iter().map(|it| it.split.as_str()).collect();
    found.map(|it| (*it).clone()).ok_or_else(|| match split {
        Some(it) => format!("has no split {it}; there is {}", there.join(", ")),
        None => format!("has the splits {}; say which, as in :{}", there.join(", "), there[0]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Name};

    fn pick(all: &[Split], config: Option<&str>, split: Option<&str>) -> Result<Split, String> {
        picked(all, config, split, &[TRAIN])
    }

    fn picked(all: &[Split], config: Option<&str>, split: Option<&str>, usual: &[&str]) -> Result<Split, String> {
        let repo = Name { kind: Kind::DataSet, id: "a/b".into(), revision: None };
        let name = DataName { repo, config: config.map(str::to_owned), split: split.map(str::to_owned) };
        super::pick(all, &name, usual)
    }

    fn placed(path: &str) -> String {
        let (config, split) = place(path);
        format!("{config}/{split}")
    }

    #[test]
    fn files_are_known_by_their_places() {
        for (path, wanted) in [
            ("default/train/0000.parquet", "default/train"),
            ("en/partial-train/0003.parquet", "en/train"),
            ("data/train-00000-of-00002.parquet", "default/train"),
            ("data/train_sft-00000-of-00001-0123456789abcdef.parquet", "default/train_sft"),
            ("en/validation-00000-of-00001.parquet", "en/validation"),
            ("test.parquet", "default/test"),
            ("val/a.parquet", "default/validation"),
            ("en/dev/a.parquet", "en/validation"),
            ("rows.parquet", "default/train"),
            ("data/0000.parquet", "default/train"),
        ] {
            assert_eq!(placed(path), wanted, "{path}");
        }
    }

    #[test]
    fn what_is_meant_is_found_or_what_there_is_said() {
        let paths = [
            "data/train-00001-of-00002.parquet",
            "data/train-00000-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
            "x.csv",
        ];
        let all = splits(paths.into_iter());
        let train = pick(&all, None, None).unwrap();
        assert_eq!((train.split.as_str(), train.paths.len()), ("train", 2));
        assert!(train.paths[0].contains("00000"), "shards in their order");
        assert_eq!(picked(&all, None, None, &["test", "validation"]).unwrap().split, "test");
        assert_eq!(pick(&all, None, Some("test")).unwrap().paths.len(), 1);
        assert_eq!(pick(&all, None, Some("dev")).unwrap_err(), "has no split dev; there is test, train");
        let several = splits(["en/train/0.parquet", "de/train/0.parquet"].into_iter());
        assert!(pick(&several, None, None).unwrap_err().contains("de, en; say which, as in :de/train"));
        assert_eq!(pick(&several, Some("en"), None).unwrap().config, "en");
        let odd = splits(["a-00000-of-00001.parquet", "b-00000-of-00001.parquet"].into_iter());
        assert!(pick(&odd, None, None).unwrap_err().contains("the splits a, b"));
    }
}
