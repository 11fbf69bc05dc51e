//! What a server sends, as it arrives: waited for in slices, within bounds.

use std::io::{ErrorKind, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use serde::de::DeserializeOwned;
use ureq::http::header::{CONTENT_LENGTH, HeaderName};
use ureq::http::response::Parts;
use ureq::http::{HeaderMap, Response};
use ureq::{Body, Timeout};
use url::Url;

use super::HubOptions;
use super::http::ENDPOINT;
use super::options::{SLICE, Timeouts};
use super::retry::{Failure, seconds};
use crate::error::UserError;

/// Bytes read at once.
const CHUNK: usize = 128 << 10;
/// What has to arrive within the idle time-out, unless the body ends.
const LEAST: u64 = 1 << 10;

/// What a request's thread reports.
pub(super) enum Event {
    Head(Box<Parts>),
    Bytes(Vec<u8>),
    End,
    Failed(ureq::Error),
}

/// Runs in the request's thread. Nobody may be waiting any more.
pub(super) fn report(response: Result<Response<Body>, ureq::Error>, send: &SyncSender<Event>) {
    let (parts, body) = match response {
        Ok(response) => response.into_parts(),
        Err(error) => return drop(send.send(Event::Failed(error))),
    };
    if send.send(Event::Head(Box::new(parts))).is_err() {
        return;
    }
    let mut body = body.into_reader();
    loop {
        let mut chunk = vec![0; CHUNK];
        let event = match body.read(&mut chunk) {
            Ok(0) => Event::End,
            Ok(length) => {
                chunk.truncate(length);
                Event::Bytes(chunk)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Event::Failed(error.into()),
        };
        let last = !matches!(event, Event::Bytes(_));
        if send.send(event).is_err() || last {
            return;
        }
    }
}

/// The head of an answer, and its body as it arrives.
pub(super) struct Answer<'a> {
    pub status: u16,
    pub headers: HeaderMap,
    /// Where it came from in the end.
    pub url: Url,
    wait: Wait<'a>,
}

impl Answer<'_> {
    /// A header, if there is one in plain text.
    pub fn text(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// How many bytes the body will have, if the server says so.
    pub fn length(&self) -> Option<u64> {
        self.text(CONTENT_LENGTH)?.parse().ok()
    }

    /// Who answers.
    pub fn host(&self) -> &str {
        &self.wait.host
    }

    /// A failure of this server's that another attempt may not have.
    pub fn broken(&self, why: &str) -> Failure {
        self.wait.unreachable(why)
    }

    /// The next part of the body; `None` after the last.
    pub fn bytes(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match self.wait.next()? {
            Event::Bytes(bytes) => Ok(Some(bytes)),
            Event::End => Ok(None),
            Event::Head(_) | Event::Failed(_) => Err(self.broken("the answer has two heads")),
        }
    }

    /// The body, which must be JSON of at most `limit` bytes.
    pub fn json<T: DeserializeOwned>(mut self, limit: usize) -> Result<(T, usize), Failure> {
        let mut body = Vec::new();
        while let Some(bytes) = self.bytes()? {
            body.extend(bytes);
            if body.len() > limit {
                let host = self.host();
                let error = UserError::new(format!("{host} answers with more than {} MB of JSON", limit >> 20));
                return Err(Failure::Lasting(error.hint(ENDPOINT).into()));
            }
        }
        if body.trim_ascii_start().starts_with(b"<") {
            return Err(Failure::WebPage { host: self.wait.host });
        }
        match serde_json::from_slice(&body) {
            Ok(value) => Ok((value, body.len())),
            Err(error) => {
                let user = UserError::new(format!("{} answers with what is not the hub's JSON", self.host()));
                Err(Failure::Lasting(anyhow!("{error}").context(user.hint(ENDPOINT))))
            }
        }
    }
}

/// Waits for one server.
pub(super) struct Wait<'a> {
    events: Receiver<Event>,
    options: &'a HubOptions,
    host: String,
    in_body: bool,
    /// Bytes of the body that arrived, and how long they were waited for, since these were [`LEAST`].
    arrived: u64,
    waited: Duration,
}

impl<'a> Wait<'a> {
    pub fn new(events: Receiver<Event>, options: &'a HubOptions, host: String) -> Self {
        Self { events, options, host, in_body: false, arrived: 0, waited: Duration::ZERO }
    }

    /// Waits for the head of the answer.
    pub fn head(mut self, url: &Url) -> Result<Answer<'a>, Failure> {
        match self.next()? {
            Event::Head(parts) => {
                let (status, headers) = (parts.status.as_u16(), parts.headers);
                Ok(Answer { status, headers, url: url.clone(), wait: self })
            }
            _ => Err(self.unreachable("the answer has no head")),
        }
    }

    /// The next thing that arrives. Says so if that takes long; fails if it takes too long, or if the user wants to stop.
    fn next(&mut self) -> Result<Event, Failure> {
        let Timeouts { idle, notice, .. } = self.options.timeouts;
        let start = Instant::now();
        let mut silent = true;
        loop {
            self.options.check_stop()?;
            let received = self.events.recv_timeout(SLICE);
            if let Ok(Event::Bytes(bytes)) = &received {
                self.arrived += bytes.len() as u64;
            }
            // A server that sends a byte now and then is as good as one that sends none.
            if self.arrived >= LEAST {
                (self.arrived, self.waited) = (0, Duration::ZERO);
            } else if self.in_body && self.waited + start.elapsed() >= idle && !matches!(received, Ok(Event::End)) {
                return Err(self.unreachable(&format!("nothing more arrived within {}", seconds(idle))));
            }
            match received {
                Ok(Event::Failed(error)) => return Err(self.failed(error)),
                Ok(event) => {
                    self.waited += start.elapsed();
                    self.in_body = true;
                    return Ok(event);
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.unreachable("the connection was lost")),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if silent && start.elapsed() >= notice {
                silent = false;
                self.options.log(&format!("waiting for {} ...", self.host));
            }
        }
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure::Unreachable { host: self.host.clone(), why: why.to_owned(), lasting: false }
    }

    /// What an error of the connection means.
    fn failed(&self, error: ureq::Error) -> Failure {
        let timeouts = self.options.timeouts;
        let why = match &error {
            ureq::Error::Timeout(Timeout::Resolve) => {
                format!("its address was not found within {}", seconds(timeouts.connect))
            }
            ureq::Error::Timeout(Timeout::Connect) => format!("no connection within {}", seconds(timeouts.connect)),
            ureq::Error::Timeout(_) => format!("no answer within {}", seconds(timeouts.response)),
            ureq::Error::HostNotFound => "there is no such host".to_owned(),
            ureq::Error::Io(cause) if cause.kind() == ErrorKind::UnexpectedEof => "the connection broke off".to_owned(),
            ureq::Error::Io(cause) => one_line(&cause.to_string()),
            other => one_line(&other.to_string()),
        };
        // A certificate that is not trusted stays so.
        let tls = matches!(&error, ureq::Error::Tls(_) | ureq::Error::Rustls(_))
            || matches!(&error, ureq::Error::Io(cause) if !self.in_body && cause.kind() == ErrorKind::InvalidData);
        let why = if tls { format!("no trusted connection: {why}") } else { why };
        Failure::Unreachable { host: self.host.clone(), why, lasting: tls }
    }
}

/// Text that may be somebody else's, short and in one line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}
