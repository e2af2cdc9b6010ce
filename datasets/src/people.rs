//! Who acts in the texts: names with their pronouns.

use crate::dice::Dice;

/// A person or a group in the third or first person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Person {
    /// "Mara", "my uncle", "we".
    pub(crate) name: &'static str,
    /// "she".
    pub(crate) subject: &'static str,
    /// "her".
    pub(crate) object: &'static str,
    /// "her".
    pub(crate) their: &'static str,
}

pub(crate) const WOMEN: &[&str] = &[
    "Mara", "Nadia", "Ella", "Rosa", "Ines", "Greta", "Lucy", "Hanna", "Olive", "Sofia", "Tilda", "Vera", "Wanda",
    "Yara", "Zoe", "Anna", "Berta", "Clara", "Dora", "Edith", "Flora", "Ida", "Jana", "Kim", "Lena", "Mina", "Nora",
    "Paula", "Ruth", "Sara",
];

pub(crate) const MEN: &[&str] = &[
    "Tom", "Omar", "Ben", "Karl", "Leo", "Milo", "Ned", "Otto", "Paul", "Ravi", "Sam", "Theo", "Udo", "Victor", "Will",
    "Yann", "Adam", "Boris", "Colin", "David", "Emil", "Finn", "Gus", "Hugo", "Ivan", "Jonas", "Kofi", "Luis", "Max",
    "Nils",
];

const KIN: &[(&str, bool)] = &[
    ("my sister", true),
    ("my brother", false),
    ("my aunt", true),
    ("my uncle", false),
    ("our neighbour Iris", true),
    ("our neighbour Walter", false),
    ("my grandmother", true),
    ("my grandfather", false),
    ("the young nurse", true),
    ("the old farmer", false),
    ("the teacher Miss Hill", true),
    ("the postman", false),
];

const WE: Person = Person { name: "we", subject: "we", object: "us", their: "our" };
const I: Person = Person { name: "I", subject: "I", object: "me", their: "my" };
const THEY: Person = Person { name: "they", subject: "they", object: "them", their: "their" };

fn third(name: &'static str, woman: bool) -> Person {
    let (subject, object, their) = if woman { ("she", "her", "her") } else { ("he", "him", "his") };
    Person { name, subject, object, their }
}

/// Somebody with a name, in the third person singular.
pub(crate) fn somebody(dice: &mut Dice) -> Person {
    match dice.below(10) {
        0..=3 => third(dice.pick(WOMEN), true),
        4..=7 => third(dice.pick(MEN), false),
        _ => {
            let (name, woman) = dice.pick(KIN);
            third(name, woman)
        }
    }
}

/// Two different persons with names.
pub(crate) fn pair(dice: &mut Dice) -> (Person, Person) {
    let first = somebody(dice);
    loop {
        let second = somebody(dice);
        if second.name != first.name {
            return (first, second);
        }
    }
}

/// Anybody, the speaker included.
pub(crate) fn anybody(dice: &mut Dice) -> Person {
    match dice.below(10) {
        0..=2 => WE,
        3 | 4 => I,
        5 => THEY,
        _ => somebody(dice),
    }
}
