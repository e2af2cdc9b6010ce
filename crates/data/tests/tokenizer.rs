//! The tokenizer of a folder: special tokens, vocabulary check, streaming.

mod common;

use common::*;
use halfbyte_data::{Continuation, Dataset, Error, SpecialTokens, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

fn load(files: &[(&str, Value)]) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(file(&folder, "tokenizer.json"), tokenizer_json().to_string()).unwrap();
    for (name, value) in files {
        std::fs::write(file(&folder, name), value.to_string()).unwrap();
    }
    Tokenizer::load(folder.path()).unwrap()
}

#[test]
fn special_tokens_come_from_the_file_that_counts() {
    let bare = load(&[]);
    assert_eq!((bare.bos(), bare.eos(), bare.special().pad, bare.stop_ids()), (None, None, None, &[][..]));
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}, "pad_token": null});
    let both =
        load(&[("tokenizer_config.json", config.clone()), ("special_tokens_map.json", json!({"pad_token": "<pad>"}))]);
    assert_eq!((both.bos(), both.eos(), both.special().pad), (Some(BOS), Some(EOS), Some(PAD)));
    let eos = |config: Value| {
        load(&[("tokenizer_config.json", config), ("special_tokens_map.json", json!({"eos_token": "<s>"}))]).eos()
    };
    assert_eq!(eos(json!({"eos_token": "</s>"})), Some(BOS), "the map wins");
    assert_eq!(eos(json!({"eos_token": "</s>", "added_tokens_decoder": {}})), Some(EOS), "unless it is not looked at");
    let padless = load(&[("tokenizer_config.json", config.clone())]);
    assert_eq!(padless.special().pad, None, "nothing is invented");
    let ids = load(&[
        ("config.json", json!({"eos_token_id": 1, "pad_token_id": -1})),
        ("generation_config.json", json!({"eos_token_id": [9, 1]})),
    ]);
    assert_eq!((ids.eos(), ids.stop_ids()), (Some(9), &[9, 1][..]));
    let stops = load(&[("tokenizer_config.json", config), ("generation_config.json", json!({"eos_token_id": 7}))]);
    assert_eq!(stops.stop_ids(), [7, EOS]);
}

#[test]
fn a_flag_that_contradicts_tokenizer_json_is_told_and_changes_nothing() {
    let folder = |post_processor: Value, flags: Value| {
        let mut json = tokenizer_json();
        json["post_processor"] = post_processor;
        let mut config = json!({"bos_token": "<s>", "eos_token": "</s>"});
        config.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(file(&folder, "tokenizer.json"), json.to_string()).unwrap();
        std::fs::write(file(&folder, "tokenizer_config.json"), config.to_string()).unwrap();
        Tokenizer::load(folder.path()).unwrap()
    };
    let plain = tokenizer().encode_plain("ab").unwrap();
    for flags in [json!({}), json!({"add_bos_token": null}), json!({"add_bos_token": true, "add_eos_token": true})] {
        let around = folder(surrounding(), flags);
        assert_eq!(around.encode("ab").unwrap(), [&[BOS], &plain[..], &[EOS]].concat());
        assert_eq!(around.notes(), [] as [&str; 0]);
    }
    let around = folder(surrounding(), json!({"add_bos_token": false, "add_eos_token": false}));
    assert_eq!(around.encode("ab").unwrap(), [&[BOS], &plain[..], &[EOS]].concat());
    assert!(around.notes()[0].contains("add_bos_token") && around.notes()[1].contains("add_eos_token"));
    let bare = folder(Value::Null, json!({"add_bos_token": true, "add_eos_token": true}));
    assert_eq!(bare.encode("ab").unwrap(), plain);
    assert!(bare.notes()[0].contains("no beginning-of-text") && bare.notes()[1].contains("--append-eos"));
    assert_eq!(folder(Value::Null, json!({"add_eos_token": false})).notes(), [] as [&str; 0]);
}

