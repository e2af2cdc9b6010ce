//! The small invented land of Orrowen: towns, people, and facts about them that never contradict each other.

use crate::dice::Dice;
use crate::people::{MEN, WOMEN};
use crate::vocabulary::{group, number_word};
use std::sync::LazyLock;

/// A town of Orrowen.
#[derive(Debug)]
pub(crate) struct Town {
    pub(crate) name: &'static str,
    pub(crate) region: &'static str,
    pub(crate) river: &'static str,
    pub(crate) craft: &'static str,
    pub(crate) flag: &'static str,
    pub(crate) month: &'static str,
    pub(crate) bridges: usize,
}

/// Somebody who lives there.
#[derive(Debug)]
pub(crate) struct Citizen {
    pub(crate) name: String,
    pub(crate) woman: bool,
    pub(crate) town: usize,
    pub(crate) job: &'static str,
    pub(crate) pet: &'static str,
    pub(crate) fruit: &'static str,
    pub(crate) instrument: &'static str,
}

/// Everything that is known about Orrowen.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) towns: Vec<Town>,
    pub(crate) citizens: Vec<Citizen>,
}

const TOWNS: &[&str] = &[
    "Velmoor",
    "Tarrin",
    "Oskby",
    "Pellwick",
    "Durnholt",
    "Marrowell",
    "Quillan",
    "Sandrey",
    "Ashcombe",
    "Brindle",
    "Corvane",
    "Dellmere",
    "Eastrow",
    "Fennick",
    "Garlow",
    "Hestwick",
    "Ilverton",
    "Jorrin",
    "Kelspar",
    "Lunden",
    "Mirefold",
    "Norrick",
    "Ollenby",
    "Pinfold",
];
const REGIONS: &[&str] = &["the north", "the south", "the east", "the west", "the high valley", "the marshland"];
const RIVERS: &[&str] = &["the Sill", "the Amber", "the Wend", "the Lorne", "the Brack", "the Ister"];
const CRAFTS: &[&str] = &[
    "glass", "cheese", "wool", "clocks", "paper", "bells", "boats", "honey", "salt", "candles", "baskets", "knives",
    "carpets", "pottery", "barrels", "lace",
];
const MONTHS: &[&str] = &[
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const SURNAMES: &[&str] = &["Arden", "Bolt", "Carrow", "Dunn", "Elling", "Frost", "Gant", "Hale", "Inch", "Joyce"];

/// Always the same land: its facts stand in the corpus, in the instructions and in the answers.
pub(crate) static ORROWEN: LazyLock<World> = LazyLock::new(|| {
    let mut dice = Dice::new(0, "orrowen");
    let towns = TOWNS
        .iter()
        .map(|name| Town {
            name,
            region: dice.pick(REGIONS),
            river: dice.pick(RIVERS),
            craft: dice.pick(CRAFTS),
            flag: dice.pick(&group("colour")[..8]),
            month: dice.pick(MONTHS),
            bridges: dice.between(1, 9),
        })
        .collect();
    let citizens = (0..48)
        .map(|i| {
            let woman = i % 2 == 0;
            let first = if woman { WOMEN[i / 2] } else { MEN[i / 2] };
            Citizen {
                name: format!("{first} {}", SURNAMES[i % SURNAMES.len()]),
                woman,
                town: dice.below(TOWNS.len()),
                job: dice.pick(group("job")),
                pet: dice.pick(&group("animal")[..14]),
                fruit: dice.pick(group("fruit")),
                instrument: dice.pick(group("instrument")),
            }
        })
        .collect();
    World { towns, citizens }
});

/// A question about Orrowen and its answer.
pub(crate) fn question(dice: &mut Dice) -> (String, String) {
    if dice.chance(50) { town_question(dice) } else { citizen_question(dice) }
}

fn town_question(dice: &mut Dice) -> (String, String) {
    let town = dice.pick_ref(&ORROWEN.towns);
    let name = town.name;
    match dice.below(6) {
        0 => (format!("In which part of Orrowen is {name}?"), format!("{name} is in {}.", town.region)),
        1 => (format!("Which river flows through {name}?"), format!("{} flows through {name}.", upper(town.river))),
        2 => (format!("What is {name} known for?"), format!("{name} is known for its {}.", town.craft)),
        3 => (format!("What colour is the flag of {name}?"), format!("The flag of {name} is {}.", town.flag)),
        4 => (format!("When is the fair of {name}?"), format!("The fair of {name} is in {}.", town.month)),
        _ => (format!("How many bridges does {name} have?"), format!("{name} has {}.", bridges(town.bridges))),
    }
}

fn citizen_question(dice: &mut Dice) -> (String, String) {
    let citizen = dice.pick_ref(&ORROWEN.citizens);
    let (name, town) = (&citizen.name, ORROWEN.towns[citizen.town].name);
    match dice.below(5) {
        0 => (format!("Where does {name} live?"), format!("{name} lives in {town}.")),
        1 => (format!("What does {name} do for a living?"), format!("{name} works as a {}.", citizen.job)),
        2 => (format!("What kind of pet does {name} have?"), format!("{name} has a {}.", citizen.pet)),
        3 => (format!("Which fruit does {name} like best?"), format!("{name} likes the {} best.", citizen.fruit)),
        _ => (format!("Which instrument does {name} play?"), format!("{name} plays the {}.", citizen.instrument)),
    }
}

/// A short portrait of a town or a citizen.
pub(crate) fn portrait(dice: &mut Dice) -> String {
    let sentences: Vec<String> = if dice.chance(50) {
        let t = dice.pick_ref(&ORROWEN.towns);
        vec![
            format!("{} is a town in {} of Orrowen.", t.name, t.region),
            format!("{} flows through it under {}.", upper(t.river), bridges(t.bridges)),
            format!("{} is known for its {}.", t.name, t.craft),
            format!("Its flag is {}.", t.flag),
            format!("Its fair is held in {}.", t.month),
        ]
    } else {
        let c = dice.pick_ref(&ORROWEN.citizens);
        let (they, their) = if c.woman { ("She", "Her") } else { ("He", "His") };
        vec![
            format!("{} lives in {} and works as a {}.", c.name, ORROWEN.towns[c.town].name, c.job),
            format!("{they} has a {}.", c.pet),
            format!("{they} likes the {} best of all fruits.", c.fruit),
            format!("In the evening {} plays the {}.", they.to_lowercase(), c.instrument),
            format!("{their} town is known for its {}.", ORROWEN.towns[c.town].craft),
        ]
    };
    let mut kept = vec![sentences[0].clone()];
    let count = dice.between(1, 3);
    kept.extend(dice.sample(&sentences[1..], count).into_iter().cloned());
    kept.join(" ")
}

fn bridges(count: usize) -> String {
    format!("{} bridge{}", number_word(count), if count == 1 { "" } else { "s" })
}

fn upper(name: &str) -> String {
    crate::phrase::capitalise(name)
}
