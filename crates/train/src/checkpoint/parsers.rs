//! What a checkpoint says of itself, nearly right: read or refused, and what is read is what a run may believe.

use super::RunState;
use halfbyte_testkit::{mutate, readers::tries};
use serde_json::json;
use std::path::Path;

#[test]
fn states() {
    let good = json!({
        "step": 2, "optimizer_steps": 1, "epoch": 0, "row": 0, "batch": 1, "examples": 12, "seconds": 0.25,
        "reached": [true, false, true], "loss_scale": { "value": 65536.0, "good_steps": 2, "dynamic": true },
        "best": null, "settings": { "model": "a/b", "learning_rate": 0.0002, "lora": { "r": 8 } },
    });
    let text = good.to_string().into_bytes();
    tries("trainer_state.json", 600, |dice| {
        let changed = if dice.once_in(2) { mutate::bytes(dice, &text) } else { mutate::document(dice, &good) };
        let Ok(state) = RunState::parse(Path::new("checkpoint-2"), &String::from_utf8_lossy(&changed)) else { return };
        assert!(state.step == 2 && state.taken() <= 2, "{state:?}");
    });
}
