//! What the reviews are about: things, their parts, and sentences about them that carry no opinion.

use crate::lexicon::Tag;
use std::sync::LazyLock;

/// A part of a thing: "the plot", "the seats".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Without the article.
    pub noun: &'static str,
    /// Whether it takes "were".
    pub plural: bool,
    /// Which adjectives fit.
    pub tag: Tag,
}

/// A family of things that share their parts.
#[derive(Debug)]
pub struct Domain {
    /// Names of the thing, in the singular.
    pub items: Vec<&'static str>,
    /// Its parts.
    pub parts: Vec<Part>,
    /// Which adjectives fit the thing itself.
    pub tag: Tag,
    /// How it comes about: "filmed", "cooked".
    pub made: Vec<&'static str>,
    /// Openers without an opinion, for training reviews.
    pub openers: Vec<&'static str>,
    /// Openers without an opinion that training reviews never show.
    pub held_out_openers: Vec<&'static str>,
    /// What somebody does with the thing, in the infinitive: "see the", "eat at the".
    pub use_it: &'static str,
    /// What people do who liked it; `{their}` is filled in.
    pub liked: Vec<&'static str>,
    /// What people do who did not like it.
    pub disliked: Vec<&'static str>,
}

struct Row {
    tag: Tag,
    items: &'static str,
    story: &'static str,
    food: &'static str,
    thing: &'static str,
    place: &'static str,
    human: &'static str,
    made: &'static str,
    openers: &'static str,
    held_out_openers: &'static str,
    use_it: &'static str,
    liked: &'static str,
    disliked: &'static str,
}

