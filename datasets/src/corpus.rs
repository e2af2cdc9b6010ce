//! The pretraining corpus: short documents that use every word and every frame, in texts that never show the label
//! format of the reviews.

use crate::dice::Dice;
use crate::instructions::{Instruction, corpus_exercise, instruction_rows};
use crate::tokenizer::END_OF_TEXT;
use crate::vocabulary::{GROUPS, number_word};
use crate::{HELD_OUT_INSTRUCTIONS, SEED, TRAIN_INSTRUCTIONS, opinions, stories, world};
use std::collections::HashSet;

/// Documents of the corpus as `halfbyte-datasets corpus` writes it when nothing else is asked for.
pub const DOCUMENTS: usize = 80_000;
/// Bytes of a packed row: about 110 tokens, so that nearly every row fits into 128.
pub const ROW_BYTES: usize = 480;

/// `count` documents; a longer corpus of the same seed begins with the shorter one.
pub fn documents(seed: u64, count: usize) -> impl Iterator<Item = String> {
    let mut dice = Dice::new(seed, "corpus");
    let (_, held_out) = instruction_rows(SEED, TRAIN_INSTRUCTIONS, HELD_OUT_INSTRUCTIONS);
    let held_out: HashSet<Instruction> = held_out.into_iter().collect();
    (0..count).map(move |_| document(&held_out, &mut dice))
}

/// Joins documents with the end-of-text token into rows of at most `bytes` bytes (a longer document stands alone), so
/// that a trainer that pads each batch to its longest row wastes little on padding.
pub fn packed(documents: impl Iterator<Item = String>, bytes: usize) -> impl Iterator<Item = String> {
    let mut documents = documents.peekable();
    std::iter::from_fn(move || {
        let mut row = documents.next()?;
        while let Some(next) = documents.next_if(|next| row.len() + END_OF_TEXT.len() + next.len() <= bytes) {
            row.push_str(END_OF_TEXT);
            row.push_str(&next);
        }
        Some(row)
    })
}

fn document(held_out: &HashSet<Instruction>, dice: &mut Dice) -> String {
    match dice.weighted(&[56, 12, 8, 4, 7, 10, 3]) {
        0 => opinions::document(dice),
        1 => glossary(dice),
        2 => stories::story(dice),
        3 => [stories::scene(dice), stories::scene(dice)].join(" "),
        4 => world::portrait(dice),
        5 => exercise(held_out, dice),
        _ => facts_about_words(dice),
    }
}

fn glossary(dice: &mut Dice) -> String {
    let count = dice.between(2, 4);
    (0..count).map(|_| opinions::glossary(dice)).collect::<Vec<_>>().join(" ")
}

/// Exercises in the form of a question and an answer, never one of the held-out instruction rows.
fn exercise(held_out: &HashSet<Instruction>, dice: &mut Dice) -> String {
    let row = loop {
        let row = corpus_exercise(dice);
        if !held_out.contains(&row) {
            break row;
        }
    };
    let question = format!("{} {}", row.instruction, row.input);
    let question = question.trim_end();
    match dice.below(3) {
        0 => format!("Question: {question}\nAnswer: {}", row.output),
        1 => format!("\"{question}\" asked the teacher. \"{},\" said the pupil.", row.output.trim_end_matches('.')),
        _ => format!("{question}\n{}", row.output),
    }
}

/// Where the words of the label occur without an opinion, and plain facts about categories and numbers.
fn facts_about_words(dice: &mut Dice) -> String {
    let n = dice.between(1, 98);
    let category = dice.pick_ref(&GROUPS);
    match dice.below(6) {
        0 => format!("The number {n} is positive, the number -{n} is negative."),
        1 => {
            let (sign, place) = dice.pick(&[("positive", "above"), ("negative", "below")]);
            format!("A temperature {place} zero is a {sign} number.")
        }
        2 => {
            let end = dice.pick(&["positive", "negative"]);
            format!("Connect the {end} end of the battery to the {end} end of the lamp.")
        }
        3 => format!("After {} comes {}.", number_word(n), number_word(n + 1)),
        4 => {
            let words = dice.sample(&category.members, 3);
            format!("Some {}: {}, {} and {}.", category.plural, words[0], words[1], words[2])
        }
        _ => {
            let (sign, other) = dice.pick(&[("positive", "negative"), ("negative", "positive")]);
            format!("The opposite of {sign} is {other}.")
        }
    }
}
