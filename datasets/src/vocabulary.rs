//! Everyday words by meaning, for stories and exercises. They carry no opinion.

use std::sync::LazyLock;

/// A group of nouns under a common name.
#[derive(Debug)]
pub(crate) struct Category {
    /// "fruit".
    pub(crate) name: &'static str,
    /// "fruits".
    pub(crate) plural: &'static str,
    /// Its members, in the singular.
    pub(crate) members: Vec<&'static str>,
}

const CATEGORIES: &[(&str, &str, &str)] = &[
    (
        "fruit",
        "fruits",
        "apple, pear, plum, cherry, grape, lemon, orange, peach, melon, banana, fig, mango, apricot, kiwi, lime, raspberry, strawberry, blueberry",
    ),
    (
        "vegetable",
        "vegetables",
        "carrot, onion, potato, cabbage, pea, bean, leek, turnip, radish, pumpkin, cucumber, spinach, celery, beetroot, parsnip, lettuce, garlic, fennel",
    ),
    (
        "animal",
        "animals",
        "dog, cat, horse, cow, goat, pig, fox, bear, rabbit, hedgehog, badger, otter, squirrel, donkey, lion, tiger, elephant, camel, monkey, wolf, hare, beaver, mole, frog, turtle",
    ),
    (
        "bird",
        "birds",
        "owl, crow, robin, sparrow, eagle, stork, duck, swan, heron, magpie, parrot, pigeon, raven, seagull, penguin, finch, starling, goose, hen, peacock",
    ),
    (
        "tool",
        "tools",
        "hammer, saw, spade, rake, axe, chisel, file, wrench, ladder, brush, bucket, needle, rope, shovel, broom, ruler, pliers, crowbar",
    ),
    (
        "tree",
        "trees",
        "oak, birch, pine, maple, willow, ash, beech, elm, cedar, chestnut, walnut, alder, poplar, larch, linden, spruce",
    ),
    (
        "instrument",
        "instruments",
        "piano, violin, flute, drum, trumpet, guitar, harp, cello, clarinet, banjo, organ, tuba, accordion, oboe, fiddle, bagpipe",
    ),
    (
        "garment",
        "clothes",
        "coat, hat, scarf, glove, shirt, jacket, boot, sock, cap, dress, skirt, apron, belt, sweater, cloak, shoe, vest, mitten",
    ),
    (
        "vehicle",
        "vehicles",
        "car, bus, tram, lorry, boat, ship, plane, tractor, sledge, wagon, canoe, cart, scooter, van, raft, balloon, rocket, submarine",
    ),
    (
        "piece of furniture",
        "furniture",
        "table, chair, bed, sofa, shelf, desk, stool, cupboard, bench, wardrobe, chest, armchair, dresser, cradle, bookcase, couch",
    ),
    (
        "colour",
        "colours",
        "red, blue, green, yellow, white, black, brown, grey, purple, pink, orange, golden, silver, violet, turquoise, scarlet",
    ),
    (
        "flower",
        "flowers",
        "rose, tulip, daisy, lily, poppy, violet, sunflower, orchid, bluebell, snowdrop, carnation, iris, marigold, thistle, foxglove, dandelion",
    ),
    ("drink", "drinks", "water, milk, tea, coffee, juice, lemonade, cocoa, cider, soda, buttermilk"),
    (
        "job",
        "jobs",
        "baker, farmer, doctor, nurse, teacher, painter, carpenter, smith, tailor, sailor, pilot, judge, miller, gardener, butcher, fisherman, librarian, plumber, singer, writer, potter, weaver, shepherd, clerk, barber, mason, hunter, driver, cobbler, engineer",
    ),
    ("metal", "metals", "iron, copper, gold, silver, tin, lead, zinc, nickel, bronze, steel"),
    ("season", "seasons", "spring, summer, autumn, winter"),
    (
        "part of the body",
        "parts of the body",
        "head, arm, leg, hand, foot, nose, ear, eye, knee, elbow, shoulder, finger, thumb, neck, chin, back, toe, ankle",
    ),
    (
        "building",
        "buildings",
        "house, barn, mill, tower, bridge, church, school, station, library, factory, stable, lighthouse, palace, hut, shed, hospital, bakery, theatre",
    ),
    (
        "insect",
        "insects",
        "ant, bee, beetle, wasp, fly, moth, butterfly, cricket, ladybird, mosquito, grasshopper, dragonfly",
    ),
    ("fish", "fish", "trout, salmon, herring, carp, pike, cod, eel, perch, tuna, sardine"),
];

/// Every category, in a fixed order.
pub(crate) static GROUPS: LazyLock<Vec<Category>> = LazyLock::new(|| {
    CATEGORIES
        .iter()
        .map(|&(name, plural, members)| Category { name, plural, members: members.split(", ").collect() })
        .collect()
});

