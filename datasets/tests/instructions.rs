//! The instruction rows: distinct, answered, and a held-out part that training and corpus do not show.

use halfbyte_datasets::corpus;
use halfbyte_datasets::instructions::{Instruction, instruction_rows};
use halfbyte_datasets::{HELD_OUT_INSTRUCTIONS, SEED, TRAIN_INSTRUCTIONS};
use std::collections::{HashMap, HashSet};

fn rows() -> (Vec<Instruction>, Vec<Instruction>) {
    instruction_rows(SEED, TRAIN_INSTRUCTIONS, HELD_OUT_INSTRUCTIONS)
}

#[test]
fn rows_are_reproducible_and_complete() {
    let (train, test) = rows();
    assert_eq!((train.len(), test.len()), (TRAIN_INSTRUCTIONS, HELD_OUT_INSTRUCTIONS));
    assert_eq!(rows(), (train.clone(), test.clone()));
    for row in train.iter().chain(&test) {
        assert!(!row.instruction.trim().is_empty() && !row.output.trim().is_empty(), "{row:?}");
    }
}

#[test]
fn no_question_stands_in_both_splits() {
    let (train, test) = rows();
    let train: HashSet<_> = train.iter().map(Instruction::key).collect();
    assert_eq!(train.len(), TRAIN_INSTRUCTIONS);
    assert!(test.iter().all(|row| !train.contains(&row.key())));
}

#[test]
fn every_kind_of_question_stands_in_both_splits() {
    let (train, test) = rows();
    for question in ["Add the two numbers.", "Which word does not belong?", "the writer", "Orrowen"] {
        assert!([&train, &test].iter().all(|rows| rows.iter().any(|r| r.instruction.contains(question))), "{question}");
    }
}

#[test]
fn sums_are_right() {
    let (train, _) = rows();
    let mut checked = 0;
    for row in train.iter().filter(|r| r.instruction == "Add the two numbers.") {
        let (a, b) = row.input.split_once(" and ").expect("two numbers");
        let sum: u32 = [a, b].iter().map(|n| n.parse::<u32>().expect("a number")).sum();
        assert_eq!(row.output, sum.to_string());
        checked += 1;
    }
    assert!(checked > 20);
}

#[test]
fn the_same_question_always_has_the_same_answer() {
    // Facts of the invented land must not contradict each other, whichever seed asks for them.
    let mut answers: HashMap<String, String> = HashMap::new();
    for seed in 0..5 {
        for row in instruction_rows(seed, 400, 0).0 {
            if row.input.is_empty()
                && (row.instruction.contains("Orrowen") || row.instruction.starts_with("Which river"))
            {
                let known = answers.entry(row.instruction.clone()).or_insert_with(|| row.output.clone());
                assert_eq!(*known, row.output, "{}", row.instruction);
            }
        }
    }
    assert!(answers.len() > 5);
}

#[test]
fn the_corpus_does_not_hold_the_held_out_exercises() {
    let (_, test) = rows();
    // Exercises about reviews and facts are told apart from plain text by their input.
    let asked: HashSet<String> =
        test.iter().filter(|r| !r.input.is_empty()).map(|r| format!("{} {}", r.instruction, r.input)).collect();
    for document in corpus::documents(SEED, 20_000) {
        let question = document.lines().next().unwrap_or("").trim_start_matches("Question: ");
        assert!(!asked.contains(question), "{document}");
    }
}
