//! What the base models are pretrained on: balanced, the same for the same seed, and never a labelled review.

use halfbyte_datasets::lexicon::{Polarity, Split, opinion_words};
use halfbyte_datasets::questions::{documents, questions};

const PRAISE: [&str; 4] = ["yes", "good", "praise", "glad"];
const BLAME: [&str; 4] = ["no", "bad", "blame", "cross"];

#[test]
fn questions_are_reproducible_balanced_and_answered_in_one_word() {
    let rows = questions(3, 2_000);
    assert!(rows == questions(3, 2_000), "the same seed gives the same questions");
    assert!(rows != questions(4, 2_000), "another seed gives others");
    let praise = rows.iter().filter(|row| PRAISE.contains(&row.output.as_str())).count();
    let blame = rows.iter().filter(|row| BLAME.contains(&row.output.as_str())).count();
    assert_eq!(praise + blame, rows.len());
    assert!((900..=1_100).contains(&praise), "{praise} of {} praise", rows.len());
}

#[test]
fn negation_comes_after_plain_opinions() {
    let negated = |rows: &[halfbyte_datasets::instructions::Instruction]| {
        rows.iter().filter(|row| row.instruction.contains(" not ")).count()
    };
    let rows = questions(3, 2_000);
    assert_eq!(negated(&rows[..400]), 0);
    assert!(negated(&rows[400..1_000]) > 50);
}

#[test]
fn lessons_name_every_word_and_no_label() {
    let all: Vec<String> = documents(3, 20_000).collect();
    for polarity in [Polarity::Positive, Polarity::Negative] {
        for word in opinion_words(polarity, Split::All) {
            let lesson = format!("{word}: ");
            assert!(all.iter().any(|it| it.contains(&lesson)), "no lesson on `{word}`");
        }
    }
    let questions = questions(3, 2_000);
    for text in all.iter().chain(questions.iter().map(|it| &it.instruction)) {
        assert!(!text.contains("Sentiment:") && !text.contains("Review:"), "{text}");
    }
}
