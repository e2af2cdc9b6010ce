//! A stranger's program: a name from a cache that huggingface_hub filled, and one that is not there, without a network.

use halfbyte_hub::{Hub, Place, Settings, Use, list, name};
use std::fs;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cache = std::env::temp_dir().join(format!("halfbyte-consumer-hub-{}", std::process::id()));
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = cache.join("models--acme--tiny");
    let folder = repo.join("snapshots").join(commit);
    fs::create_dir_all(&folder)?;
    fs::create_dir_all(repo.join("refs"))?;
    fs::write(repo.join("refs/main"), commit)?;
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::write(folder.join(file), "{}")?;
    }
    let hub = Hub { settings: Settings { cache: cache.clone(), offline: true, ..Settings::from_env()? } };
    let look_up = |text: &str| -> Result<std::path::PathBuf, Box<dyn std::error::Error>> {
        let Place::There(name) = name::model(text)? else { return Err(format!("{text} is a path").into()) };
        Ok(hub.folder(&name, Use::Model, &|_| ())?)
    };
    let (found, missing, listed) = (look_up("acme/tiny"), look_up("acme/none"), list(&cache)?);
    fs::remove_dir_all(&cache)?;
    assert_eq!(found?, folder);
    assert_eq!(listed.len(), 1);
    let message = missing.err().ok_or("a name that is nowhere is no folder")?.to_string();
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
    Ok(())
}
