//! The sentence frames of the reviews.
//!
//! Slots: `{A}`, `{B}` two different parts of the thing ("the plot"); `{a}`, `{b}` the same without the article;
//! `{was}` agrees with the part named last; `{item}` the thing; `{adj}`, `{vp}`, `{noun}`, `{adv}` opinion words of the
//! review's polarity, with `!` of the opposite one; `{made}` how such a thing comes about ("filmed", "cooked").
//! An adjective fits the part named last, or the part after a colon (`{adj:B}`), or anything (`{adj:any}`).
//! `{an}` becomes "a" or "an". The convention for mixed cues is that of English: what follows "but" or stands in the
//! main clause decides.

use crate::lexicon::Split;

/// How a frame comes to its opinion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Words of the review's own polarity only.
    Plain,
    /// Words of the opposite polarity, negated.
    Negated,
    /// Words of both polarities; one clause outweighs the other.
    Mixed,
}

/// The kinds in a fixed order.
pub const KINDS: [Kind; 3] = [Kind::Plain, Kind::Negated, Kind::Mixed];

const TRAIN_PLAIN: &[&str] = &[
    "{A} {was} {deg}{adj}.",
    "{A} {was} {adj} and {adj}.",
    "I found {A} {deg}{adj}.",
    "What {an} {adj:any} {item}!",
    "This {item} is {noun}.",
    "{A} {vp}.",
    "It was {adv} {made}.",
    "We thought {A} {was} {adj}.",
    "{A} {vp}, and {B} {was} {adj}.",
    "{A} {was} {adj}, and so {was:B} {B}.",
    "It was {noun}, mostly because {A} {was} {adj}.",
    "I thought it was {adv} {made}.",
];

const TRAIN_NEGATED: &[&str] = &[
    "{A} {was} not {!adj} at all.",
    "{A} {was} not at all {!adj}.",
    "{A} {was} never {!adj}.",
    "I did not find {A} {!adj}.",
    "{A} {was} not {!adj}, and {B} {vp}.",
    "This {item} is not {!noun}.",
    "Nobody could call {A} {!adj}.",
    "{A} {was} not {!adj} or {!adj}, I must say.",
    "It was not {!adv} {made}.",
    "{A} {was} not {!adj}, and it was not {!noun}.",
];

const TRAIN_MIXED: &[&str] = &[
    "{A} {was} {!adj}, but {B} {vp}.",
    "{A} {was} {!adj}, but in the end it {vp}.",
    "Although {A} {was} {!adj}, {B} {was} {adj}.",
    "{A} {was} {adj}, even though {B} {was} {!adj}.",
    "I expected {!noun}, but {A} {was} {adj}.",
    "They told me it was {!adj:any}, but I found it {adj:any}.",
    "{A} {was} {!adj} at first, but then it {vp}.",
    "{A} {!vp}, but {B} {was} {adj} and {adj}.",
    "{A} {was} {!adj}, but {B} {was} not {!adj} at all.",
];

const HELD_OUT_PLAIN: &[&str] = &[
    "Every bit of it struck me as {adj:any}.",
    "To be honest, {A} turned out {adj}.",
    "{A} came across as {adj}.",
    "Rarely have I seen such {an} {adj:any} {item}.",
    "From beginning to end, simply {adj:any}.",
    "Without doubt this {item} counts as {noun}.",
    "{A} had been {adv} {made}, if you ask me.",
    "Once again {A} {vp}.",
    "Honestly, how {adj:A} {A} {was}!",
];

const HELD_OUT_NEGATED: &[&str] = &[
    "{A} {was} by no means {!adj}.",
    "{A} seemed anything but {!adj}.",
    "{A} {was} far from {!adj}.",
    "There is hardly anything {!adj} about {A}.",
    "{A} {was} neither {!adj} nor {!adj}.",
    "Only a fool would say that {A} {!vp}.",
    "{A} {was} not in the least {!adj}.",
    "You can hardly speak of {!noun} here.",
];

const HELD_OUT_MIXED: &[&str] = &[
    "Despite the {!adj:A} {a}, {B} {vp}.",
    "Granted, {A} {was} {!adj}; nevertheless {B} {vp}.",
    "{A} may have been {!adj}, yet {B} {was} {adj}.",
    "For all its {!adj:A} {a}, this {item} remains {noun}.",
    "My friends warned of {!noun}, yet {A} {was} {adj}.",
    "{A} {vp}, {!adj:B} {b} or not.",
    "Early on {A} {!vp}, only for {B} to prove {adj}.",
    "While {A} {!vp}, what counts is that {B} {vp}.",
    "In spite of the {!adj:A} {a}, {B} {was} by no means {!adj}.",
];

/// Frames of a kind that a split may use.
pub fn frames(kind: Kind, split: Split) -> Vec<&'static str> {
    let (train, held_out) = match kind {
        Kind::Plain => (TRAIN_PLAIN, HELD_OUT_PLAIN),
        Kind::Negated => (TRAIN_NEGATED, HELD_OUT_NEGATED),
        Kind::Mixed => (TRAIN_MIXED, HELD_OUT_MIXED),
    };
    match split {
        Split::Train => train.to_vec(),
        Split::HeldOut => held_out.to_vec(),
        Split::All => [train, held_out].concat(),
    }
}

/// The longest piece of a frame that has no slot: what identifies it in a text.
pub fn signature(frame: &str) -> &str {
    frame
        .split('{')
        .map(|piece| piece.split_once('}').map_or(piece, |(_, literal)| literal))
        .max_by_key(|literal| literal.trim().len())
        .unwrap_or(frame)
}
