//! Rows that are held out by what they say.

mod common;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use common::*;
use halfbyte_data::{DataConfig, DataFiles, Dataset, Excess, HoldOut, Tokenised};

fn texts(count: usize) -> Vec<Option<String>> {
    (0..count).map(|it| Some(format!("row number {it}, {}", "and so on ".repeat(it % 7)))).collect()
}

fn read(folder: &Path, rows: &[Option<String>], config: &DataConfig) -> Tokenised {
    let path = folder.join("rows.jsonl");
    write_jsonl(&path, &[("text", rows)]);
    Tokenised::read(&DataFiles::one(path), &tokenizer(), config).unwrap()
}

/// The examples as ids.
fn ids(dataset: &Dataset) -> Vec<Vec<u32>> {
    dataset.rows().map(|it| it.ids.to_vec()).collect()
}

#[test]
fn a_row_stays_on_its_side_whatever_stands_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(64);
    let mut sides: HashMap<Vec<u32>, bool> = HashMap::new();
    let mut rows = texts(1000);
    for round in 0..3 {
        let mut made = [read(folder.path(), &rows, &config)];
        let all = made[0].dataset.len();
        let held_out = HoldOut::Share(0.1).take(&mut made).unwrap();
        assert_eq!(held_out.len() + made[0].dataset.len(), all);
        assert_eq!(made[0].report.held_out, held_out.len() as u64);
        assert_eq!(made[0].report.tokens, made[0].dataset.tokens() as u64);
        let trained = made[0].dataset.rows().map(|it| (1..it.ids.len()).filter(|t| it.trained(*t)).count() as u64);
        assert_eq!(made[0].report.trained_tokens, trained.sum::<u64>());
        assert!((60..160).contains(&held_out.len()) || round == 2, "{} of {all}", held_out.len());
        for (dataset, is_out) in [(&held_out, true), (&made[0].dataset, false)] {
            for row in ids(dataset) {
                assert_eq!(*sides.entry(row).or_insert(is_out), is_out, "round {round}");
            }
        }
        // Another order, then twice as many rows, half of which were there before.
        rows.reverse();
        if round == 1 {
            rows.extend(texts(1500).into_iter().skip(500));
        }
    }
}

#[test]
fn equal_rows_are_on_one_side_in_all_sources_and_all_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let rows = texts(60);
    let doubled: Vec<_> = rows.iter().cloned().chain(rows.iter().rev().cloned()).collect();
    let split = DataConfig { excess: Excess::Split, ..config(16) };
    for how in [HoldOut::Share(0.3), HoldOut::Rows(20)] {
        let mut made = [read(folder.path(), &doubled, &split), read(folder.path(), &rows, &split)];
        let held_out = HoldOut::take(how, &mut made).unwrap();
        let out: HashSet<Vec<u32>> = ids(&held_out).into_iter().collect();
        // Pieces of 16 tokens that hold a row's number tell the row.
        let begins = |it: &Vec<u32>| it.starts_with(&tokenizer().encode("row number").unwrap());
        for source in &made {
            assert!(ids(&source.dataset).iter().filter(|it| begins(it)).all(|it| !out.contains(it)), "{how:?}");
        }
        if let HoldOut::Rows(rows) = how {
            assert!((rows..rows + 12).contains(&held_out.len()), "{} examples", held_out.len());
        }
    }
}

#[test]
fn what_is_left_is_as_if_the_others_had_never_been_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tasks.jsonl");
    // Of which the answers alone are learned.
    let read = |rows: &[Option<String>]| {
        write_jsonl(&path, &[("instruction", rows), ("input", rows), ("output", rows)]);
        Tokenised::read(&DataFiles::one(&path), &tokenizer(), &instruction_config(200)).unwrap()
    };
    let rows = texts(300);
    let mut made = [read(&rows)];
    let before = ids(&made[0].dataset);
    let held_out = HoldOut::Rows(100).take(&mut made).unwrap();
    assert_eq!(held_out.len(), 100, "no two rows are equal");
    let out: HashSet<Vec<u32>> = ids(&held_out).into_iter().collect();
    let of = |is_out: bool| {
        let rows = rows.iter().zip(&before).filter(|it| out.contains(it.1) == is_out);
        read(&rows.map(|it| it.0.clone()).collect::<Vec<_>>()).dataset
    };
    assert_eq!((&held_out, &made[0].dataset), (&of(true), &of(false)));
}

#[test]
fn what_is_left_is_whole_wherever_its_last_token_stands() {
    let folder = tempfile::tempdir().unwrap();
    // Two tokens each, so that within these the last one stands at the end of a word of the mask and at its beginning.
    let rows: Vec<_> = (0..80).map(|it| Some(format!("{}{}", ('a'..='z').nth(it % 26).unwrap(), it / 26))).collect();
    let all = read(folder.path(), &rows, &config(8));
    let told = ids(&all.dataset);
    assert!(told.iter().all(|it| it.len() == 2));
    for count in 1..80 {
        let mut made = [all.clone()];
        let held_out = HoldOut::Rows(count).take(&mut made).unwrap();
        let out: HashSet<Vec<u32>> = ids(&held_out).into_iter().collect();
        let left: Vec<_> = rows.iter().zip(&told).filter(|it| !out.contains(it.1)).map(|it| it.0.clone()).collect();
        assert_eq!(made[0].dataset, read(folder.path(), &left, &config(8)).dataset, "{count}");
    }
}

#[test]
fn more_can_be_held_out_of_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = [read(folder.path(), &texts(100), &config(64))];
    let all = ids(&made[0].dataset);
    let mut parts = Vec::new();
    for rows in [60, 30] {
        let held_out = HoldOut::Rows(rows).take(&mut made).unwrap();
        assert_eq!(held_out.len(), rows, "no two rows are equal");
        parts.extend(ids(&held_out));
    }
    parts.extend(ids(&made[0].dataset));
    assert_eq!(parts.iter().collect::<HashSet<_>>(), all.iter().collect());
    assert_eq!(parts.len(), all.len());
}

#[test]
fn numbers_that_hold_nothing_out_or_all() {
    for number in [0.0, -0.5, 1.5, 1e15, f64::NAN, f64::INFINITY] {
        let message = HoldOut::parse(number).unwrap_err().to_string();
        assert!(message.contains("0.05"), "{number}: {message}");
    }
    assert_eq!(HoldOut::parse(0.05).unwrap(), HoldOut::Share(0.05));
    assert_eq!(HoldOut::parse(500.0).unwrap(), HoldOut::Rows(500));
    assert_eq!(HoldOut::parse(1.0).unwrap(), HoldOut::Rows(1));
    let folder = tempfile::tempdir().unwrap();
    let message = |how: HoldOut| how.take(&mut [read(folder.path(), &texts(10), &config(40))]).unwrap_err().to_string();
    assert!(message(HoldOut::Share(1e-9)).contains("none would be held out"));
    assert!(message(HoldOut::Rows(10)).contains("10 rows are to be held out of 10"));
    assert!(message(HoldOut::Share(0.999_999)).contains("no row would be left"));
}