/// Also where nobody says which token ends a text.
#[test]
fn what_stands_around_a_text_stands_around_a_row() {
    let mut json = tokenizer_json();
    json["post_processor"] = surrounding();
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), SpecialTokens::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(file(&folder, "a.txt"), "ab\n").unwrap();
    let rows = Dataset::load(&file(&folder, "a.txt"), &tokenizer, &config(64)).unwrap().0;
    let plain = tokenizer.encode_plain("ab").unwrap();
    assert_eq!(rows.row(0).ids, [&[BOS], &plain[..], &[EOS]].concat());
}

/// The first id that `tokenizer_json` leaves free.
fn free() -> u32 {
    tokenizer().vocab_size() as u32
}

#[test]
fn tokens_that_only_the_files_beside_know_are_found_whole() {
    let (next, text) = (free(), "<|a|>the<|b|>");
    let the = tokenizer().encode_plain("the").unwrap();
    let wanted = [&[next], &the[..], &[next + 1]].concat();
    let token = |content: &str| json!({"content": content, "special": true, "normalized": false});
    let decoder = json!({next.to_string(): token("<|a|>"), (next + 1).to_string(): token("<|b|>"), "0": token("<s>")});
    let by_map = ("added_tokens.json", json!({"<|b|>": next + 1, "<|a|>": next}));
    let listed = json!(["<|a|>", {"content": "<|b|>"}]);
    for files in [
        vec![("tokenizer_config.json", json!({ "added_tokens_decoder": decoder }))],
        vec![by_map],
        vec![("tokenizer_config.json", json!({ "additional_special_tokens": listed }))],
        vec![("special_tokens_map.json", json!({ "additional_special_tokens": listed }))],
        vec![
            ("tokenizer_config.json", json!({ "additional_special_tokens": ["<|a|>"] })),
            ("special_tokens_map.json", json!({ "additional_special_tokens": ["<|a|>", "<|b|>"] })),
        ],
        vec![("tokenizer_config.json", json!({ "extra_special_tokens": listed }))],
        vec![("tokenizer_config.json", json!({ "extra_special_tokens": {"a": "<|a|>", "b": "<|b|>"} }))],
        vec![("tokenizer_config.json", json!({ "mask_token": "<|b|>", "sep_token": "<|a|>" }))],
        vec![("tokenizer_config.json", json!({ "image_token": "<|b|>", "pad_token": "<|a|>" }))],
    ] {
        let tokenizer = load(&files);
        assert_eq!(tokenizer.encode_plain(text).unwrap(), wanted, "{files:?}");
        let special = files[0].0 != "added_tokens.json";
        assert_eq!(tokenizer.decode(&wanted, true).unwrap(), if special { "the" } else { text }, "{files:?}");
    }
    let apart = |id: u32| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(file(&folder, "tokenizer.json"), tokenizer_json().to_string()).unwrap();
        std::fs::write(file(&folder, "added_tokens.json"), json!({ "<|a|>": id }).to_string()).unwrap();
        Tokenizer::load(folder.path())
    };
    let error = apart(next + 7).unwrap_err().to_string();
    assert!(error.contains("added_tokens.json") && error.contains(&(next + 7).to_string()), "{error}");
}

#[test]
fn words_of_other_settings_are_no_tokens() {
    for (key, value) in [
        ("model_input_names", json!(["xylophone"])),
        ("auto_map", json!({ "a": "xylophone" })),
        ("tokenizer_class", json!("xylophone")),
    ] {
        let config = serde_json::Map::from_iter([(key.to_owned(), value)]);
        let tokenizer = load(&[("tokenizer_config.json", Value::Object(config))]);
        assert_eq!(tokenizer.vocab_size() as u32, free(), "{key}");
    }
}

#[test]
fn a_token_is_normalised_as_text_is_unless_it_is_special() {
    let found = |special: bool| {
        let mut json = tokenizer_json();
        json["normalizer"] = json!({ "type": "Lowercase" });
        let decoder = json!({free().to_string(): {"content": "<|A|>", "special": special}});
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(file(&folder, "tokenizer.json"), json.to_string()).unwrap();
        let config = json!({ "added_tokens_decoder": decoder });
        std::fs::write(file(&folder, "tokenizer_config.json"), config.to_string()).unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        ["<|A|>", "<|a|>"].map(|text| tokenizer.encode_plain(text).unwrap() == [free()])
    };
    assert_eq!([found(false), found(true)], [[true, true], [true, false]]);
}

