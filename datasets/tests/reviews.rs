//! What the labelled reviews promise: balance, and a held-out part that shares neither opinion words nor frames.

use halfbyte_datasets::frames::{KINDS, frames, signature};
use halfbyte_datasets::lexicon::{Polarity, Split, opinion_words};
use halfbyte_datasets::reviews::{Review, prompt, review_rows};
use halfbyte_datasets::{HELD_OUT_REVIEWS, SEED, TRAIN_REVIEWS};
use std::collections::HashSet;

fn train() -> Vec<Review> {
    review_rows(SEED, Split::Train, TRAIN_REVIEWS)
}

fn test() -> Vec<Review> {
    review_rows(SEED, Split::HeldOut, HELD_OUT_REVIEWS)
}

/// Lower-case words separated by single spaces, with a space at either end, so that " word " finds whole words.
fn padded(text: &str) -> String {
    let words: Vec<String> = text
        .split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '-')
        .filter(|w| !w.is_empty())
        .map(str::to_lowercase)
        .collect();
    format!(" {} ", words.join(" "))
}

fn both_polarities(split: Split) -> Vec<&'static str> {
    [Polarity::Positive, Polarity::Negative].into_iter().flat_map(|p| opinion_words(p, split)).collect()
}

#[test]
fn same_seed_same_rows_and_another_seed_others() {
    assert_eq!(train(), train());
    assert_ne!(train(), review_rows(SEED + 1, Split::Train, TRAIN_REVIEWS));
}

#[test]
fn labels_are_balanced_and_rows_differ() {
    for rows in [train(), test()] {
        let positive = rows.iter().filter(|r| r.polarity == Polarity::Positive).count();
        assert_eq!(positive * 2, rows.len());
        let texts: HashSet<&str> = rows.iter().map(|r| r.text.as_str()).collect();
        assert_eq!(texts.len(), rows.len(), "every review occurs once");
    }
}

#[test]
fn no_held_out_word_occurs_in_training() {
    let train: String = train().iter().map(|r| padded(&r.text)).collect();
    for word in both_polarities(Split::HeldOut) {
        assert!(!train.contains(&padded(word)), "the held-out words `{word}` occur in a training review");
        // The word that carries the phrase: its verb, or the noun after the article.
        let key = word.trim_start_matches("a ").trim_start_matches("an ").split(' ').next().expect("a word");
        assert!(!train.contains(&padded(key)), "the held-out word `{key}` occurs in a training review");
    }
}

#[test]
fn held_out_reviews_use_no_training_word() {
    let test: String = test().iter().map(|r| padded(&r.text)).collect();
    for word in both_polarities(Split::Train) {
        assert!(!test.contains(&padded(word)), "the training words `{word}` occur in a held-out review");
    }
}

#[test]
fn no_held_out_frame_occurs_in_training() {
    let rows = train();
    for kind in KINDS {
        for frame in frames(kind, Split::HeldOut) {
            let piece = signature(frame);
            assert!(piece.trim().len() >= 4, "the frame `{frame}` has no piece by which to know it");
            let found = rows.iter().find(|r| r.text.contains(piece));
            assert!(found.is_none(), "`{piece}` of the held-out frame `{frame}` occurs in {found:?}");
        }
    }
}

#[test]
fn negation_and_mixed_cues_occur_in_both_splits() {
    for rows in [train(), test()] {
        for kind in KINDS {
            for polarity in [Polarity::Positive, Polarity::Negative] {
                let count = rows.iter().filter(|r| r.kind == kind && r.polarity == polarity).count();
                assert!(count * 10 > rows.len(), "only {count} of {} rows are {polarity:?} and {kind:?}", rows.len());
            }
        }
    }
}

#[test]
fn a_row_is_the_prompt_and_its_label() {
    for row in train().iter().chain(&test()) {
        assert_eq!(row.rendered(), format!("{} {}", prompt(&row.text), row.polarity.name()));
        assert!(row.text.ends_with(['.', '!']) && row.text.starts_with(char::is_uppercase), "{}", row.text);
        assert!(!row.text.contains(['{', '}', '\n', '\u{1}']) && !row.text.contains("  "), "{}", row.text);
        let words = row.text.split_whitespace().count();
        assert!((2..=50).contains(&words), "{words} words in: {}", row.text);
    }
}
