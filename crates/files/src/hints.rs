//! What stands in the place of a file that cannot be used, for messages: people's folders hold pointers, links that lead nowhere
//! and weights in other formats, and the remedy is another one for each.

use crate::open_file;
use std::{io::Read, path::Path};

/// What the beginning of a file tells that is not what it should be.
pub fn oddity(head: &[u8]) -> Option<&'static str> {
    let begins = |text: &str| head.starts_with(text.as_bytes());
    if begins("version https://git-lfs") {
        Some("it is a Git LFS pointer and not the file itself: `git lfs pull` in the folder fetches it")
    } else if begins("../") || begins("blobs/") {
        Some(
            "it holds the path of a file, as links do that were copied as text: copy the folder with `cp -rL`, or fetch it again",
        )
    } else if matches!(head, [0xff, 0xfe, it, ..] | [0xfe, 0xff, _, it, ..] if *it != 0) {
        Some("it is text in UTF-16: save it as UTF-8")
    } else if begins("<!DOCTYPE") || begins("<html") {
        Some("it is a web page: take the link of the file itself, not of the page that shows it")
    } else if head.starts_with(b"GGUF") {
        Some("it is a GGUF file, as llama.cpp reads them: take the weights in safetensors that it was made of")
    } else if head.starts_with(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46") {
        Some(
            "it is a file of torch.save as it was before 1.6: read it with torch.load where you trust it, and save it again",
        )
    } else if head.starts_with(b"PK\x03\x04") {
        Some("it is a file of torch.save: save it as safetensors with transformers' or PEFT's save_pretrained")
    } else {
        None
    }
}

/// What [`oddity`] says of the beginning of a file on disk.
pub(crate) fn of_file(path: &Path) -> Option<&'static str> {
    let mut head = Vec::new();
    open_file(path).ok()?.take(64).read_to_end(&mut head).ok()?;
    oddity(&head)
}

/// That a path is a link to something that is not there.
pub fn dangling(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok().filter(|_| !path.exists())?;
    Some(format!("it is a link to {}, which does not exist: the download is not complete", target.display()))
}

/// What a folder holds instead of weights that can be read, and what to do about it.
pub(crate) fn instead(dir: &Path) -> String {
    if let Some(link) = dangling(&dir.join(crate::sharded::SINGLE)) {
        return format!("; {link}");
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|it| it.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let first = |ends: &str| names.iter().find(|it| it.ends_with(ends));
    if let Some(shard) = first(".safetensors") {
        let index = crate::sharded::INDEX;
        return format!("; there is {shard}: a model in several files needs {index} beside them, so fetch that, too");
    }
    if let Some(shard) = names.iter().find(|it| it.starts_with("pytorch_model") && it.ends_with(".bin")) {
        let index = crate::sharded::TORCH_INDEX;
        return format!("; there is {shard}: a model in several files needs {index} beside them, so fetch that, too");
    }
    first(".gguf").map_or_else(String::new, |gguf| {
        format!(
            "; {gguf} is a GGUF file, as llama.cpp reads them: take the weights in safetensors that it was made of, or convert it with transformers' AutoModelForCausalLM.from_pretrained({dir:?}, gguf_file={gguf:?}).save_pretrained(FOLDER)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_have_in_the_place_of_a_file_is_known_by_its_beginning() {
        let known: [(&[u8], &str); 6] = [
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"../../blobs/0123", "cp -rL"),
            (b"\xff\xfe{\0", "UTF-16"),
            (b"<!DOCTYPE html>", "web page"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"PK\x03\x04\0\0\0\0", "torch.save"),
        ];
        for (head, part) in known {
            assert!(oddity(head).is_some_and(|it| it.contains(part)), "{part}");
        }
        // The lengths of headers, and JSON.
        let sound: [&[u8]; 5] =
            [b"", b"\xff\xfe\0\0\0\0\0\0", b"\x80\x02\0\0\0\0\0\0", b"{\"a\": 1}", b"PK\0\0\0\0\0\0"];
        sound.iter().for_each(|it| assert_eq!(oddity(it), None));
    }
}