#[test]
fn special_tokens_are_cut_like_text_where_the_settings_say_so() {
    let whole = load(&[("tokenizer_config.json", json!({ "eos_token": "</s>" }))]);
    assert_eq!(whole.encode_plain("</s>").unwrap(), [EOS]);
    let config = json!({ "eos_token": "</s>", "split_special_tokens": true });
    let split = load(&[("tokenizer_config.json", config)]);
    // What was added as no special token stays whole, also where another list names it.
    let plain = json!({"content": "<|a|>", "special": false, "normalized": false});
    let config = json!({
        "added_tokens_decoder": {free().to_string(): plain}, "extra_special_tokens": ["<|a|>"], "split_special_tokens": true
    });
    let listed = load(&[("tokenizer_config.json", config.clone())]);
    assert_eq!(listed.encode_plain("<|a|>").unwrap(), [free()]);
    let mut of_qwen = config;
    of_qwen["tokenizer_class"] = "Qwen2Tokenizer".into();
    assert!(!load(&[("tokenizer_config.json", of_qwen)]).encode_plain("<|a|>").unwrap().contains(&free()));
    assert!(!split.encode_plain("</s>").unwrap().contains(&EOS));
    assert_eq!(split.eos(), Some(EOS));
}

#[test]
fn keys_that_nobody_knows_are_named_and_those_without_effect_are_not() {
    let config = json!({
        "tokenizer_class": "X", "image_token": "<|i|>", "padding_side": "left", "truncation_side": "left",
        "auto_map": {"AutoTokenizer": "x.Y"}, "sharpness": 1
    });
    let notes = load(&[
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", json!({ "x_token": "x", "y": 1 })),
        ("generation_config.json", json!({ "top_z": 1, "top_p": 1 })),
    ]);
    let notes = notes.notes().join("\n");
    for part in
        ["sharpness", "auto_map is not used", "truncation_side is left", "map.json: unknown keys ignored: y", "top_z"]
    {
        assert!(notes.contains(part), "{part}: {notes}");
    }
    assert_eq!(notes.lines().count(), 5, "{notes}");
    for nothing in [json!(null), json!(false), json!([]), json!({})] {
        let silent = load(&[("tokenizer_config.json", json!({ "auto_map": nothing }))]);
        assert_eq!(silent.notes(), [] as [&str; 0]);
    }
}

#[test]
fn what_is_asked_of_a_continuation_is_read_and_what_nobody_does_is_named() {
    let asked = |file: Value| load(&[("generation_config.json", file)]).continuation_asked().clone();
    let plain = Continuation::default();
    assert_eq!(load(&[]).continuation_asked(), &plain);
    let greedy = asked(json!({"temperature": 0.5, "top_k": 3, "repetition_penalty": 1.25}));
    assert_eq!(greedy, Continuation { repetition_penalty: 1.25, ..plain.clone() });
    let drawn = asked(json!({"do_sample": true, "temperature": 0.5, "top_p": 0.75}));
    assert_eq!(drawn, Continuation { temperature: 0.5, top_k: 50, top_p: 0.75, ..plain.clone() });
    let more = json!({
        "num_beams": 4, "num_return_sequences": 1, "penalty_alpha": 0.0, "dola_layers": false, "use_cache": true,
        "watermarking_config": {"bias": 2}, "exponential_decay_length_penalty": []
    });
    let others = vec!["num_beams 4".to_owned(), "watermarking_config {\"bias\":2}".to_owned()];
    assert_eq!(asked(more), Continuation { others, ..plain });
}

#[test]
fn a_token_beyond_the_models_vocabulary_is_refused_where_a_text_holds_it() {
    let mut tokenizer = load(&[("tokenizer_config.json", json!({ "extra_special_tokens": ["<|pad|>"] }))]);
    tokenizer.check_vocab(free() as usize).unwrap();
    assert_eq!(tokenizer.encode("the").unwrap(), common::tokenizer().encode("the").unwrap());
    let error = tokenizer.encode("the <|pad|>").unwrap_err().to_string();
    assert!(error.contains("<|pad|>") && error.contains(&free().to_string()), "{error}");
    assert!(tokenizer.check_vocab(free() as usize - 1).is_err(), "a word is not");
}

