//! The two questions that are asked of a hub before files are: at which commit a revision is, and what there is at it.

use crate::{
    Error, Name, Result,
    cache::is_commit,
    client::{Answer, Client, Trouble},
    name::Kind,
    tree::Tree,
};
use serde_json::Value;
use ureq::http::Uri;

/// Of a listing; one of a million files is larger, and no model has so many.
const LARGEST_PAGE: u64 = 64 << 20;
const MOST_PAGES: usize = 1000;

/// What stands before `ORG/NAME` in the addresses of pages and files.
pub(crate) fn prefix(kind: Kind) -> &'static str {
    match kind {
        Kind::Model => "",
        Kind::DataSet => "datasets/",
    }
}

/// The commit of a revision.
pub(crate) fn commit(client: &Client<'_>, name: &Name) -> Result<String> {
    let path = format!("api/{}/{}/revision/{}", name.kind.plural(), name.id, escaped(name.revision(), true));
    let (value, _) = json(client, &client.url(&path)?, name)?;
    let found = value.get("sha").and_then(Value::as_str).filter(|it| is_commit(it));
    found.map(str::to_owned).ok_or_else(|| {
        Error::transfer(
            name.to_string(),
            format!("{path} on the hub names no commit; HF_ENDPOINT may lead to something else than a hub"),
        )
    })
}

/// The files at a commit.
pub(crate) fn tree(client: &Client<'_>, name: &Name, commit: &str) -> Result<Tree> {
    let path = format!("api/{}/{}/tree/{commit}?recursive=true&expand=false", name.kind.plural(), name.id);
    let mut next = Some(client.url(&path)?);
    let mut entries = Vec::new();
    for _ in 0..MOST_PAGES {
        let Some(url) = next else { return Ok(Tree(entries)) };
        let (value, following) = json(client, &url, name)?;
        entries.extend(
            Tree::parse_page(&value)
                .map_err(|it| Error::transfer(name.to_string(), format!("the hub's listing {it}")))?,
        );
        next = following;
    }
    Err(Error::transfer(name.to_string(), "the hub's listing has no end"))
}

/// The address of a file.
pub(crate) fn file(client: &Client<'_>, name: &Name, commit: &str, path: &str) -> Result<Uri> {
    client.url(&format!("{}{}/resolve/{commit}/{}", prefix(name.kind), name.id, escaped(path, false)))
}

/// A page of JSON, and the address of the next if there is one.
fn json(client: &Client<'_>, url: &Uri, name: &Name) -> Result<(Value, Option<Uri>)> {
    client.patiently(&name.to_string(), name, || {
        let mut answer = client.get(url, None).map_err(|it| (it, false))?;
        let bytes = answer.body.with_config().limit(LARGEST_PAGE).read_to_vec();
        let bytes = bytes.map_err(|e| (Trouble::Way(e.to_string()), false))?;
        let value =
            serde_json::from_slice(&bytes).map_err(|e| (Trouble::Way(format!("answered no JSON: {e}")), false))?;
        Ok((value, following(&answer)))
    })
}

/// `Link: <https://...>; rel="next"`.
fn following(answer: &Answer) -> Option<Uri> {
    let links = answer.header("link")?.split(',').find(|it| it.contains("rel=\"next\""))?;
    links.split_once('<')?.1.split_once('>')?.0.parse().ok()
}

/// For the path of an address; with `all`, a `/` is no separator either.
fn escaped(text: &str, all: bool) -> String {
    let keep = |c: u8| c.is_ascii_alphanumeric() || b"-_.~".contains(&c) || (c == b'/' && !all);
    text.bytes().map(|c| if keep(c) { char::from(c).to_string() } else { format!("%{c:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_escaped() {
        assert_eq!(escaped("refs/convert/parquet", true), "refs%2Fconvert%2Fparquet");
        assert_eq!(escaped("a b/ü#?.json", false), "a%20b/%C3%BC%23%3F.json");
    }
}
