//! Requests to the hub and to where it redirects.
//!
//! A request runs in a thread of its own, which hands over what arrives; the caller waits for that in slices, so that it
//! can end at once, whatever the other side does. A thread that nobody waits for any more ends by its own time-outs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use ureq::http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{Request, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Proxy};
use url::Url;

use super::HubOptions;
use super::answer::{Answer, Wait, report};
use super::endpoint::Endpoint;
use super::proxy::proxy;
use super::retry::{Failure, retry_after};
use crate::error::UserError;

const MAX_REDIRECTS: usize = 10;
/// How many pieces of a body may wait to be written.
const QUEUE: usize = 4;
pub(super) const ENDPOINT: &str =
    "something between you and the hub may be answering instead; check the connection and HF_ENDPOINT";

/// What is asked for.
pub(super) struct Ask {
    pub url: Url,
    /// Sent with POST; without one the request is a GET.
    pub json: Option<String>,
    /// From which byte on.
    pub from: u64,
    /// An HTML page is an answer, not a sign that somebody else answers.
    pub page: bool,
}

impl Ask {
    pub fn get(url: Url) -> Self {
        Self { url, json: None, from: 0, page: false }
    }
}

/// Makes requests, with the token for the endpoint and for nobody else.
pub(super) struct Http<'a> {
    pub endpoint: Endpoint,
    options: &'a HubOptions,
    /// One per proxy.
    agents: RefCell<HashMap<Option<String>, Agent>>,
}

impl<'a> Http<'a> {
    pub fn new(options: &'a HubOptions) -> Result<Self> {
        Ok(Self { endpoint: Endpoint::new(options)?, options, agents: RefCell::default() })
    }

    /// Makes a request and follows where it redirects. The answer has a status of success, or 416 if `from` was given.
    pub fn request(&self, ask: &Ask) -> Result<Answer<'a>, Failure> {
        let mut url = ask.url.clone();
        let mut at_home = true;
        for _ in 0..=MAX_REDIRECTS {
            // Who was elsewhere once was sent by others from then on.
            at_home &= self.endpoint.is_origin_of(&url);
            let answer = self.exchange(ask, &url, at_home)?;
            match (answer.status, answer.headers.get(LOCATION)) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => {
                    url = target(&url, location.as_bytes(), answer.status, ask)?;
                }
                _ => return judge(answer, ask),
            }
        }
        let host = host(&ask.url);
        let error = UserError::new(format!("{host} redirects again and again")).hint(ENDPOINT);
        Err(Failure::Lasting(error.into()))
    }

    fn exchange(&self, ask: &Ask, url: &Url, at_home: bool) -> Result<Answer<'a>, Failure> {
        let host = host(url);
        let uri: Uri = url.as_str().parse().with_context(|| format!("an address on {host} cannot be asked for"))?;
        let mut request = Request::builder().uri(uri);
        if ask.from > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.from));
        }
        if at_home && let Some(authorization) = self.endpoint.authorization() {
            request = request.header(AUTHORIZATION, authorization);
        }
        let agent = self.agent(url)?;
        let (send, receive) = sync_channel(QUEUE);
        let start = match &ask.json {
            None => {
                let request = request.body(()).context("a request")?;
                thread::Builder::new().spawn(move || report(agent.run(request), &send))
            }
            Some(json) => {
                let request = request.method("POST").header(CONTENT_TYPE, "application/json");
                let request = request.body(json.clone()).context("a request")?;
                thread::Builder::new().spawn(move || report(agent.run(request), &send))
            }
        };
        start.context("cannot start a thread")?;
        Wait::new(receive, self.options, host).head(url)
    }

    fn agent(&self, url: &Url) -> Result<Agent> {
        let found = proxy(url, |name| std::env::var(name).ok());
        let (name, address) = found.map_or((None, None), |(name, address)| (Some(name), Some(address)));
        if let Some(agent) = self.agents.borrow().get(&address) {
            return Ok(agent.clone());
        }
        let proxy = address.as_deref().map(Proxy::new).transpose().map_err(|_| {
            // It may hold a password.
            UserError::new(format!("{} is not the address of a proxy", name.unwrap_or_default()))
                .hint("it must be like http://proxy.example:3128")
        })?;
        let timeouts = self.options.timeouts;
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent: Agent = Agent::config_builder()
            .tls_config(tls)
            .proxy(proxy)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("softlm/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(timeouts.connect))
            .timeout_connect(Some(timeouts.connect))
            .timeout_send_request(Some(timeouts.response))
            .timeout_recv_response(Some(timeouts.response))
            // The one who waits looks at the clock; this one ends threads that nobody waits for any more.
            .timeout_per_read(Some(timeouts.response.max(timeouts.idle).saturating_add(Duration::from_secs(1))))
            .timeout_per_write(Some(timeouts.response))
            .build()
            .into();
        self.agents.borrow_mut().insert(address, agent.clone());
        Ok(agent)
    }
}