/// Parts that end in `*` are plural.
const ROWS: &[Row] = &[
    Row {
        tag: Tag::Story,
        items: "film, comedy, thriller, movie, cartoon, western",
        story: "plot, acting, ending, dialogue, jokes*, songs*, scenes*, camera work, first half, love story",
        food: "popcorn",
        thing: "sound",
        place: "cinema",
        human: "main actor, villain",
        made: "filmed, acted, written",
        openers: "We saw it on Friday night.|I watched it with my sister.|It runs for two hours.|We sat in the third row.",
        held_out_openers: "The whole class went along.|My cousin picked it for her birthday.|It came out in spring.",
        use_it: "watch the",
        liked: "stayed until the very end|clapped until {their} hands hurt|watched it again the next day|asked for the name of the director|wanted to see the second part at once|talked about the best scene all the way home",
        disliked: "left before the end|fell asleep in {their} seat|looked at the clock every minute|switched it off after half an hour|wanted {their} ticket money back|groaned all the way home",
    },
    Row {
        tag: Tag::Story,
        items: "novel, book, memoir, biography, fairy tale, poem collection",
        story: "plot, characters*, writing, opening chapter, ending, language, pictures*, love story, middle part, style",
        food: "",
        thing: "cover, binding",
        place: "",
        human: "hero, narrator",
        made: "written, printed, told",
        openers: "I read it on the train.|It has three hundred pages.|My aunt lent it to me.|I took it along to the lake.",
        held_out_openers: "Our reading circle chose it in May.|I borrowed it from the library.|It lay beside my bed for a week.",
        use_it: "read the",
        liked: "read it in a single night|bought two copies as gifts|kept it on the shelf by {their} bed|turned back to page one at once|looked for more by the same writer|read the best lines aloud",
        disliked: "gave up after ten pages|put it back on the shelf unread|used it to prop up a table|skipped to the last page|sold it the next morning|never opened it again",
    },
    Row {
        tag: Tag::Story,
        items: "play, musical, opera, concert, circus show, puppet show",
        story: "plot, music, songs*, dances*, costumes*, second act, ending, dialogue, lighting, overture",
        food: "",
        thing: "sound",
        place: "hall, stage",
        human: "singer, conductor, lead dancer",
        made: "staged, sung, played",
        openers: "We had seats near the front.|It was the first night.|I went with two friends.|It began at eight.",
        held_out_openers: "My neighbour gave us her tickets.|It toured through the valley all summer.|The curtain rose a little late.",
        use_it: "go to the",
        liked: "stood up and cheered|threw flowers onto the stage|hummed the tunes for a week|bought tickets for the next night too|shouted for more|waited at the stage door to say thank you",
        disliked: "booed loudly|slipped out during the break|covered {their} ears|yawned through the whole evening|gave the second ticket away|asked for the ticket money back",
    },
    Row {
        tag: Tag::Food,
        items: "restaurant, bistro, diner, pizzeria, canteen, tavern",
        story: "",
        food: "soup, pasta, fish, salad, bread, dessert, steak, dumplings*, vegetables*, noodles*, sauce, rice",
        thing: "",
        place: "dining room, terrace",
        human: "waiter, cook, staff*",
        made: "cooked, served, seasoned",
        openers: "We went there on Sunday.|We had a table for four.|I ordered the menu of the day.|It lies next to the station.",
        held_out_openers: "We celebrated my uncle's birthday there.|Our bus stopped right outside.|We dropped in after the match.",
        use_it: "eat at the",
        liked: "asked for a second plate|ate every crumb|booked a table for the next week|left a big tip|thanked the cook in person|licked {their} fingers",
        disliked: "left the plate half full|sent the food back to the kitchen|went elsewhere for dinner|left no tip|felt sick all night|got up before the main course",
    },
    Row {
        tag: Tag::Food,
        items: "bakery, cafe, tea room, ice cream parlour, market stall",
        story: "",
        food: "cake, coffee, rolls*, tea, pie, biscuits*, sandwich, cream, lemonade, pancakes*, chocolate, tart",
        thing: "",
        place: "back room, garden",
        human: "baker, waitress, owner",
        made: "baked, decorated, prepared",
        openers: "We stopped there for a break.|I was there on a Monday morning.|It is just around the corner.|We took the small table.",
        held_out_openers: "It opened in autumn.|My colleagues meet there on Thursdays.|We queued for a short while.",
        use_it: "go to the",
        liked: "took a box of it home|came back the very next morning|ordered another slice|asked for the recipe|brought the whole family along|finished every last bite",
        disliked: "threw the rest to the birds|walked out with an empty stomach|poured it down the sink|never set foot in there again|spat it into a napkin|bought lunch somewhere else",
    },
    Row {
        tag: Tag::Thing,
        items: "lamp, kettle, camera, phone, printer, watch, toaster, radio, drill, vacuum cleaner, tent, bicycle",
        story: "",
        food: "",
        thing: "battery, screen, buttons*, handle, case, motor, cable, switch, lid, wheels*, display, software, design",
        place: "",
        human: "seller, service team",
        made: "built, packed, designed",
        openers: "I bought it in March.|It came in a brown box.|I use it in the kitchen.|My brother has the same one.",
        held_out_openers: "It arrived by post on Wednesday.|I needed one for the workshop.|It replaced a model from my grandfather.",
        use_it: "use the",
        liked: "bought another one for {their} mother|used it every single day|took it on every trip|showed it to all the neighbours|kept it for many years|would not lend it to anybody",
        disliked: "sent it back the next day|threw it in the bin|asked for a refund|left it in a drawer to gather dust|bought a different one|complained to the shop",
    },
    Row {
        tag: Tag::Place,
        items: "hotel, hostel, guest house, inn, campsite, holiday cottage",
        story: "",
        food: "breakfast",
        thing: "shower, lift, heating",
        place: "room, lobby, bathroom, garden, pool, beds*, balcony, corridors*",
        human: "receptionist, owner, cleaners*, staff*",
        made: "furnished, kept, run",
        openers: "We stayed for two nights.|We arrived late in the evening.|Our room was on the first floor.|It stands near the harbour.",
        held_out_openers: "We spent our autumn break there.|It has forty rooms on four floors.|A storm kept us there until Tuesday.",
        use_it: "stay at the",
        liked: "stayed an extra night|booked the same room for the next summer|slept like a baby|wrote a thank-you card|did not want to go home|hugged the owner at the door",
        disliked: "packed {their} bags after one night|moved to another place|could not sleep at all|drove home a day early|refused to pay the bill|slept in the car instead",
    },
    Row {
        tag: Tag::Place,
        items: "museum, gallery, castle, zoo, botanical garden, aquarium",
        story: "exhibition, audio guide, tour, legends*",
        food: "",
        thing: "map, signs*",
        place: "entrance hall, courtyard, tower, halls*, garden, paths*",
        human: "guide, guards*",
        made: "arranged, planned, restored",
        openers: "We took the children there.|I had one free afternoon.|It opens at ten.|We went by tram.",
        held_out_openers: "Our school visited it in June.|It rained, so the crowd was small.|My pen friend suggested it.",
        use_it: "visit the",
        liked: "bought a ticket for the whole year|stayed until the gates closed|took a hundred photographs|went around a second time|came back with the whole family|gave money for a new roof",
        disliked: "walked out after ten minutes|sat on a bench and waited for the others|asked for the entrance fee back|counted the minutes until closing time|hurried to the exit|took not a single photograph",
    },
    Row {
        tag: Tag::Story,
        items: "course, workshop, lecture, language class, cooking class",
        story: "lessons*, exercises*, examples*, topic, discussion, homework, final talk",
        food: "",
        thing: "handbook, tools*",
        place: "classroom",
        human: "teacher, speaker, group",
        made: "taught, prepared, explained",
        openers: "It took place on six evenings.|There were ten of us.|I took it after work.|We met in the town hall.",
        held_out_openers: "My office paid for it.|It covered four weekends in November.|We worked in pairs.",
        use_it: "take the",
        liked: "signed up for the next one|practised every day afterwards|took pages of notes|asked many questions|thanked the teacher with a cake|brought a friend along the next time",
        disliked: "dropped out after the first evening|drew little houses in the notebook|stared out of the window|never came back|learned nothing|asked for the fee back",
    },
    Row {
        tag: Tag::Place,
        items: "ferry, train, coach, boat trip, cable car, sleeper train",
        story: "view, announcements*",
        food: "sandwiches*, coffee",
        thing: "engine, doors*, timetable",
        place: "cabin, seats*, deck, toilets*, windows*",
        human: "driver, crew, captain",
        made: "run, planned, equipped",
        openers: "We took it to the coast.|The trip lasted three hours.|I sat by the window.|We left at noon.",
        held_out_openers: "I take it each winter to my parents.|It crossed the bay at dawn.|The line opened in February.",
        use_it: "take the",
        liked: "took the same one on the way back|waved to the crew|fell in love with travelling|rode it twice more that week|was sorry when it arrived|bought a picture of it",
        disliked: "went home by taxi|got off at the first stop|wrote an angry letter to the company|swore to walk next time|kissed the ground on arrival|asked for the fare back",
    },
];

/// Every domain, in a fixed order.
pub static DOMAINS: LazyLock<Vec<Domain>> = LazyLock::new(|| ROWS.iter().map(domain).collect());

fn domain(row: &Row) -> Domain {
    let groups = [
        (Tag::Story, row.story),
        (Tag::Food, row.food),
        (Tag::Thing, row.thing),
        (Tag::Place, row.place),
        (Tag::Human, row.human),
    ];
    let parts = groups.into_iter().flat_map(|(tag, list)| {
        list.split(", ").filter(|name| !name.is_empty()).map(move |name| Part {
            noun: name.trim_end_matches('*'),
            plural: name.ends_with('*'),
            tag,
        })
    });
    Domain {
        items: row.items.split(", ").collect(),
        parts: parts.collect(),
        tag: row.tag,
        made: row.made.split(", ").collect(),
        openers: row.openers.split('|').collect(),
        held_out_openers: row.held_out_openers.split('|').collect(),
        use_it: row.use_it,
        liked: row.liked.split('|').collect(),
        disliked: row.disliked.split('|').collect(),
    }
}
