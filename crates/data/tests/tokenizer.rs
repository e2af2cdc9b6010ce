//! The tokenizer of a folder: special tokens, vocabulary check, streaming.

mod common;

use common::*;
use halfbyte_data::{Error, Tokenizer};
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
fn special_tokens_come_from_the_first_file_that_names_them() {
    let bare = load(&[]);
    assert_eq!((bare.bos(), bare.eos(), bare.special().pad, bare.stop_ids()), (None, None, None, &[][..]));
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}, "pad_token": null});
    let both =
        load(&[("tokenizer_config.json", config.clone()), ("special_tokens_map.json", json!({"pad_token": "<pad>"}))]);
    assert_eq!((both.bos(), both.eos(), both.special().pad), (Some(BOS), Some(EOS), Some(PAD)));
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
fn flags_of_the_config_file_are_heard() {
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true});
    let tokenizer = load(&[("tokenizer_config.json", config)]);
    let plain = tokenizer.encode_plain("ab").unwrap();
    assert_eq!(tokenizer.encode("ab").unwrap(), [&[BOS], &plain[..]].concat());
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
fn a_tokenizer_of_another_model_is_refused() {
    let tokenizer = tokenizer();
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
}

#[test]
fn literal_replacement_characters_do_not_break_the_next_character() {
    let tokenizer = tokenizer();
    let text = "\u{fffd}\u{fffd}\u{10380}";
    let mut stream = tokenizer.stream(true);
    let streamed: String = tokenizer.encode(text).unwrap().into_iter().map(|id| stream.push(id).unwrap()).collect();
    assert_eq!(streamed + &stream.finish().unwrap(), text);
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