/// The members of a category.
pub(crate) fn group(name: &str) -> &'static [&'static str] {
    &GROUPS.iter().find(|g| g.name == name).unwrap_or_else(|| panic!("no category is called `{name}`")).members
}

/// Pairs of opposites without an opinion.
pub(crate) const OPPOSITES: &[(&str, &str)] = &[
    ("hot", "cold"),
    ("big", "small"),
    ("long", "short"),
    ("high", "low"),
    ("old", "young"),
    ("heavy", "light"),
    ("full", "empty"),
    ("wet", "dry"),
    ("open", "closed"),
    ("early", "late"),
    ("near", "far"),
    ("left", "right"),
    ("up", "down"),
    ("day", "night"),
    ("black", "white"),
    ("first", "last"),
    ("north", "south"),
    ("east", "west"),
    ("wide", "narrow"),
    ("thick", "thin"),
    ("hard", "soft"),
    ("loud", "quiet"),
    ("sweet", "sour"),
    ("rich", "poor"),
    ("strong", "weak"),
    ("sharp", "blunt"),
    ("deep", "shallow"),
    ("front", "back"),
    ("inside", "outside"),
    ("above", "below"),
    ("begin", "end"),
    ("buy", "sell"),
    ("push", "pull"),
    ("give", "take"),
    ("win", "lose"),
    ("find", "lose"),
    ("laugh", "cry"),
    ("sink", "float"),
    ("rise", "fall"),
    ("summer", "winter"),
    ("always", "never"),
    ("all", "none"),
    ("more", "less"),
    ("before", "after"),
    ("question", "answer"),
    ("positive", "negative"),
    ("raw", "cooked"),
    ("awake", "asleep"),
    ("alive", "dead"),
    ("straight", "crooked"),
    ("smooth", "rough"),
    ("tight", "loose"),
    ("rare", "common"),
    ("simple", "difficult"),
    ("brave", "timid"),
    ("tall", "tiny"),
];

/// Verbs with an object: base, past, -ing.
pub(crate) const ACTIONS: &[(&str, &str, &str)] = &[
    ("carry", "carried", "carrying"),
    ("paint", "painted", "painting"),
    ("wash", "washed", "washing"),
    ("hide", "hid", "hiding"),
    ("sell", "sold", "selling"),
    ("buy", "bought", "buying"),
    ("lift", "lifted", "lifting"),
    ("draw", "drew", "drawing"),
    ("push", "pushed", "pushing"),
    ("pull", "pulled", "pulling"),
    ("drop", "dropped", "dropping"),
    ("bring", "brought", "bringing"),
    ("find", "found", "finding"),
    ("lose", "lost", "losing"),
    ("clean", "cleaned", "cleaning"),
    ("count", "counted", "counting"),
    ("fetch", "fetched", "fetching"),
    ("mend", "mended", "mending"),
    ("keep", "kept", "keeping"),
    ("borrow", "borrowed", "borrowing"),
    ("see", "saw", "seeing"),
    ("touch", "touched", "touching"),
    ("move", "moved", "moving"),
    ("open", "opened", "opening"),
    ("wrap", "wrapped", "wrapping"),
    ("weigh", "weighed", "weighing"),
    ("throw", "threw", "throwing"),
    ("catch", "caught", "catching"),
    ("measure", "measured", "measuring"),
    ("choose", "chose", "choosing"),
    ("hold", "held", "holding"),
    ("share", "shared", "sharing"),
    ("send", "sent", "sending"),
    ("steal", "stole", "stealing"),
    ("polish", "polished", "polishing"),
    ("bury", "buried", "burying"),
    ("shake", "shook", "shaking"),
    ("turn", "turned", "turning"),
    ("watch", "watched", "watching"),
    ("need", "needed", "needing"),
];

/// Verbs without an object: base, past, -ing.
pub(crate) const MOTIONS: &[(&str, &str, &str)] = &[
    ("walk", "walked", "walking"),
    ("run", "ran", "running"),
    ("jump", "jumped", "jumping"),
    ("sleep", "slept", "sleeping"),
    ("sing", "sang", "singing"),
    ("swim", "swam", "swimming"),
    ("dance", "danced", "dancing"),
    ("wait", "waited", "waiting"),
    ("sit", "sat", "sitting"),
    ("stand", "stood", "standing"),
    ("climb", "climbed", "climbing"),
    ("work", "worked", "working"),
    ("play", "played", "playing"),
    ("dream", "dreamt", "dreaming"),
    ("whistle", "whistled", "whistling"),
    ("travel", "travelled", "travelling"),
    ("rest", "rested", "resting"),
    ("shout", "shouted", "shouting"),
    ("hide", "hid", "hiding"),
    ("listen", "listened", "listening"),
    ("crawl", "crawled", "crawling"),
    ("ride", "rode", "riding"),
    ("dig", "dug", "digging"),
    ("hop", "hopped", "hopping"),
    ("fly", "flew", "flying"),
];

