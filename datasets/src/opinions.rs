//! Corpus documents that tie opinions to what follows from them. The label words never stand beside a review here: a
//! model has to learn what a reviewer thinks from what the people in the text do.

use crate::dice::Dice;
use crate::domains::{DOMAINS, Domain};
use crate::frames::KINDS;
use crate::lexicon::{Polarity, Role, Split, Tag, opinion_words, words};
use crate::people::{Person, anybody, pair, somebody};
use crate::phrase::{ARTICLE, capitalise, expand, finish, speech};
use crate::reviews::{Stance, Subject, opinion, review};

/// What people do after anything they liked; `{their}` is filled in.
const LIKED: &[&str] = &[
    "told all {their} friends to try it too|told everybody how nice it was",
    "went home happy|was in a good mood for days",
    "smiled all the way home|could not stop smiling",
    "wanted more|asked for more",
    "wanted to do it again|did the same again a week later",
    "said thank you to everybody|wrote a letter full of thanks",
    "was glad about every coin spent on it|did not regret a single coin",
    "talked about it with shining eyes|remembered it for years with pleasure",
];

const DISLIKED: &[&str] = &[
    "told all {their} friends to stay away|warned everybody about it",
    "went home angry|was in a bad mood for days",
    "frowned all the way home|could not stop complaining",
    "wanted {their} money back|asked to speak to the manager",
    "swore never to do it again|never did that again",
    "wrote a letter full of complaints|demanded an apology",
    "was sorry about every coin spent on it|regretted the whole thing",
    "shook {their} head in disbelief|remembered it for years with a shudder",
];

const GLAD: &[&str] = &["glad", "happy", "pleased", "content", "thankful", "cheered", "grateful", "satisfied"];
const UPSET: &[&str] = &["angry", "sad", "upset", "annoyed", "cross", "unhappy", "dissatisfied", "sorry"];

const ADVICE: [&[&str]; 2] = [
    &[
        "Try it as soon as you can.",
        "Try it yourself!",
        "Do not miss it.",
        "You should try it too.",
        "I would do it again.",
    ],
    &["Stay away from it.", "Save your money.", "Do not bother.", "You should not try it.", "I would not do it again."],
];

/// The one of two things that goes with a polarity.
pub(crate) fn side<T>(polarity: Polarity, good: T, bad: T) -> T {
    if polarity == Polarity::Positive { good } else { bad }
}

/// Praise or blame, one as likely as the other.
pub(crate) fn any_polarity(dice: &mut Dice) -> Polarity {
    side_of(dice.below(2))
}

fn side_of(index: usize) -> Polarity {
    [Polarity::Positive, Polarity::Negative][index]
}

/// What somebody did after the experience, as a verb phrase in the past.
fn outcome(domain: &Domain, polarity: Polarity, who: Person, dice: &mut Dice) -> String {
    let phrase = if dice.chance(60) {
        dice.pick(side(polarity, &domain.liked, &domain.disliked))
    } else {
        let line = dice.pick(side(polarity, LIKED, DISLIKED));
        let options: Vec<&str> = line.split('|').collect();
        options[dice.below(options.len())]
    };
    let plural = matches!(who.subject, "we" | "they");
    let phrase = if plural { phrase.replace("was ", "were ") } else { phrase.to_owned() };
    expand(&phrase, |_| who.their.to_owned())
}

fn subject(dice: &mut Dice) -> Subject<'static> {
    let domain = dice.pick_ref(&DOMAINS);
    Subject { domain, item: dice.pick(&domain.items) }
}

/// One opinion sentence, more often short than not.
fn remark(about: Subject<'_>, polarity: Polarity, dice: &mut Dice) -> String {
    let kind = KINDS[dice.weighted(&[45, 30, 25])];
    opinion(about, Stance { polarity, kind, split: Split::All }, dice)
}

/// A document about one opinion or several, with their consequences.
pub(crate) fn document(dice: &mut Dice) -> String {
    match dice.weighted(&[20, 12, 12, 14, 16, 8, 6, 12]) {
        0 => review_then_outcome(dice),
        1 => outcome_then_review(dice),
        2 => advice(dice),
        3 => interview(dice),
        4 => several_people(dice),
        5 => choice(dice),
        6 => feelings(dice),
        _ => dialogue(dice),
    }
}