#[test]
fn tokenizers_are_compared_by_what_they_know() {
    let same = tokenizer();
    let more = load(&[("tokenizer_config.json", json!({ "extra_special_tokens": ["<|pad|>"] }))]);
    assert!(same.knows_what(&tokenizer()));
    assert!(!same.knows_what(&more) && !more.knows_what(&same));
    assert_eq!((more.token_to_id("<|pad|>"), same.token_to_id("<|pad|>")), (Some(free()), None));
    assert_eq!(same.token_to_id("</s>"), Some(EOS));
}

#[test]
fn a_text_stops_where_another_tokenizer_does_at_tokens_that_both_have() {
    let beyond = free();
    let with = |stop: &[u32]| {
        let special = SpecialTokens { stop: stop.to_vec(), ..special() };
        Tokenizer::from_json(tokenizer_json().to_string().as_bytes(), special).unwrap()
    };
    let mut own = with(&[EOS]);
    own.stop_also(&with(&[EOS, PAD]));
    assert_eq!(own.stop_ids(), [EOS, PAD], "each once");
    let named = ("tokenizer_config.json", json!({ "extra_special_tokens": ["<|pad|>"] }));
    let other = load(&[named, ("generation_config.json", json!({ "eos_token_id": beyond }))]);
    assert_eq!(other.stop_ids(), [beyond]);
    own.stop_also(&other);
    assert_eq!(own.stop_ids(), [EOS, PAD], "there is no such token");
}

#[test]
fn stored_truncation_and_padding_do_not_touch_the_data() {
    let mut json = tokenizer_json();
    json["truncation"] = json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 2,
                             "pad_type_id": 0, "pad_token": "<pad>"});
    let stored = Tokenizer::from_json(json.to_string().as_bytes(), special()).unwrap();
    for text in ["a", "a text of more than nine tokens"] {
        assert_eq!(stored.encode(text).unwrap(), tokenizer().encode(text).unwrap());
    }
}

#[test]
fn the_token_of_a_stored_padding_is_found_whole() {
    let mut json = tokenizer_json();
    json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 2,
                             "pad_type_id": 0, "pad_token": "<|p|>"});
    let with = |config: Value| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(file(&folder, "tokenizer.json"), json.to_string()).unwrap();
        std::fs::write(file(&folder, "tokenizer_config.json"), config.to_string()).unwrap();
        Tokenizer::load(folder.path()).unwrap().encode_plain("<|p|>").unwrap().len()
    };
    assert_eq!(with(json!({})), 1);
    assert!(with(json!({"pad_token": null})) > 1, "the settings say that there is none");
}

#[test]
fn what_cannot_be_read_is_not_taken_for_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "tokenizer.json");
    assert!(matches!(Tokenizer::load(folder.path()), Err(Error::Missing { .. })));
    std::fs::write(&path, tokenizer_json().to_string()).unwrap();
    assert!(matches!(Tokenizer::load(&path), Err(Error::Read { .. })), "there are no files in a file");
    std::fs::create_dir(file(&folder, "tokenizer_config.json")).unwrap();
    let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json") && error.contains("it is no file"), "{error}");
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let mut tokenizer = tokenizer();
    let size = tokenizer.vocab_size();
    assert!(tokenizer.check_vocab(size).is_ok());
    assert!(tokenizer.check_vocab(size + 64).is_ok(), "a padded embedding is fine");
    let error = tokenizer.check_vocab(size - 1).unwrap_err();
    assert!(matches!(error, Error::VocabMismatch { .. }));
    let message = error.to_string();
    assert!(
        message.contains(&format!("token id {}", size - 1)) && message.contains(&format!("{} entries", size - 1)),
        "{message}"
    );
    assert!(tokenizer.check_vocab(0).is_err());
}

