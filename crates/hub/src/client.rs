//! Requests to the hub: who may see the token, what is tried again and how long it waits, and what a refusal means.

use crate::{Error, Event, Name, Result, Settings, Watch, settings::Token};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};
use ureq::{
    Agent, Body, Proxy,
    http::{HeaderMap, Response, StatusCode, Uri},
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

/// Tries that bring nothing before something is given up.
const TRIES: u32 = 6;
/// A longer wait than this is for people to decide.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Of redirects one after the other.
const REDIRECTS: usize = 8;

pub(crate) struct Client<'a> {
    agent: Agent,
    endpoint: Uri,
    token: Option<&'a Token>,
    patience: Duration,
    pub(crate) watch: Watch<'a>,
    /// Set when nothing more is wanted.
    pub(crate) stopped: AtomicBool,
    /// Whether there was an answer once: then a host that is not found is one that will be again.
    reached: AtomicBool,
}

/// What a request brought.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// Where it came from in the end.
    pub(crate) from: Uri,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Why a request brought nothing.
pub(crate) enum Trouble {
    /// The way to the hub: worth another try.
    Way(String),
    /// The way to the hub, and another try would come to the same.
    Closed(String),
    /// What the hub said.
    Said(Box<Answer>),
}

impl<'a> Client<'a> {
    pub(crate) fn new(settings: &'a Settings, watch: Watch<'a>) -> Result<Client<'a>> {
        let endpoint: Uri = settings
            .endpoint
            .parse()
            .map_err(|e| Error::asked("HF_ENDPOINT", format!("{} is no address: {e}", settings.endpoint)))?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(Proxy::try_from_env())
            .user_agent(concat!("halfbyte/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(settings.silence))
            .timeout_recv_response(Some(settings.silence))
            .timeout_per_read(Some(settings.silence))
            .max_idle_connections_per_host(settings.connections)
            .tls_config(TlsConfig::builder().root_certs(roots(settings)?).build())
            .build();
        Ok(Client {
            agent: config.new_agent(),
            endpoint,
            token: settings.token.as_ref(),
            patience: settings.patience,
            watch,
            stopped: AtomicBool::new(false),
            reached: AtomicBool::new(false),
        })
    }

    /// An address below the endpoint.
    pub(crate) fn url(&self, path: &str) -> Result<Uri> {
        let base = self.endpoint.to_string();
        format!("{}/{path}", base.trim_end_matches('/'))
            .parse()
            .map_err(|e| Error::asked(path, format!("makes no address: {e}")))
    }

    /// Whether the token may be seen there: by the endpoint and nobody else, so that a redirect cannot carry it away.
    fn is_home(&self, url: &Uri) -> bool {
        let origin = |it: &Uri| {
            let port = it.port_u16().unwrap_or(if it.scheme_str() == Some("https") { 443 } else { 80 });
            (it.scheme_str().map(str::to_owned), it.host().map(str::to_lowercase), port)
        };
        origin(url) == origin(&self.endpoint)
    }

    /// One request, followed to where it leads; `bytes` are the first and the last that are wanted.
    pub(crate) fn get(&self, url: &Uri, bytes: Option<(u64, u64)>) -> std::result::Result<Answer, Trouble> {
        let mut at = url.clone();
        for _ in 0..REDIRECTS {
            let mut request = self.agent.get(&at);
            if let (true, Some(token)) = (self.is_home(&at), self.token) {
                request = request.header("authorization", format!("Bearer {}", token.secret()));
            }
            if let Some((first, last)) = bytes {
                request = request.header("range", format!("bytes={first}-{last}"));
            }
            let response = request.call().map_err(|e| self.on_the_way(&e, &at))?;
            self.reached.store(true, Ordering::Relaxed);
            if !response.status().is_redirection() {
                let answer = answer(response, at);
                return if answer.status.is_success() { Ok(answer) } else { Err(Trouble::Said(Box::new(answer))) };
            }
            let to = response.headers().get("location").and_then(|it| it.to_str().ok());
            let Some(next) = to.and_then(|it| join(&at, it)) else {
                return Err(Trouble::Way(format!("{}: redirects to no address", shown(&at))));
            };
            at = next;
        }
        Err(Trouble::Way(format!("{}: redirects without end", shown(url))))
    }

    /// What went wrong before there was an answer, and what helps where trying again does not.
    fn on_the_way(&self, error: &ureq::Error, at: &Uri) -> Trouble {
        let (place, said) = (shown(at), error.to_string());
        match error {
            ureq::Error::HostNotFound if !self.reached.load(Ordering::Relaxed) => Trouble::Closed(format!(
                "{place}: no host of that name is found. Without a network, HF_HUB_OFFLINE=1 keeps to the cache; behind a proxy, set HTTPS_PROXY"
            )),
            _ if said.contains("certificate") => Trouble::Closed(format!(
                "{place}: {said}. Where a proxy opens what is encrypted, SSL_CERT_FILE must name the file with its certificate"
            )),
            _ => Trouble::Way(format!("{place}: {said}")),
        }
    }

    /// Calls `attempt` until it succeeds, fails for good or has brought nothing so many times; it says whether it brought something
    /// before it failed.
    pub(crate) fn patiently<T>(
        &self,
        what: &str,
        name: &Name,
        mut attempt: impl FnMut() -> std::result::Result<T, (Trouble, bool)>,
    ) -> Result<T> {
        let mut tries = 0;
        loop {
            let (trouble, brought) = match attempt() {
                Ok(it) => return Ok(it),
                Err(_) if self.stopped.load(Ordering::Relaxed) => return Err(Error::transfer(what, "was given up")),
                Err(it) => it,
            };
            tries = if brought { 1 } else { tries + 1 };
            let (why, asked) = match trouble {
                Trouble::Way(why) => (why, None),
                Trouble::Closed(why) => return Err(Error::transfer(what, why)),
                Trouble::Said(answer) => match passing(&answer) {
                    Some(asked) => (format!("{}: {}", shown(&answer.from), answer.status), asked),
                    None => return Err(self.refusal(*answer, what, name)),
                },
            };
            let wait = asked.unwrap_or(self.patience * 2u32.pow(tries - 1));
            if tries >= TRIES {
                return Err(Error::transfer(
                    what,
                    format!("{why}; tried {tries} times. The same command goes on from what has come"),
                ));
            }
            if wait > LONGEST_WAIT {
                let minutes = wait.as_secs().div_ceil(60);
                return Err(Error::transfer(
                    what,
                    format!(
                        "{why}; the hub asks to wait {minutes} minutes. The same command goes on then; with HF_TOKEN set the hub allows more"
                    ),
                ));
            }
            (self.watch)(Event::Waits { why: &why, seconds: wait.as_secs_f64() });
            thread::sleep(wait);
        }
    }

    /// What a refusal means, and what helps.
    fn refusal(&self, mut answer: Answer, what: &str, name: &Name) -> Error {
        let code = answer.header("x-error-code").unwrap_or_default().to_owned();
        let said = answer.header("x-error-message").map(str::to_owned);
        let said = said.unwrap_or_else(|| message_of(&mut answer.body));
        let page =
            format!("{}/{}{}", self.endpoint.to_string().trim_end_matches('/'), crate::api::prefix(name.kind), name.id);
        let (noun, with_token) = (name.kind.noun(), self.token.is_some());
        let home = self.is_home(&answer.from);
        let message = match (answer.status.as_u16(), code.as_str()) {
            _ if !home => {
                format!("{}: {} {said}", shown(&answer.from), answer.status)
            }
            (_, "GatedRepo") if !with_token => {
                format!(
                    "is gated: accept its conditions at {page}, then set HF_TOKEN to a token of that account (or store it with `hf auth login`)"
                )
            }
            (_, "GatedRepo") => format!(
                "is gated, and the account of the token that was sent has no access yet: ask for it at {page} (the hub says: {said})"
            ),
            (401, _) if with_token && (said.contains("Invalid") || said.contains("invalid")) => {
                "the hub does not know the token that was sent: renew HF_TOKEN, or the stored one (`hf auth login`)"
                    .into()
            }
            (_, "RevisionNotFound") => format!("the hub has this {noun}, but no revision {}", name.revision()),
            (401 | 404, _) if with_token => {
                format!(
                    "the hub ({}) knows no {noun} of this name that the token that was sent may see, and there is no such path here",
                    shown(&self.endpoint)
                )
            }
            (401 | 404, _) => {
                format!(
                    "the hub ({}) knows no public {noun} of this name, and there is no such path here. If it is private, set HF_TOKEN",
                    shown(&self.endpoint)
                )
            }
            (403, _) => format!("the hub forbids it: {said}"),
            (status, _) => format!("the hub answered {status}: {said}"),
        };
        Error::asked(what, message)
    }
}

fn answer(response: Response<Body>, from: Uri) -> Answer {
    let (parts, body) = response.into_parts();
    Answer { status: parts.status, headers: parts.headers, body, from }
}

/// Whether a refusal will pass, and after which wait if it says so.
fn passing(answer: &Answer) -> Option<Option<Duration>> {
    let status = answer.status.as_u16();
    let asked = || answer.header("retry-after")?.trim().parse().ok().map(Duration::from_secs);
    (matches!(status, 408 | 429) || status >= 500).then(asked)
}

/// The sentence in a refusal's body, if it has one.
fn message_of(body: &mut Body) -> String {
    let text = body.with_config().limit(1 << 16).read_to_string().unwrap_or_default();
    let error = serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|it| Some(it.get("error")?.as_str()?.to_owned()));
    error.unwrap_or_else(|| text.lines().next().unwrap_or_default().chars().take(200).collect())
}

