//! Instruction rows: small exercises with one right answer each.

use crate::dice::Dice;
use crate::domains::DOMAINS;
use crate::lexicon::{Polarity, Split};
use crate::people::somebody;
use crate::phrase::{article, capitalise};
use crate::reviews::review;
use crate::vocabulary::{ACTIONS, GROUPS, LOOKS, MOTIONS, OBJECTS, OPPOSITES, PLACES, group, number_word, plural};
use crate::world;
use std::collections::HashSet;

/// An instruction, maybe with an input, and the answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// What to do.
    pub instruction: String,
    /// What to do it with; empty where the instruction says all.
    pub input: String,
    /// The answer.
    pub output: String,
}

impl Instruction {
    fn new(instruction: &str, input: impl Into<String>, output: impl Into<String>) -> Self {
        Self { instruction: instruction.to_owned(), input: input.into(), output: output.into() }
    }

    /// The question without the answer: two rows of the same key would give the answer away.
    pub fn key(&self) -> (&str, &str) {
        (&self.instruction, &self.input)
    }
}

/// Training and held-out rows; no question stands in both.
pub fn instruction_rows(seed: u64, train: usize, held_out: usize) -> (Vec<Instruction>, Vec<Instruction>) {
    let mut dice = Dice::new(seed, "instructions");
    let mut seen = HashSet::new();
    let mut rows = Vec::with_capacity(train + held_out);
    while rows.len() < train + held_out {
        let row = exercise(rows.len() % KINDS.len(), &mut dice);
        if seen.insert((row.instruction.clone(), row.input.clone())) {
            rows.push(row);
        }
    }
    dice.shuffle(&mut rows);
    let test = rows.split_off(train);
    (rows, test)
}

/// A random exercise of the kinds that the pretraining corpus shows too (questions about reviews are not among them).
pub(crate) fn corpus_exercise(dice: &mut Dice) -> Instruction {
    exercise(1 + dice.below(KINDS.len() - 1), dice)
}

type Make = fn(&mut Dice) -> Instruction;

/// The first kind asks about a review and stays out of the corpus.
const KINDS: [Make; 20] = [
    mood,
    sum,
    sum_of_input,
    difference,
    word_problem,
    larger,
    opposite,
    plural_of,
    past_tense,
    rewrite_past,
    member,
    list_three,
    odd_one_out,
    first_or_last_word,
    count_words,
    sort_words,
    reverse_words,
    pronoun,
    fact,
    colour_of,
];

fn exercise(kind: usize, dice: &mut Dice) -> Instruction {
    KINDS[kind](dice)
}

fn mood(dice: &mut Dice) -> Instruction {
    let polarity = [Polarity::Positive, Polarity::Negative][dice.below(2)];
    let text = review(dice.pick_ref(&DOMAINS), polarity, Split::Train, dice).text;
    let (question, good, bad) = dice.pick(&[
        ("Is the writer pleased or displeased?", "pleased", "displeased"),
        ("Did the writer like it? Answer yes or no.", "yes", "no"),
        ("Would the writer do it again? Answer yes or no.", "yes", "no"),
    ]);
    Instruction::new(question, text, if polarity == Polarity::Positive { good } else { bad })
}

fn sum(dice: &mut Dice) -> Instruction {
    let (a, b) = (dice.between(0, 20), dice.between(0, 20));
    Instruction::new(&format!("What is {a} plus {b}?"), "", (a + b).to_string())
}

fn sum_of_input(dice: &mut Dice) -> Instruction {
    let (a, b) = (dice.between(1, 20), dice.between(1, 20));
    Instruction::new("Add the two numbers.", format!("{a} and {b}"), (a + b).to_string())
}

fn difference(dice: &mut Dice) -> Instruction {
    let b = dice.between(0, 15);
    let a = b + dice.between(0, 15);
    Instruction::new(&format!("What is {a} minus {b}?"), "", (a - b).to_string())
}

fn word_problem(dice: &mut Dice) -> Instruction {
    let who = somebody(dice);
    let things = plural(dice.pick(OBJECTS));
    let (a, b) = (dice.between(2, 12), dice.between(2, 12));
    let name = capitalise(who.name);
    if dice.chance(50) {
        let text = format!("{name} has {a} {things} and finds {b} more.");
        Instruction::new("How many are there now?", text, format!("{} {things}", a + b))
    } else {
        let text = format!("{name} has {} {things} and gives {b} away.", a + b);
        Instruction::new("How many are left?", text, format!("{a} {things}"))
    }
}

fn larger(dice: &mut Dice) -> Instruction {
    let a = dice.between(0, 99);
    let b = (a + dice.between(1, 98)) % 100;
    let (word, answer) = if dice.chance(50) { ("larger", a.max(b)) } else { ("smaller", a.min(b)) };
    Instruction::new(&format!("Which number is {word}?"), format!("{a} or {b}"), answer.to_string())
}

fn opposite(dice: &mut Dice) -> Instruction {
    let (a, b) = dice.pick(OPPOSITES);
    match dice.below(3) {
        0 => Instruction::new("What is the opposite of this word?", a, b),
        1 => Instruction::new(&format!("Give the opposite of \"{a}\"."), "", b),
        _ => Instruction::new(&format!("Are {a} and {b} opposites?"), "", "yes"),
    }
}

fn plural_of(dice: &mut Dice) -> Instruction {
    let noun = if dice.chance(50) { dice.pick(OBJECTS) } else { dice.pick(group("animal")) };
    match dice.below(2) {
        0 => Instruction::new("Write the plural of the word.", noun, plural(noun)),
        _ => {
            let n = dice.between(2, 20);
            Instruction::new(&format!("One {noun}, {} ...?", number_word(n)), "", plural(noun))
        }
    }
}