/// The server's name, and its port if that is not the usual one.
pub(super) fn host(url: &Url) -> String {
    let name = url.host_str().unwrap_or_default();
    url.port().map_or(name.to_owned(), |port| format!("{name}:{port}"))
}

/// Where a redirect leads: another address of http or https, never from https to http, and never with a body that was meant
/// for somebody else.
fn target(from: &Url, location: &[u8], status: u16, ask: &Ask) -> Result<Url, Failure> {
    let refuse = |what: String| Failure::Lasting(UserError::new(what).hint(ENDPOINT).into());
    let here = host(from);
    let Ok(mut url) = from.join(&String::from_utf8_lossy(location)) else {
        return Err(refuse(format!("{here} redirects to what is no address")));
    };
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(refuse(format!("{here} redirects to what is no web address; it was not followed")));
    }
    let there = host(&url);
    if from.scheme() == "https" && url.scheme() == "http" {
        let what = format!("{here} redirects from https to http ({there}), where anybody could change what is fetched");
        return Err(refuse(format!("{what}; it was not followed")));
    }
    if ask.json.is_some() && (!matches!(status, 307 | 308) || url.origin() != from.origin()) {
        return Err(refuse(format!("{here} redirects a question to {there} that only it can answer ({status})")));
    }
    // These cannot fail for a URL with a host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    Ok(url)
}

/// Tells answers from refusals, and from pages of somebody else.
fn judge<'a>(answer: Answer<'a>, ask: &Ask) -> Result<Answer<'a>, Failure> {
    let host = answer.host().to_owned();
    let status = answer.status;
    match status {
        200 | 206 => {}
        416 if ask.from > 0 => return Ok(answer),
        511 => return Err(Failure::WebPage { host }),
        _ => {
            let wait = answer.text(RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now()));
            return Err(Failure::Status { host, status, wait });
        }
    }
    let kind = answer.text(CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
    if kind.starts_with("text/html") && !ask.page {
        return Err(Failure::WebPage { host });
    }
    if answer.text(CONTENT_ENCODING).is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        let error = UserError::new(format!("{host} sends its files compressed, though asked not to")).hint(ENDPOINT);
        return Err(Failure::Lasting(error.into()));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_to_the_web_and_not_down() {
        let post = |url| Ask { json: Some("{}".into()), ..Ask::get(url) };
        let from = |from: &str, location: &str| {
            let url = Url::parse(from).unwrap();
            target(&url, location.as_bytes(), 302, &Ask::get(url.clone())).map(String::from)
        };
        for (base, location, expected) in [
            ("https://hub/a/b", "/c", "https://hub/c"),
            ("https://hub/a/b", "//cdn/c", "https://cdn/c"),
            ("https://hub/a/b", "/\\cdn/c", "https://cdn/c"),
            ("https://hub/a/b", "\\\\cdn\\c", "https://cdn/c"),
            ("https://hub/a/b", "https:cdn/c", "https://hub/a/cdn/c"),
            ("https://hub/a/b", "https://me:secret@cdn:8443/c#d", "https://cdn:8443/c"),
            ("http://hub/a", "https://hub/a", "https://hub/a"),
            ("http://hub/a", " \thttp://cdn/\n", "http://cdn/"),
        ] {
            assert_eq!(from(base, location).unwrap(), expected, "{location:?}");
        }
        for location in
            ["file:///etc/passwd", "ftp://x/y", "http://hub/a", "data:text/plain,x", "javascript:0", "https://"]
        {
            let refused = from("https://hub/a", location).unwrap_err();
            assert!(!refused.is_passing() && !refused.is_unreachable(), "{location}: {refused}");
        }
        let url = Url::parse("https://hub/a").unwrap();
        assert!(target(&url, b"/b", 307, &post(url.clone())).is_ok());
        assert!(target(&url, b"/b", 302, &post(url.clone())).is_err());
        assert!(target(&url, b"https://cdn/b", 307, &post(url.clone())).is_err());
    }
}