/// Where things happen.
pub(crate) const PLACES: &[&str] = &[
    "in the garden",
    "by the river",
    "under the bridge",
    "on the hill",
    "in the forest",
    "at the market",
    "behind the barn",
    "in the cellar",
    "near the well",
    "on the roof",
    "at the harbour",
    "in the kitchen",
    "beside the road",
    "in the meadow",
    "at the station",
    "on the beach",
    "in the attic",
    "by the fire",
    "next to the school",
    "in the yard",
    "at the edge of the lake",
    "between two rocks",
    "under the old oak",
    "in front of the mill",
    "on the stairs",
    "in the snow",
    "across the field",
    "inside the cave",
];

/// When things happen.
pub(crate) const TIMES: &[&str] = &[
    "one morning",
    "one evening",
    "yesterday",
    "last week",
    "in the middle of the night",
    "at noon",
    "on Monday",
    "on Tuesday",
    "on Wednesday",
    "on Thursday",
    "on Friday",
    "on Saturday",
    "on Sunday",
    "in spring",
    "in summer",
    "in autumn",
    "in winter",
    "before breakfast",
    "after supper",
    "at dawn",
    "at dusk",
    "long ago",
    "in January",
    "in March",
    "in May",
    "in July",
    "in October",
    "in December",
    "on a rainy day",
    "during the storm",
];

/// How things look, without an opinion.
pub(crate) const LOOKS: &[&str] = &[
    "red",
    "blue",
    "green",
    "yellow",
    "white",
    "black",
    "brown",
    "grey",
    "old",
    "new",
    "big",
    "small",
    "long",
    "round",
    "heavy",
    "light",
    "wooden",
    "golden",
    "silver",
    "tiny",
    "tall",
    "square",
    "striped",
    "soft",
    "broken",
    "empty",
    "painted",
    "forgotten",
    "strange",
    "shiny",
    "dusty",
    "warm",
    "cold",
    "wet",
    "dry",
    "spotted",
    "crooked",
    "huge",
];

/// Objects that can be found, carried and given away.
pub(crate) const OBJECTS: &[&str] = &[
    "key",
    "box",
    "basket",
    "letter",
    "coin",
    "lantern",
    "map",
    "ring",
    "stone",
    "feather",
    "bottle",
    "candle",
    "clock",
    "mirror",
    "ball",
    "kite",
    "whistle",
    "button",
    "shell",
    "book",
    "cup",
    "bowl",
    "spoon",
    "blanket",
    "bag",
    "bell",
    "picture",
    "puppet",
    "drum",
    "hat",
    "umbrella",
    "compass",
    "pencil",
    "ribbon",
    "jar",
    "plate",
    "pillow",
    "purse",
    "toy boat",
    "wheel",
    "crown",
    "egg",
    "pebble",
    "necklace",
    "telescope",
    "teapot",
    "walking stick",
    "horseshoe",
];

const NUMBERS: &str = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen \
sixteen seventeen eighteen nineteen twenty";

/// A number from 0 to 99 in words.
pub(crate) fn number_word(n: usize) -> String {
    let small: Vec<&str> = NUMBERS.split_whitespace().collect();
    let tens = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    match n {
        0..=20 => small[n].to_owned(),
        _ if n.is_multiple_of(10) => tens[n / 10].to_owned(),
        _ => format!("{}-{}", tens[n / 10], small[n % 10]),
    }
}

/// The plural of a noun of this vocabulary.
pub(crate) fn plural(noun: &str) -> String {
    const SAME: [&str; 10] =
        ["trout", "salmon", "cod", "pike", "tuna", "fish", "pliers", "spinach", "garlic", "lettuce"];
    const IRREGULAR: [(&str, &str); 9] = [
        ("foot", "feet"),
        ("goose", "geese"),
        ("wolf", "wolves"),
        ("shelf", "shelves"),
        ("fisherman", "fishermen"),
        ("scarf", "scarves"),
        ("potato", "potatoes"),
        ("mango", "mangoes"),
        ("mosquito", "mosquitoes"),
    ];
    if SAME.contains(&noun) {
        return noun.to_owned();
    }
    if let Some((_, plural)) = IRREGULAR.iter().find(|(singular, _)| *singular == noun) {
        return (*plural).to_owned();
    }
    let before_y = noun.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o', 'u']));
    match before_y {
        Some(stem) => format!("{stem}ies"),
        None if noun.ends_with(['s', 'x']) || noun.ends_with("ch") || noun.ends_with("sh") => format!("{noun}es"),
        None => format!("{noun}s"),
    }
}
