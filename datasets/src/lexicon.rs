//! The words that carry an opinion. Each list has a part that the training reviews use and a part that is held out: the
//! held-out words occur in the pretraining corpus and in the test reviews, never in the training reviews.

use std::sync::LazyLock;

/// What the reviewer thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Polarity {
    /// The reviewer liked it.
    Positive,
    /// The reviewer did not like it.
    Negative,
}

impl Polarity {
    /// The opposite opinion.
    pub fn flip(self) -> Self {
        if self == Self::Positive { Self::Negative } else { Self::Positive }
    }

    /// The word that stands behind "Sentiment:".
    pub fn name(self) -> &'static str {
        if self == Self::Positive { "positive" } else { "negative" }
    }

    /// 1 for positive, 0 for negative.
    pub fn label(self) -> i32 {
        i32::from(self == Self::Positive)
    }
}

/// Which words and frames a text may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Those of the training reviews.
    Train,
    /// Those that the training reviews never show.
    HeldOut,
    /// Both: the language of the pretraining corpus.
    All,
}

/// What an adjective can be said of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tag {
    /// Anything.
    Any,
    /// Films, books, plays, games and their parts.
    Story,
    /// Food and drink.
    Food,
    /// Tools and machines.
    Thing,
    /// Rooms, gardens, buildings.
    Place,
    /// People who serve, teach or perform.
    Human,
}

/// The grammatical role of an opinion word or phrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// After "was" or before a noun.
    Adjective(Tag),
    /// A past-tense phrase whose subject is the thing: "won me over".
    Phrase,
    /// With its article: "a delight".
    Noun,
    /// How something was made.
    Adverb,
}

struct Entry {
    role: Role,
    polarity: Polarity,
    train: Vec<&'static str>,
    held_out: Vec<&'static str>,
    all: Vec<&'static str>,
}

use Polarity::{Negative, Positive};
use Role::{Adjective, Adverb, Noun, Phrase};
use Tag::{Any, Food, Human, Place, Story, Thing};

/// Role, polarity, words of the training reviews, words held out from them.
const TABLE: &[(Role, Polarity, &str, &str)] = &[
    (
        Adjective(Any),
        Positive,
        "wonderful, excellent, great, lovely, delightful, impressive, brilliant, terrific, enjoyable, charming, amazing, perfect",
        "superb, splendid, marvellous, outstanding, magnificent, remarkable, exquisite, stellar, glorious, sublime, fabulous, admirable",
    ),
    (
        Adjective(Any),
        Negative,
        "terrible, awful, bad, poor, disappointing, dreadful, horrible, weak, unpleasant, annoying, miserable, pathetic",
        "dismal, lousy, atrocious, abysmal, mediocre, woeful, shoddy, appalling, ghastly, deplorable, hideous, wretched",
    ),
    (
        Adjective(Story),
        Positive,
        "gripping, moving, funny, clever, thrilling, touching, exciting, fascinating",
        "riveting, witty, absorbing, captivating, heartfelt, engrossing, spellbinding, poignant",
    ),
    (
        Adjective(Story),
        Negative,
        "dull, boring, silly, clumsy, tedious, confusing, predictable, shallow",
        "lacklustre, dreary, wooden, trite, plodding, muddled, stilted, humdrum",
    ),
    (
        Adjective(Food),
        Positive,
        "tasty, delicious, fresh, juicy, flavourful, appetising",
        "scrumptious, succulent, mouthwatering, luscious, zesty, delectable",
    ),
    (
        Adjective(Food),
        Negative,
        "bland, soggy, stale, greasy, burnt, watery",
        "tasteless, rancid, mushy, insipid, rubbery, gristly",
    ),
    (
        Adjective(Thing),
        Positive,
        "reliable, sturdy, handy, sleek, accurate, practical",
        "dependable, durable, nifty, robust, ingenious, versatile",
    ),
    (
        Adjective(Thing),
        Negative,
        "flimsy, faulty, noisy, slow, useless, fragile",
        "rickety, clunky, defective, sluggish, wobbly, brittle",
    ),
    (
        Adjective(Place),
        Positive,
        "cosy, spotless, peaceful, sunny, comfortable, pretty",
        "inviting, immaculate, tranquil, airy, idyllic, snug",
    ),
    (
        Adjective(Place),
        Negative,
        "dirty, gloomy, cramped, draughty, ugly, chilly",
        "dingy, filthy, musty, shabby, squalid, dilapidated",
    ),
    (
        Adjective(Human),
        Positive,
        "friendly, helpful, polite, cheerful, patient, kind",
        "courteous, attentive, gracious, obliging, amiable, thoughtful",
    ),
    (
        Adjective(Human),
        Negative,
        "rude, careless, grumpy, unhelpful, lazy, arrogant",
        "surly, snooty, brusque, sullen, haughty, slovenly",
    ),
    (
        Phrase,
        Positive,
        "won me over, delighted us, made my day, charmed everyone, made us smile, pleased the whole family, felt worth every penny, cheered me up",
        "swept me off my feet, enchanted us all, dazzled everyone, lifted my spirits, stole my heart, warmed my soul, surpassed our hopes, hit the spot",
    ),
    (
        Phrase,
        Negative,
        "let us down, bored everyone, annoyed me, spoiled the evening, wasted our time, left me cold, felt like a waste of money, made me cross",
        "fell flat, wore us out, irritated everyone, got on my nerves, ruined the day, sent me to sleep, tested my patience, missed the mark",
    ),
    (
        Noun,
        Positive,
        "a delight, a treat, a joy, a success, a gem, a pleasure",
        "a triumph, a masterpiece, a marvel, a hit, a jewel, a winner",
    ),
    (
        Noun,
        Negative,
        "a letdown, a mess, a failure, a bore, a disaster, a disgrace",
        "a shambles, a flop, a nuisance, an ordeal, a fiasco, a dud",
    ),
    (
        Adverb,
        Positive,
        "beautifully, carefully, wonderfully, perfectly, cleverly",
        "superbly, skilfully, gracefully, masterfully, splendidly",
    ),
    (
        Adverb,
        Negative,
        "badly, poorly, clumsily, carelessly, terribly",
        "sloppily, hastily, shoddily, ineptly, woefully",
    ),
];

static LEXICON: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    TABLE
        .iter()
        .map(|&(role, polarity, train, held_out)| {
            let train: Vec<_> = train.split(", ").collect();
            let held_out: Vec<_> = held_out.split(", ").collect();
            let all = train.iter().chain(&held_out).copied().collect();
            Entry { role, polarity, train, held_out, all }
        })
        .collect()
});

/// The words of one role and polarity that a split may use.
pub fn words(role: Role, polarity: Polarity, split: Split) -> &'static [&'static str] {
    let entry = LEXICON
        .iter()
        .find(|e| e.role == role && e.polarity == polarity)
        .expect("every role has words of both polarities");
    match split {
        Split::Train => &entry.train,
        Split::HeldOut => &entry.held_out,
        Split::All => &entry.all,
    }
}

/// Every word or phrase of a polarity that a split may use, in the order of the table.
pub fn opinion_words(polarity: Polarity, split: Split) -> Vec<&'static str> {
    TABLE.iter().filter(|row| row.1 == polarity).flat_map(|row| words(row.0, polarity, split)).copied().collect()
}