fn review_then_outcome(dice: &mut Dice) -> String {
    let domain = dice.pick_ref(&DOMAINS);
    let polarity = any_polarity(dice);
    let text = review(domain, polarity, Split::All, dice).text;
    let who = anybody(dice);
    let first = outcome(domain, polarity, who, dice);
    let link = dice.pick(&["So ", "", "Afterwards ", "That is why ", "In the end "]);
    let ending =
        if dice.chance(30) { format!(" and {}.", outcome(domain, polarity, who, dice)) } else { ".".to_owned() };
    format!("{text} {}{ending}", capitalise(&format!("{link}{} {first}", who.name)))
}

fn outcome_then_review(dice: &mut Dice) -> String {
    let domain = dice.pick_ref(&DOMAINS);
    let polarity = any_polarity(dice);
    let who = anybody(dice);
    let text = review(domain, polarity, Split::All, dice).text;
    let what = outcome(domain, polarity, who, dice);
    match dice.below(3) {
        0 => format!("{} {what}. Why? {text}", capitalise(who.name)),
        1 => format!("{} {what}. {text}", capitalise(who.name)),
        _ => format!("{} {what}. \"{text}\" That was {} reason.", capitalise(who.name), who.their),
    }
}

fn advice(dice: &mut Dice) -> String {
    let domain = dice.pick_ref(&DOMAINS);
    let polarity = any_polarity(dice);
    let text = review(domain, polarity, Split::All, dice).text;
    format!("{text} {}", dice.pick(ADVICE[side(polarity, 0, 1)]))
}

fn interview(dice: &mut Dice) -> String {
    let about = subject(dice);
    let polarity = any_polarity(dice);
    let text = remark(about, polarity, dice);
    let who = somebody(dice);
    let (yes, no) = ("Yes", "No");
    let questions = [
        format!("Did {} like the {}?", who.subject, about.item),
        format!("Was {} pleased?", who.subject),
        format!("Would {} {} {} again?", who.subject, about.domain.use_it, about.item),
        format!("Did {} tell {} friends to try it?", who.subject, who.their),
        "Was it worth the money?".to_owned(),
    ];
    let bad_questions = [
        format!("Was {} disappointed?", who.subject),
        format!("Did {} want {} money back?", who.subject, who.their),
        format!("Did {} complain?", who.subject),
        "Was it a bad choice?".to_owned(),
    ];
    let mut out = format!("{} said: \"{text}\"", capitalise(who.name));
    for question in dice.sample(&questions, 2) {
        out.push_str(&format!(" {question} {}.", side(polarity, yes, no)));
    }
    if dice.chance(60) {
        let question = dice.pick_ref(&bad_questions);
        out.push_str(&format!(" {question} {}.", side(polarity, no, yes)));
    }
    out
}

/// Two or three people with opinions of their own: several independent decisions in one short text.
fn several_people(dice: &mut Dice) -> String {
    let about = subject(dice);
    let count = dice.between(2, 3);
    let mut lines = Vec::new();
    let mut used: Vec<&str> = Vec::new();
    while lines.len() < count {
        let who = somebody(dice);
        if used.contains(&who.name) {
            continue;
        }
        used.push(who.name);
        let polarity = any_polarity(dice);
        let text = remark(about, polarity, dice);
        let verb =
            side(polarity, ["liked it", "was pleased", "stayed"], ["did not like it", "was not pleased", "left"]);
        lines.push(match dice.below(3) {
            0 => format!("{} said: \"{text}\" {} {}.", who.name, capitalise(who.subject), dice.pick(&verb)),
            1 => format!(
                "{}: \"{text}\" {} {}.",
                who.name,
                capitalise(who.subject),
                outcome(about.domain, polarity, who, dice)
            ),
            _ => format!("{} {}: \"{text}\"", who.name, dice.pick(&verb)),
        });
    }
    lines.iter().map(|line| capitalise(line)).collect::<Vec<_>>().join(" ")
}

/// Two things of a kind: people take the better one.
fn choice(dice: &mut Dice) -> String {
    let about = subject(dice);
    let first_is_good = dice.chance(50);
    let first = remark(about, side_of(usize::from(!first_is_good)), dice);
    let second = remark(about, side_of(usize::from(first_is_good)), dice);
    let who = anybody(dice);
    let taken = if first_is_good { "first" } else { "second" };
    let left = if first_is_good { "second" } else { "first" };
    let item = about.item;
    match dice.below(3) {
        0 => format!(
            "The first {item}: {first} The second {item}: {second} {} chose the {taken} one.",
            capitalise(who.name)
        ),
        1 => format!("First {item}: {first} Second {item}: {second} Better: the {taken}. Worse: the {left}."),
        _ => format!(
            "About one {item} {} heard: \"{first}\" About another: \"{second}\" {} took the {taken} and not the {left}.",
            who.name,
            capitalise(who.subject)
        ),
    }
}