fn past_tense(dice: &mut Dice) -> Instruction {
    let verbs = if dice.chance(60) { ACTIONS } else { MOTIONS };
    let (base, past, doing) = dice.pick(verbs);
    match dice.below(3) {
        0 => Instruction::new("Write the past tense of the verb.", base, past),
        1 => Instruction::new("Write the verb with -ing.", base, doing),
        _ => Instruction::new("Which verb is this the past tense of?", past, base),
    }
}

fn rewrite_past(dice: &mut Dice) -> Instruction {
    let (base, past, _) = dice.pick(ACTIONS);
    let (look, object, place) = (dice.pick(LOOKS), dice.pick(OBJECTS), dice.pick(PLACES));
    Instruction::new(
        "Rewrite the sentence in the past.",
        format!("Today we {base} the {look} {object} {place}."),
        format!("Yesterday we {past} the {look} {object} {place}."),
    )
}

fn member(dice: &mut Dice) -> Instruction {
    let groups: Vec<_> = GROUPS.iter().filter(|g| !matches!(g.name, "colour" | "season" | "flower")).collect();
    let (a, b) = (dice.pick(&groups), dice.pick(&groups));
    let word = dice.pick(&a.members);
    let question = format!("Is {} {word} {} {}?", article(word), article(b.name), b.name);
    Instruction::new(&question, "", if b.members.contains(&word) { "yes" } else { "no" })
}

fn list_three(dice: &mut Dice) -> Instruction {
    let category = dice.pick_ref(&GROUPS);
    let letter = dice.pick(&category.members).chars().next().unwrap_or('a');
    let starting: Vec<&str> = category.members.iter().copied().filter(|m| m.starts_with(letter)).collect();
    if starting.len() == 1 {
        let question = format!("Name one of the {} that starts with the letter {letter}.", category.plural);
        return Instruction::new(&question, "", starting[0]);
    }
    let words = dice.sample(&category.members, 3);
    let input = format!("{}, {}, {}", words[0], words[1], words[2]);
    Instruction::new("What do these have in common?", input, format!("They are {}.", category.plural))
}

fn odd_one_out(dice: &mut Dice) -> Instruction {
    let groups = dice.sample(&GROUPS, 2);
    let (group, other) = (groups[0], groups[1]);
    let outsiders: Vec<&str> = other.members.iter().copied().filter(|m| !group.members.contains(m)).collect();
    let outsider = dice.pick(&outsiders);
    let mut words: Vec<&str> = dice.sample(&group.members, 3).into_iter().copied().collect();
    words.insert(dice.below(4), outsider);
    Instruction::new("Which word does not belong?", words.join(", "), outsider)
}

fn first_or_last_word(dice: &mut Dice) -> Instruction {
    let words = looks_and_objects(dice);
    let first = dice.chance(50);
    let question = if first { "Write only the first word." } else { "Write only the last word." };
    let answer = if first { words[0] } else { words[words.len() - 1] };
    Instruction::new(question, words.join(" "), answer)
}

fn count_words(dice: &mut Dice) -> Instruction {
    let count = dice.between(2, 6);
    let words: Vec<&str> = dice.sample(OBJECTS, count).into_iter().copied().filter(|w| !w.contains(' ')).collect();
    Instruction::new("How many words are there?", words.join(" "), number_word(words.len()))
}

fn sort_words(dice: &mut Dice) -> Instruction {
    let words: Vec<&str> = dice.sample(OBJECTS, 3).into_iter().copied().collect();
    let mut sorted = words.clone();
    sorted.sort_unstable();
    Instruction::new("Sort the words by the alphabet.", words.join(", "), sorted.join(", "))
}

fn reverse_words(dice: &mut Dice) -> Instruction {
    let words = looks_and_objects(dice);
    let reversed: Vec<&str> = words.iter().rev().copied().collect();
    Instruction::new("Write the words in reverse order.", words.join(" "), reversed.join(" "))
}

fn pronoun(dice: &mut Dice) -> Instruction {
    let who = somebody(dice);
    let rest = format!("{} the {} {}.", dice.pick(ACTIONS).1, dice.pick(OBJECTS), dice.pick(PLACES));
    let input = format!("{} {rest}", capitalise(who.name));
    Instruction::new("Put a pronoun for the person.", input, format!("{} {rest}", capitalise(who.subject)))
}

fn fact(dice: &mut Dice) -> Instruction {
    let (question, answer) = world::question(dice);
    Instruction::new(&question, "", answer)
}

fn colour_of(dice: &mut Dice) -> Instruction {
    let who = somebody(dice);
    let colour = dice.pick(&group("colour")[..10]);
    let object = dice.pick(OBJECTS);
    let place = dice.pick(PLACES);
    let text = format!("{} put the {colour} {object} {place}.", capitalise(who.name));
    match dice.below(3) {
        0 => Instruction::new("Which colour does the thing have?", text, colour),
        1 => Instruction::new("Where is the thing?", text, capitalise(place) + "."),
        _ => Instruction::new("What was put down?", text, format!("The {colour} {object}.")),
    }
}

fn looks_and_objects(dice: &mut Dice) -> Vec<&'static str> {
    let count = dice.between(1, 3);
    let mut words: Vec<&str> = dice.sample(LOOKS, count).into_iter().copied().collect();
    let object = dice.pick(OBJECTS);
    words.extend(object.split(' '));
    words
}
