//! Questions about opinions, with one-word answers: what the base models are pretrained on.
//!
//! Next-token prediction alone hardly needs to know whether a word praises or blames, so a model of three million
//! parameters does not find out in minutes. These rows take little else. They use every word and every frame, held-out
//! ones included, but never the words or the layout of the labelled reviews: what fine-tuning has to teach is the task.

use crate::corpus;
use crate::dice::Dice;
use crate::domains::DOMAINS;
use crate::frames::{KINDS, Kind};
use crate::instructions::Instruction;
use crate::lexicon::{Split, opinion_words};
use crate::opinions::{any_polarity, side};
use crate::people::somebody;
use crate::phrase::capitalise;
use crate::reviews::{Stance, Subject, opinion};

/// Documents of the first stage.
pub const DOCUMENTS: usize = 60_000;
/// Questions of the second stage.
pub const QUESTIONS: usize = 16_000;

/// A question with the answers for praise and for blame. `{name}` is whoever holds the opinion.
const FORMS: [(&str, &str, &str); 4] = [
    ("{name} says: {opinion} Is {name} happy?", "yes", "no"),
    ("{opinion} Good or bad?", "good", "bad"),
    ("{opinion} Is that praise or blame?", "praise", "blame"),
    ("{name} says: {opinion} How does {name} feel?", "glad", "cross"),
];

/// Words that one document of single words names.
const WORDS: usize = 6;

/// `count` documents: questions, lists of single words, and up to a quarter from the corpus, so that the language is not
/// unlearned. Their order is a curriculum: what single words mean, then plain opinions, then negation, at last mixed cues.
/// All at once, none of it is learned in minutes.
pub fn documents(seed: u64, count: usize) -> impl Iterator<Item = String> {
    let mut dice = Dice::new(seed, "questions");
    let mut language = corpus::documents(seed ^ 1, count);
    (0..count).map(move |n| match dice.weighted(&weights(10 * n / count)) {
        0 => language.next().unwrap_or_default(),
        1 => single_words(&mut dice),
        kind => {
            let (question, answer) = question(KINDS[kind - 2], &mut dice);
            format!("{question} {answer}")
        }
    })
}

/// `count` questions with the answer apart, so that a trainer can take the loss on the answers alone: of a whole text they
/// are too small a part for a model to learn to look for what decides them. The same curriculum, without single words.
pub fn questions(seed: u64, count: usize) -> Vec<Instruction> {
    let mut dice = Dice::new(seed, "answers");
    let row = |n| {
        let kind = KINDS[dice.weighted(&kinds(10 * n / count))];
        let (instruction, output) = question(kind, &mut dice);
        Instruction { instruction, input: String::new(), output: output.to_owned() }
    };
    (0..count).map(row).collect()
}

/// Weights of plain, negated and mixed opinions in one tenth of the questions.
fn kinds(tenth: usize) -> [usize; 3] {
    match tenth {
        0..=1 => [100, 0, 0],
        2..=4 => [50, 50, 0],
        _ => [30, 35, 35],
    }
}

/// Weights of the corpus, single words, and plain, negated and mixed opinions in one tenth of the rows.
fn weights(tenth: usize) -> [usize; 5] {
    match tenth {
        0 => [10, 70, 20, 0, 0],
        1..=2 => [15, 15, 70, 0, 0],
        3..=5 => [20, 5, 35, 40, 0],
        _ => [25, 5, 15, 25, 30],
    }
}

/// `bland: bad. superb: good.`
fn single_words(dice: &mut Dice) -> String {
    let mut word = |_| {
        let polarity = any_polarity(dice);
        let word = dice.pick(&opinion_words(polarity, Split::All));
        let (_, praise, blame) = FORMS[dice.below(FORMS.len())];
        format!("{word}: {}.", side(polarity, praise, blame))
    };
    (0..WORDS).map(&mut word).collect::<Vec<_>>().join(" ")
}

fn question(kind: Kind, dice: &mut Dice) -> (String, &'static str) {
    let polarity = any_polarity(dice);
    let domain = dice.pick_ref(&DOMAINS);
    let subject = Subject { domain, item: dice.pick(&domain.items) };
    let mut text = opinion(subject, Stance { polarity, kind, split: Split::All }, dice);
    if dice.chance(25) {
        let openers = [&domain.openers, &domain.held_out_openers][dice.below(2)];
        text = format!("{} {text}", dice.pick(openers));
    }
    let (question, praise, blame) = FORMS[dice.below(FORMS.len())];
    let question = capitalise(&question.replace("{name}", somebody(dice).name).replace("{opinion}", &text));
    (question, side(polarity, praise, blame))
}