#[test]
fn a_character_is_never_shown_in_halves() {
    let tokenizer = tokenizer();
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<String> =
        tokenizer.encode("é🙂!").unwrap().into_iter().map(|id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["", "é", "", "", "", "🙂", "!"]);
    assert_eq!(stream.finish().unwrap(), "");
    let mut cut = tokenizer.stream(true);
    for &id in &tokenizer.encode("🙂").unwrap()[..2] {
        assert_eq!(cut.push(id).unwrap(), "");
    }
    assert_eq!(cut.finish().unwrap(), "\u{fffd}");
    // However long the piece before was.
    let mut stream = tokenizer.stream(true);
    assert!([BOS; 50].iter().all(|id| stream.push(*id).unwrap().is_empty()));
    let pieces: Vec<String> = tokenizer.encode("aé").unwrap().into_iter().map(|id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["a", "", "é"]);
}

#[test]
fn what_is_no_character_after_many_bytes_is_shown() {
    let tokenizer = with_byte_fallback();
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<String> = [3; 65].iter().map(|id| stream.push(*id).unwrap()).collect();
    assert!(pieces[..63].iter().all(String::is_empty) && pieces[64].is_empty());
    assert_eq!(pieces[63], "\u{fffd}".repeat(64));
}

#[test]
fn literal_replacement_characters_do_not_break_the_next_character() {
    let tokenizer = tokenizer();
    let text = "\u{fffd}\u{fffd}\u{10380}";
    let mut stream = tokenizer.stream(true);
    let streamed: String = tokenizer.encode(text).unwrap().into_iter().map(|id| stream.push(id).unwrap()).collect();
    assert_eq!(streamed + &stream.finish().unwrap(), text);
}

/// Words that begin with a space, as SentencePiece has them, and bytes for what no word covers.
fn with_byte_fallback() -> Tokenizer {
    let words = ["\u{2581}cat", "\u{2581}sat", "<0x0A>", "<0xE5>", "<0xC3>", "<0xA9>"];
    let vocab: serde_json::Map<String, Value> =
        words.iter().zip(0..).map(|(it, id)| ((*it).into(), json!(id))).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [], "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true},
    });
    Tokenizer::from_json(json.to_string().as_bytes(), SpecialTokens::default()).unwrap()
}

#[test]
fn bytes_that_never_become_a_character_do_not_swallow_what_follows() {
    let tokenizer = with_byte_fallback();
    let streamed = |ids: &[u32]| {
        let mut stream = tokenizer.stream(true);
        let text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        text + &stream.finish().unwrap()
    };
    assert_eq!(streamed(&[2, 3, 0, 1]), "\n\u{fffd} cat sat", "a whole byte, then one that is not");
    assert_eq!(streamed(&[0, 2, 3, 0, 1, 4, 5]), "cat\n\u{fffd} cat sat\u{e9}");
    assert_eq!(streamed(&[4, 5, 3, 1]), "\u{e9}\u{fffd} sat");
    assert_eq!(streamed(&[3]), "\u{fffd}");
}

#[test]
fn a_continuation_begins_with_the_space_of_its_first_word() {
    let tokenizer = with_byte_fallback();
    assert_eq!(tokenizer.decode(&[1], true).unwrap(), "sat");
    assert_eq!(tokenizer.continuation(&[0], &[1]).unwrap(), " sat");
    assert_eq!(tokenizer.continuation(&[0, 2], &[0]).unwrap(), " cat");
    assert_eq!(tokenizer.continuation(&[], &[0]).unwrap(), "cat");
}

#[test]
fn special_tokens_are_left_out_of_a_stream_on_request() {
    let tokenizer = tokenizer();
    let run = |skip| {
        let mut stream = tokenizer.stream(skip);
        let text: String = [BOS, 70, EOS].map(|id| stream.push(id).unwrap()).concat();
        text + &stream.finish().unwrap()
    };
    assert_eq!(run(false), format!("<s>{}</s>", run(true)));
}

proptest! {
    #[test]
    fn a_stream_adds_up_to_the_whole(text in any::<String>()) {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text).unwrap();
        let mut stream = tokenizer.stream(false);
        let mut streamed: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        streamed.push_str(&stream.finish().unwrap());
        prop_assert_eq!(&streamed, &text);
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }

    #[test]
    fn any_ids_can_be_streamed(ids in proptest::collection::vec(0u32..400, 0..60)) {
        let tokenizer = tokenizer();
        let mut stream = tokenizer.stream(true);
        for id in ids {
            stream.push(id).unwrap();
        }
        stream.finish().unwrap();
    }
}
