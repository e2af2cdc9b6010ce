//! Where the hub and its cache are, as the variables say that huggingface_hub reads.

use crate::{Error, Result};
use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where to look, and how to fetch.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The hub's address, without a slash at the end.
    pub endpoint: String,
    /// The folder of the cache; it need not exist.
    pub cache: PathBuf,
    /// Who asks.
    pub token: Option<Token>,
    /// Whether the network is out of bounds.
    pub offline: bool,
    /// Requests at a time.
    pub connections: usize,
    /// Bytes that one request asks of a large file: what a killed process has to fetch again for each connection, at most.
    pub piece: u64,
    /// The wait before the second try; it doubles with each that brought nothing.
    pub patience: Duration,
    /// How long a connection may be silent before it is given up.
    pub silence: Duration,
    /// Certificates to trust in place of those that are built in, as PEM: where a proxy opens what is encrypted.
    pub certificates: Option<PathBuf>,
}

/// A secret: it is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// From the text, which may end in a line end.
    pub fn new(text: &str) -> Option<Token> {
        let text = text.trim();
        (!text.is_empty()).then(|| Token(text.to_owned()))
    }

    /// The secret itself.
    #[cfg(feature = "network")]
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(...)")
    }
}

impl Settings {
    /// From the environment.
    ///
    /// # Errors
    /// No variable that says where the cache or the home folder is; an endpoint that is no address.
    pub fn from_env() -> Result<Settings> {
        Settings::from(&|name| env::var_os(name))
    }

    /// From variables that `lookup` knows.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from(lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Settings> {
        let set = |name: &str| lookup(name).filter(|it| !it.is_empty());
        let text = |name: &str| set(name).map(|it| it.to_string_lossy().into_owned());
        let is_true =
            |name: &str| text(name).is_some_and(|it| ["1", "ON", "YES", "TRUE"].contains(&it.to_uppercase().as_str()));
        let home = home(&set);
        let path = |name: &str| set(name).map(|it| expand(Path::new(&it), &set));
        let hf_home = path("HF_HOME").or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| home.as_ref().map(|it| it.join(".cache")));
            cache.map(|it| expand(&it, &set).join("huggingface"))
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let Some(cache) = cache.or_else(|| hf_home.as_ref().map(|it| it.join("hub"))) else {
            return Err(Error::asked(
                "HF_HOME",
                "is not set, and neither is HOME; one of them must say where the cache is",
            ));
        };
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !["https://", "http://"].iter().any(|it| endpoint.len() > it.len() && endpoint.starts_with(it)) {
            return Err(Error::asked(
                "HF_ENDPOINT",
                format!("is {endpoint}, which is no address; expected https://HOST"),
            ));
        }
        let token_file = path("HF_TOKEN_PATH").or_else(|| hf_home.map(|it| it.join("token")));
        let stored = || token_file.and_then(|it| fs::read_to_string(it).ok()).and_then(|it| Token::new(&it));
        let given = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].iter().find_map(|it| Token::new(&text(it)?));
        let token = if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { given.or_else(stored) };
        Ok(Settings {
            endpoint,
            cache,
            token,
            offline: is_true("HF_HUB_OFFLINE") || (set("HF_HUB_OFFLINE").is_none() && is_true("TRANSFORMERS_OFFLINE")),
            connections: 8,
            piece: 16 << 20,
            patience: Duration::from_millis(500),
            silence: Duration::from_secs(30),
            certificates: ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"].iter().find_map(|it| path(it)),
        })
    }
}

fn home(set: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    set("HOME").or_else(|| set("USERPROFILE")).map(PathBuf::from)
}

/// `~`, `$NAME` and `${NAME}` at the beginning of a path's parts, as Python's `os.path` expands them.
fn expand(path: &Path, set: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    let mut expanded = PathBuf::new();
    for (i, part) in path.components().enumerate() {
        let text = part.as_os_str().to_string_lossy();
        let variable = text.strip_prefix('$').map(|it| it.trim_start_matches('{').trim_end_matches('}'));
        match variable.and_then(set) {
            Some(value) => expanded.push(value),
            None if i == 0 && text == "~" => expanded.push(home(set).unwrap_or_else(|| "~".into())),
            None => expanded.push(part),
        }
    }
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Settings {
        Settings::from(&|name| variables.iter().find(|it| it.0 == name).map(|it| it.1.into())).unwrap()
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        let cache = |variables: &[(&str, &str)]| of(variables).cache.display().to_string();
        assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "~/hf")]), "/h/hf/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "$D/hf"), ("D", "/d")]), "/d/hf/hub");
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")]), "/old");
        assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")]), "/new");
        assert!(Settings::from(&|_| None).unwrap_err().to_string().contains("HF_HOME"));
    }

    #[test]
    fn a_token_is_taken_from_the_variable_or_its_file_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        fs::write(dir.path().join("other"), "hf_other\n").unwrap();
        let home = dir.path().to_str().unwrap();
        let other = dir.path().join("other");
        assert_eq!(of(&[("HF_HOME", home)]).token, Token::new("hf_file"));
        assert_eq!(of(&[("HF_HOME", home), ("HF_TOKEN_PATH", other.to_str().unwrap())]).token, Token::new("hf_other"));
        let given = of(&[("HF_HOME", home), ("HF_TOKEN", " hf_given ")]);
        assert_eq!(given.token, Token::new("hf_given"));
        assert!(!format!("{given:?}").contains("hf_given"));
        assert_eq!(of(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
    }

    #[test]
    fn the_endpoint_is_an_address_and_offline_is_a_switch() {
        let at = |endpoint: &str| of(&[("HOME", "/h"), ("HF_ENDPOINT", endpoint)]).endpoint;
        assert_eq!((at("").as_str(), at("http://a:1/").as_str()), ("https://huggingface.co", "http://a:1"));
        let wrong = Settings::from(&|name| (name != "HF_HOME").then(|| "example.com".into())).unwrap_err();
        assert!(wrong.to_string().contains("example.com"));
        assert!(of(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "true")]).offline);
        assert!(!of(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert!(of(&[("HOME", "/h"), ("TRANSFORMERS_OFFLINE", "1")]).offline);
    }
}
