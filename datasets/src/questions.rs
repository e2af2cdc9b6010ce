//! Questions about opinions, with one-word answers: the second stage of pretraining.
//!
//! Next-token prediction alone hardly needs to know whether a word praises or blames, so a model of three million
//! parameters does not find out in minutes. Answering these questions, with the loss on the answer alone, takes little
//! else. They use every word and every frame, held-out ones included, but never the words or the layout of the labelled
//! reviews: what fine-tuning has to teach is the task.

use crate::dice::Dice;
use crate::domains::DOMAINS;
use crate::frames::Kind;
use crate::instructions::Instruction;
use crate::lexicon::{Polarity, Split};
use crate::people::somebody;
use crate::phrase::capitalise;
use crate::reviews::{Stance, Subject, opinion};

/// Rows unless asked otherwise.
pub const QUESTIONS: usize = 36_000;

/// A question with the answers for praise and for blame. `{name}` is whoever holds the opinion.
const FORMS: [(&str, &str, &str); 4] = [
    ("{name} says: {opinion} Is {name} happy?", "yes", "no"),
    ("{opinion} Good or bad?", "good", "bad"),
    ("{opinion} Is that praise or blame?", "praise", "blame"),
    ("{name} says: {opinion} How does {name} feel?", "glad", "cross"),
];

/// `count` questions, about half of them about praise, the same for the same seed. Their order is a curriculum: first plain
/// opinions, which teach the words, then negation too, at last mixed cues as well. All at once, none of it is learned in
/// minutes.
pub fn questions(seed: u64, count: usize) -> Vec<Instruction> {
    let mut dice = Dice::new(seed, "questions");
    (0..count).map(|n| question(kind_weights(10 * n / count), &mut dice)).collect()
}

/// Weights of plain, negated and mixed opinions in one tenth of the rows.
fn kind_weights(tenth: usize) -> [usize; 3] {
    match tenth {
        0..=2 => [100, 0, 0],
        3..=5 => [50, 50, 0],
        _ => [30, 35, 35],
    }
}

fn question(weights: [usize; 3], dice: &mut Dice) -> Instruction {
    let kind = [Kind::Plain, Kind::Negated, Kind::Mixed][dice.weighted(&weights)];
    let polarity = if dice.chance(50) { Polarity::Positive } else { Polarity::Negative };
    let domain = dice.pick_ref(&DOMAINS);
    let subject = Subject { domain, item: dice.pick(&domain.items) };
    let mut text = opinion(subject, Stance { polarity, kind, split: Split::All }, dice);
    if dice.chance(25) {
        let openers = [&domain.openers, &domain.held_out_openers][dice.below(2)];
        text = format!("{} {text}", dice.pick(openers));
    }
    let (question, praise, blame) = FORMS[dice.below(FORMS.len())];
    let instruction = capitalise(&question.replace("{name}", somebody(dice).name).replace("{opinion}", &text));
    let output = if polarity == Polarity::Positive { praise } else { blame };
    Instruction { instruction, input: String::new(), output: output.to_owned() }
}
