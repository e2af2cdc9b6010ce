//! Very short stories in which names, pronouns and things stay consistent.

use crate::dice::Dice;
use crate::people::{Person, pair, somebody};
use crate::phrase::{ARTICLE, capitalise, expand, finish};
use crate::vocabulary::{ACTIONS, LOOKS, MOTIONS, OBJECTS, PLACES, TIMES, group, number_word, plural};

const TEMPLATES: &[&str] = &[
    "{time} {P} found {an} {look} {object} {place}. {he} {acted} it and put it into {his} {look} bag. Later {he} gave the {object} to {Q}.",
    "{P} and {Q} were {doing} {place}. Suddenly they saw {an} {look} {animal}. \"Look, {an} {animal}!\" said {Q}. The {animal} {moved} away.",
    "{P} had {number} {fruits} and {an} {look} basket. {he} gave {some} to {Q} and kept the rest. Then they {moved} {place}.",
    "Once there was {an} {look} {animal} that lived {place}. It could {move} all day until {an} {bird} came. \"Why do you {move}?\" asked the {bird}. \"Because I lost my {object},\" said the {animal}.",
    "{time} the {job} {moved} {place}. {P} {acted} the {object} for {him2}. \"Thank you,\" said the {job}, \"now I can {act} it myself.\"",
    "{P} wanted to {act} the {object}, but it was too heavy. So {he} asked {Q}. Together they {acted} it {place}.",
    "It was cold {place}. {P} wore {an} {look} {garment} and {an} {look} {garment2}. {he} {moved} and waited for {Q}.",
    "{P} works as {an} {job}. {time} {he} {acted} {an} {look} {object}. In the evening {he} {moved} {place} with {his} {animal}.",
    "The {animal} and the {bird} lived {place}. The {animal} liked to {move}, the {bird} liked to {move2}. {time} they {moved} together.",
    "{Q} asked: \"Where is my {look} {object}?\" {P} looked {place} and {place2}. At last {he} found it {place3}. \"Here it is,\" said {P}.",
    "{P} planted {an} {tree} {place}. After {number} years the {tree} was tall, and {number2} {birds} lived in it.",
    "{time} {an} {vehicle} stopped {place}. {P} got out with {an} {look} {object} in {his} hand. \"Is this the way to the {building}?\" {he} asked.",
    "{P} played the {instrument} {place}. {Q} heard it and {moved}. \"Play it again,\" said {Q}, and {P} played until dusk.",
    "{time} {P} {acted} the {furniture} in the {building}. It was {look} and {look2}. Nobody knew who had brought it there.",
];

struct Cast {
    hero: Person,
    friend: Person,
    values: Vec<(&'static str, String)>,
}

/// One story from a template; the same slot has the same value throughout.
pub(crate) fn story(dice: &mut Dice) -> String {
    let (hero, friend) = pair(dice);
    let mut cast = Cast { hero, friend, values: Vec::new() };
    let template = dice.pick(TEMPLATES);
    let text = expand(template, |slot| cast.fill(slot, dice));
    text.split_inclusive(". ").map(finish).collect()
}

impl Cast {
    fn fill(&mut self, slot: &str, dice: &mut Dice) -> String {
        let fixed = match slot {
            "P" => Some(self.hero.name),
            "Q" => Some(self.friend.name),
            "he" => Some(self.hero.subject),
            "his" => Some(self.hero.their),
            "him2" => Some("the man"),
            "an" => Some(ARTICLE),
            _ => None,
        };
        if let Some(text) = fixed {
            return text.to_owned();
        }
        // What walks and what is carried stays the same through a story; looks and actions vary.
        let lasting = ["object", "animal", "bird", "job", "tree", "instrument", "move"].iter().find(|&&n| n == slot);
        if let Some((_, value)) = self.values.iter().find(|(name, _)| lasting == Some(name)) {
            return value.clone();
        }
        let value = draw(slot, dice);
        if let Some(&name) = lasting {
            self.values.push((name, value.clone()));
        }
        value
    }
}

fn draw(slot: &str, dice: &mut Dice) -> String {
    let word = match slot.trim_end_matches(|c: char| c.is_ascii_digit()) {
        "time" => dice.pick(TIMES),
        "place" => dice.pick(PLACES),
        "look" => dice.pick(LOOKS),
        "object" => dice.pick(OBJECTS),
        "act" => dice.pick(ACTIONS).0,
        "acted" => dice.pick(ACTIONS).1,
        "move" => dice.pick(MOTIONS).0,
        "moved" => dice.pick(MOTIONS).1,
        "doing" => dice.pick(MOTIONS).2,
        "furniture" => dice.pick(group("piece of furniture")),
        "number" => return number_word(dice.between(3, 30)),
        "some" => return number_word(dice.between(1, 2)),
        "fruits" => return plural(dice.pick(group("fruit"))),
        "birds" => return plural(dice.pick(group("bird"))),
        name => dice.pick(group(name)),
    };
    (*word).to_owned()
}

/// One or two plain sentences.
pub(crate) fn scene(dice: &mut Dice) -> String {
    let who = somebody(dice);
    let text = match dice.below(6) {
        0 => format!("{} {} {}.", who.name, dice.pick(MOTIONS).1, dice.pick(PLACES)),
        1 => format!(
            "{} {} {} the {} {}.",
            dice.pick(TIMES),
            who.name,
            dice.pick(ACTIONS).1,
            dice.pick(LOOKS),
            dice.pick(OBJECTS)
        ),
        2 => format!(
            "{} was {} {} when {} saw {ARTICLE} {}.",
            who.name,
            dice.pick(MOTIONS).2,
            dice.pick(PLACES),
            who.subject,
            dice.pick(group("animal"))
        ),
        3 => format!(
            "there are {} {} {}.",
            number_word(dice.between(2, 40)),
            plural(dice.pick(OBJECTS)),
            dice.pick(PLACES)
        ),
        4 => format!(
            "{} the {} stood {} {}.",
            dice.pick(TIMES),
            dice.pick(LOOKS),
            dice.pick(group("building")),
            dice.pick(PLACES)
        ),
        _ => format!(
            "{} likes to {}, but {} {} has to {} the {}.",
            who.name,
            dice.pick(MOTIONS).0,
            dice.pick(TIMES),
            who.subject,
            dice.pick(ACTIONS).0,
            dice.pick(OBJECTS)
        ),
    };
    capitalise(&finish(&text))
}
