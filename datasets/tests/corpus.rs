//! The corpus shows every word and every frame, and never the label format.

#![allow(clippy::print_stdout, reason = "the figures of the data card")]

use halfbyte_datasets::corpus::{documents, packed};
use halfbyte_datasets::frames::{KINDS, frames, signature};
use halfbyte_datasets::lexicon::{Polarity, Split, opinion_words};
use halfbyte_datasets::tokenizer::END_OF_TEXT;
use halfbyte_datasets::{SEED, table};
use std::collections::{HashMap, HashSet};

const COUNT: usize = 30_000;

#[test]
fn same_seed_same_documents_and_a_longer_corpus_begins_with_the_shorter() {
    let first: Vec<String> = documents(SEED, 500).collect();
    let longer: Vec<String> = documents(SEED, 600).collect();
    assert_eq!(first[..], longer[..500]);
    assert_ne!(first, documents(SEED + 1, 500).collect::<Vec<_>>());
}

#[test]
fn documents_are_sound_and_never_show_the_label_format() {
    let mut distinct = HashSet::new();
    for document in documents(SEED, COUNT) {
        assert!(!document.trim().is_empty());
        assert!(!document.contains(['{', '}', '\u{1}', '|']) && !document.contains("  "), "{document}");
        assert!(!document.contains("Sentiment") && !document.contains("Review"), "{document}");
        assert!(document.len() < 800, "{document}");
        assert!(document.starts_with(|c: char| c.is_uppercase() || c == '"' || c.is_ascii_digit()), "{document}");
        distinct.insert(document);
    }
    assert!(distinct.len() * 100 > COUNT * 90, "only {} of {COUNT} documents differ", distinct.len());
}

#[test]
fn every_opinion_word_and_frame_is_frequent() {
    let documents: Vec<String> = documents(SEED, COUNT).collect();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for word in documents.iter().flat_map(|d| d.split(|c: char| !c.is_alphanumeric() && c != '-')) {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    for polarity in [Polarity::Positive, Polarity::Negative] {
        for word in opinion_words(polarity, Split::All) {
            let seen = word.split(' ').map(|w| counts.get(w).copied().unwrap_or(0)).min().unwrap_or(0);
            assert!(seen >= 50, "`{word}` occurs {seen} times");
        }
    }
    for frame in KINDS.into_iter().flat_map(|kind| frames(kind, Split::HeldOut)) {
        let seen = documents.iter().filter(|d| d.contains(signature(frame))).count();
        assert!(seen >= 50, "the frame `{frame}` occurs {seen} times");
    }
    let words = counts.iter().filter(|(w, n)| **n > 2 && w.chars().all(char::is_alphabetic)).count();
    println!("{words} different words in {COUNT} documents");
    assert!(words > 1_500, "{words} different words");
}

#[test]
fn a_corpus_file_is_reproducible() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let paths = ["a", "b"].map(|name| folder.path().join(name));
    for path in &paths {
        table::write_texts(path, documents(3, 10_000)).expect("a small corpus");
    }
    assert!(std::fs::read(&paths[0]).expect("a file") == std::fs::read(&paths[1]).expect("a file"));
    let error = table::write_texts(&paths[0], std::iter::empty()).expect_err("nothing to write");
    assert!(error.to_string().contains("at least one"), "{error}");
}

#[test]
fn packing_loses_nothing_and_keeps_to_the_limit() {
    let rows: Vec<String> = packed(documents(SEED, 2_000), 480).collect();
    let unpacked: Vec<&str> = rows.iter().flat_map(|row| row.split(END_OF_TEXT)).collect();
    assert_eq!(unpacked, documents(SEED, 2_000).collect::<Vec<_>>());
    assert!(rows.iter().all(|row| row.len() <= 480 || !row.contains(END_OF_TEXT)));
    assert!(rows.len() * 2 < 2_000, "{} rows hold 2000 documents", rows.len());
    assert_eq!(packed(documents(SEED, 9), 0).count(), 9);
}