fn feelings(dice: &mut Dice) -> String {
    let about = subject(dice);
    let polarity = any_polarity(dice);
    let who = somebody(dice);
    let mood = dice.pick(side(polarity, GLAD, UPSET));
    let text = remark(about, polarity, dice);
    match dice.below(3) {
        0 => format!("{text} {} was {mood} about it.", capitalise(who.name)),
        1 => format!("{} was {mood}. {} said: \"{text}\"", capitalise(who.name), capitalise(who.subject)),
        _ => format!("{text} It made {} {mood}.", who.name),
    }
}

fn dialogue(dice: &mut Dice) -> String {
    let about = subject(dice);
    let polarity = any_polarity(dice);
    let (asks, answers) = pair(dice);
    let text = remark(about, polarity, dice);
    let item = about.item;
    let question = dice.pick(&["How was the", "What did you think of the", "Tell me about the", "Did you like the"]);
    let mark = if question.starts_with("Tell") { "." } else { "?" };
    let reply = dice.pick(side(
        polarity,
        &[
            "Then I will try it too",
            "That sounds good",
            "Lucky you",
            "So it was a good choice",
            "I am happy for you",
            "Then I want it as well",
        ],
        &[
            "Then I will not try it",
            "That sounds bad",
            "Poor you",
            "So it was a bad choice",
            "I am sorry for you",
            "Then I do not want it",
        ],
    ));
    format!(
        "\"{question} {item}{mark}\" asked {}. {} said {}. \"{reply},\" said {}.",
        asks.name,
        speech(&text),
        answers.name,
        asks.name
    )
}

/// Short truths about opinion words: what they mean, what people want.
pub(crate) fn glossary(dice: &mut Dice) -> String {
    let polarity = any_polarity(dice);
    let tag = dice.pick(&[Tag::Any, Tag::Story, Tag::Food, Tag::Thing, Tag::Place, Tag::Human]);
    let same = words(Role::Adjective(tag), polarity, Split::All);
    let other = words(Role::Adjective(tag), polarity.flip(), Split::All);
    let two = dice.sample(same, 2);
    let (word, synonym) = (*two[0], *two[1]);
    let opposite = dice.pick(other);
    let noun = noun_for(tag, dice);
    let text = match dice.below(12) {
        0 => format!("{word} means {synonym}."),
        1 => format!("{word} is the opposite of {opposite}."),
        2 => format!("what is {word} is not {opposite}."),
        3 => format!("people {} {word} {noun}.", side(polarity, "like", "dislike")),
        4 => format!("nobody {} {word} {noun}.", side(polarity, "complains about", "wants")),
        5 => format!("{word} {noun} make people {}.", dice.pick(side(polarity, GLAD, UPSET))),
        6 => format!("if the {noun} are {word}, the guests {}.", side(polarity, "come back", "stay away")),
        7 => format!("{ARTICLE} {word} thing is {ARTICLE} {} thing.", side(polarity, "good", "bad")),
        8 => format!(
            "{}, {word}, {synonym}: all of these are {}.",
            dice.pick(&opinion_words(polarity, Split::All)),
            side(polarity, "praise", "blame")
        ),
        9 => format!("not {word} but {opposite}: that is {}.", side(polarity, "bad", "good")),
        10 => format!("everybody {} {word} {noun}.", side(polarity, "enjoys", "avoids")),
        _ => format!("to say that something is {word} is to {} it.", side(polarity, "praise", "criticise")),
    };
    finish(&text)
}

fn noun_for(tag: Tag, dice: &mut Dice) -> &'static str {
    dice.pick(match tag {
        Tag::Any => &["days", "gifts", "ideas", "things", "evenings"],
        Tag::Story => &["stories", "films", "books", "plays", "songs"],
        Tag::Food => &["meals", "cakes", "soups", "dishes", "pies"],
        Tag::Thing => &["tools", "machines", "lamps", "bicycles", "chairs"],
        Tag::Place => &["rooms", "houses", "hotels", "gardens", "halls"],
        Tag::Human => &["waiters", "teachers", "hosts", "guides", "doctors"],
    })
}
