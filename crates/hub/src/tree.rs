//! What files there are at a commit, with what is needed to fetch them and to know them for whole.

#[cfg(feature = "network")]
use crate::cache::is_hex;
use serde_json::{Map, Value, json};

/// The files of a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree(pub(crate) Vec<Entry>);

/// A file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// From the root, with `/` between the parts.
    pub(crate) path: String,
    pub(crate) size: u64,
    /// Of the blob that git has in its place.
    git_hash: String,
    /// Of its bytes, if git has only a pointer to it.
    sha256: Option<String>,
    xet_hash: Option<String>,
}

/// What huggingface_hub calls the form of its own.
const FORMAT: u64 = 1;

impl Tree {
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|it| it.path.as_str())
    }

    /// From `trees/COMMIT.json`.
    pub(crate) fn parse_cached(bytes: &[u8]) -> Option<Tree> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        if value.get("format_version")?.as_u64()? != FORMAT {
            return None;
        }
        let entries = value.get("files")?.as_object()?.iter().map(|(path, it)| {
            let text = |key: &str| it.get(key).and_then(Value::as_str).map(str::to_owned);
            let size = it.get("lfs_size").and_then(Value::as_u64).or(it.get("size")?.as_u64())?;
            let (git_hash, sha256, xet_hash) = (text("blob_id")?, text("lfs_sha256"), text("xet_hash"));
            Some(Entry { path: path.clone(), size, git_hash, sha256, xet_hash })
        });
        entries.collect::<Option<Vec<_>>>().map(Tree)
    }

    #[cfg_attr(not(feature = "network"), allow(dead_code, reason = "only what was fetched is written down"))]
    pub(crate) fn to_cached(&self) -> String {
        let mut files = Map::new();
        let mut entries: Vec<&Entry> = self.0.iter().collect();
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        for it in entries {
            let mut value = json!({ "size": it.size, "blob_id": it.git_hash });
            if let Some(sha256) = &it.sha256 {
                (value["lfs_sha256"], value["lfs_size"]) = (json!(sha256), json!(it.size));
            }
            if let Some(xet_hash) = &it.xet_hash {
                value["xet_hash"] = json!(xet_hash);
            }
            files.insert(it.path.clone(), value);
        }
        format!("{:#}", json!({ "format_version": FORMAT, "files": files }))
    }
}

#[cfg(feature = "network")]
impl Tree {
    /// A page of the hub's listing. What it says becomes names of files here, so each part is checked; folders are left out.
    pub(crate) fn parse_page(value: &Value) -> Result<Vec<Entry>, String> {
        let items = value.as_array().ok_or("is no list of files")?;
        let files = items.iter().filter(|it| it.get("type").and_then(Value::as_str) != Some("directory"));
        files.map(|it| parse_entry(it).ok_or_else(|| format!("lists a file that makes no sense: {it}"))).collect()
    }
}

#[cfg(feature = "network")]
impl Entry {
    /// The name of its bytes in the cache, which is how the hub marks them.
    pub(crate) fn etag(&self) -> &str {
        self.sha256.as_deref().unwrap_or(&self.git_hash)
    }

    /// Whether the etag is the SHA-256 of the bytes themselves.
    pub(crate) fn is_large(&self) -> bool {
        self.sha256.is_some()
    }
}

#[cfg(feature = "network")]
fn parse_entry(it: &Value) -> Option<Entry> {
    let text = |key: &str| it.get(key)?.as_str().map(str::to_owned);
    let lfs = it.get("lfs").filter(|it| !it.is_null());
    let sha256 = match lfs {
        Some(lfs) => Some(lfs.get("oid")?.as_str()?.trim_start_matches("sha256:").to_owned()),
        None => None,
    };
    let size = lfs.and_then(|it| it.get("size")).or(it.get("size"))?.as_u64()?;
    let entry = Entry { path: text("path")?, size, git_hash: text("oid")?, sha256, xet_hash: text("xetHash") };
    let whole = entry.sha256.as_ref().is_none_or(|it| it.len() == 64 && is_hex(it));
    (is_inside(&entry.path) && entry.git_hash.len() == 40 && is_hex(&entry.git_hash) && whole).then_some(entry)
}

/// Whether a path stays in the folder that it is joined to.
#[cfg(feature = "network")]
fn is_inside(path: &str) -> bool {
    path.split('/').all(|it| !it.is_empty() && it != "." && it != ".." && !it.contains(['\\', ':', '\0']))
}

#[cfg(all(test, feature = "network"))]
mod tests {
    use super::*;

    fn page() -> Value {
        json!([
            { "type": "directory", "path": "data", "oid": "0".repeat(40), "size": 0 },
            { "type": "file", "path": "config.json", "oid": "a".repeat(40), "size": 7 },
            { "type": "file", "path": "data/x", "oid": "b".repeat(40), "size": 130, "xetHash": "e".repeat(64),
              "lfs": { "oid": "c".repeat(64), "size": 9000, "pointerSize": 130 } },
        ])
    }

    #[test]
    fn a_listing_is_written_down_and_read_back() {
        let tree = Tree(Tree::parse_page(&page()).unwrap());
        assert_eq!(tree.paths().collect::<Vec<_>>(), ["config.json", "data/x"]);
        assert_eq!((tree.0[0].etag(), tree.0[1].etag()), (&*"a".repeat(40), &*"c".repeat(64)));
        assert_eq!(tree.0[1].size, 9000, "of the file, not of the pointer");
        assert_eq!(Tree::parse_cached(tree.to_cached().as_bytes()), Some(tree));
        assert_eq!(Tree::parse_cached(br#"{"format_version": 2, "files": {}}"#), None);
    }

    #[test]
    fn a_listing_cannot_name_files_outside_its_folder() {
        for path in ["../x", "a/../../x", "/etc/x", "a//b", "C:x", "a\\b", ""] {
            let mut page = page();
            page[1]["path"] = json!(path);
            assert!(Tree::parse_page(&page).is_err(), "{path}");
        }
        for (key, value) in [("oid", json!("../../x")), ("size", json!("7"))] {
            let mut page = page();
            page[1][key] = value;
            assert!(Tree::parse_page(&page).is_err(), "{key}");
        }
    }
}