/// An address without its query, which may hold a signature.
pub(crate) fn shown(url: &Uri) -> String {
    let scheme = url.scheme_str().unwrap_or("http");
    let host = url.authority().map_or("", |it| it.as_str());
    // What stands before an @ is a secret, too.
    let host = host.rsplit('@').next().unwrap_or(host);
    format!("{scheme}://{host}{}", if url.path() == "/" { "" } else { url.path() })
}

/// Where a redirect leads.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let to = match location {
        it if it.starts_with("http://") || it.starts_with("https://") => it.to_owned(),
        it if it.starts_with("//") => format!("{}:{it}", base.scheme_str()?),
        it if it.starts_with('/') => format!("{}://{}{it}", base.scheme_str()?, base.authority()?),
        it => {
            let folder = base.path().rsplit_once('/').map_or("", |it| it.0);
            format!("{}://{}{folder}/{it}", base.scheme_str()?, base.authority()?)
        }
    };
    to.parse().ok()
}

fn roots(settings: &Settings) -> Result<RootCerts> {
    let Some(path) = &settings.certificates else { return Ok(RootCerts::WebPki) };
    let pem = std::fs::read(path).map_err(Error::io(path))?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&pem)
        .filter_map(|it| match it {
            Ok(PemItem::Certificate(it)) => Some(it),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(Error::asked(
            path.display().to_string(),
            "is named by SSL_CERT_FILE or a like variable and holds no certificate in PEM",
        ));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let base: Uri = "https://hub.example/a/b?x=1".parse().unwrap();
        let to = |location: &str| join(&base, location).unwrap().to_string();
        assert_eq!(to("https://cdn.example/c?s=1"), "https://cdn.example/c?s=1");
        assert_eq!(to("/c/d"), "https://hub.example/c/d");
        assert_eq!(to("//cdn.example/c"), "https://cdn.example/c");
        assert_eq!(to("c"), "https://hub.example/a/c");
    }

    #[test]
    fn signatures_and_passwords_are_not_shown() {
        let url: Uri = "https://user:secret@cdn.example:8443/c?signature=secret".parse().unwrap();
        assert_eq!(shown(&url), "https://cdn.example:8443/c");
    }
}
