//! Short reviews with a label, from the frames and the lexicon.

use crate::dice::Dice;
use crate::domains::{DOMAINS, Domain, Part};
use crate::frames::{KINDS, Kind, frames};
use crate::lexicon::{Polarity, Role, Split, Tag, words};
use crate::phrase::{ARTICLE, expand, finish};
use std::collections::HashSet;

/// One review.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    /// The text.
    pub text: String,
    /// The overall opinion.
    pub polarity: Polarity,
    /// The kind of its weightiest sentence.
    pub kind: Kind,
}

impl Review {
    /// The review as a model reads it in training: text, line break, label.
    pub fn rendered(&self) -> String {
        format!("{} {}", prompt(&self.text), self.polarity.name())
    }
}

/// What stands before the label. It ends without a space, because " positive" with its space is one token.
pub fn prompt(review: &str) -> String {
    format!("Review: {review}\nSentiment:")
}

/// Different reviews, half of them positive, in random order.
pub fn review_rows(seed: u64, split: Split, count: usize) -> Vec<Review> {
    let mut dice = Dice::new(seed, if split == Split::Train { "reviews-train" } else { "reviews-test" });
    let mut seen = HashSet::new();
    let mut rows = Vec::with_capacity(count);
    while rows.len() < count {
        let polarity = if rows.len() % 2 == 0 { Polarity::Positive } else { Polarity::Negative };
        let domain = dice.pick_ref(&DOMAINS);
        let review = review(domain, polarity, split, &mut dice);
        if seen.insert(review.text.clone()) {
            rows.push(review);
        }
    }
    dice.shuffle(&mut rows);
    rows
}

/// A review of one to three sentences. Held-out reviews lean towards negation and mixed cues.
pub(crate) fn review(domain: &Domain, polarity: Polarity, split: Split, dice: &mut Dice) -> Review {
    let weights = if split == Split::HeldOut { [30, 35, 35] } else { [40, 30, 30] };
    let kind = KINDS[dice.weighted(&weights)];
    let subject = Subject { domain, item: dice.pick(&domain.items) };
    let mut sentences = Vec::new();
    if dice.chance(30) {
        let openers = match split {
            Split::Train => &domain.openers,
            Split::HeldOut => &domain.held_out_openers,
            Split::All => [&domain.openers, &domain.held_out_openers][dice.below(2)],
        };
        sentences.push((dice.pick(openers)).to_owned());
    }
    sentences.push(opinion(subject, Stance { polarity, kind, split }, dice));
    if dice.chance(25) {
        let stance = Stance { polarity, kind: KINDS[dice.below(3)], split };
        sentences.push(opinion(subject, stance, dice));
    }
    Review { text: sentences.join(" "), polarity, kind }
}

/// What a sentence is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) domain: &'a Domain,
    pub(crate) item: &'static str,
}

/// What a sentence says and in which words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stance {
    pub(crate) polarity: Polarity,
    pub(crate) kind: Kind,
    pub(crate) split: Split,
}

/// One sentence with an opinion.
pub(crate) fn opinion(subject: Subject<'_>, stance: Stance, dice: &mut Dice) -> String {
    let choices = frames(stance.kind, stance.split);
    let frame = dice.pick(&choices);
    let parts = dice.sample(&subject.domain.parts, 2);
    let mut filler = Filler { subject, stance, a: parts[0], b: parts[1], last: None, used: Vec::new(), dice };
    finish(&expand(frame, |slot| filler.slot(slot)))
}

struct Filler<'a> {
    subject: Subject<'a>,
    stance: Stance,
    a: &'a Part,
    b: &'a Part,
    last: Option<&'a Part>,
    used: Vec<&'static str>,
    dice: &'a mut Dice,
}

impl Filler<'_> {
    fn slot(&mut self, slot: &str) -> String {
        let (name, target) = slot.split_once(':').unwrap_or((slot, ""));
        let (name, polarity) = match name.strip_prefix('!') {
            Some(name) => (name, self.stance.polarity.flip()),
            None => (name, self.stance.polarity),
        };
        match target {
            "A" => self.last = Some(self.a),
            "B" => self.last = Some(self.b),
            _ => {}
        }
        match name {
            "A" => self.part(true),
            "a" => self.part(false),
            "B" => self.other_part(true),
            "b" => self.other_part(false),
            "was" => if self.last.is_some_and(|p| p.plural) { "were" } else { "was" }.to_owned(),
            "item" => self.subject.item.to_owned(),
            "made" => (self.dice.pick(&self.subject.domain.made)).to_owned(),
            "an" => ARTICLE.to_owned(),
            "deg" => (self.dice.pick(&["", "", "very ", "really ", "so "])).to_owned(),
            "adj" => self.adjective(polarity, target == "any"),
            "vp" => self.word(Role::Phrase, polarity),
            "noun" => self.word(Role::Noun, polarity),
            "adv" => self.word(Role::Adverb, polarity),
            other => panic!("a frame has the unknown slot `{other}`"),
        }
    }

    fn part(&mut self, article: bool) -> String {
        self.last = Some(self.a);
        named(self.a, article)
    }

    fn other_part(&mut self, article: bool) -> String {
        self.last = Some(self.b);
        named(self.b, article)
    }

    /// Half of the adjectives fit anything, half only things like the part named last.
    fn adjective(&mut self, polarity: Polarity, any: bool) -> String {
        let tag = if any { Tag::Any } else { self.last.map_or(self.subject.domain.tag, |p| p.tag) };
        let tag = if self.dice.chance(50) { tag } else { Tag::Any };
        self.word(Role::Adjective(tag), polarity)
    }

    /// A word that this sentence has not used yet.
    fn word(&mut self, role: Role, polarity: Polarity) -> String {
        let list = words(role, polarity, self.stance.split);
        loop {
            let word = self.dice.pick(list);
            if !self.used.contains(&word) {
                self.used.push(word);
                return word.to_owned();
            }
        }
    }
}

fn named(part: &Part, article: bool) -> String {
    if article { format!("the {}", part.noun) } else { part.noun.to_owned() }
}
