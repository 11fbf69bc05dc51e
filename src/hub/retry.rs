//! How requests fail, and when they are made again.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::HubOptions;

/// The longest pause that a server is granted, and that is made unasked.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// Why there is no answer, or none of use.
#[derive(Debug)]
pub(super) enum Failure {
    /// No whole answer.
    Unreachable {
        host: String,
        why: String,
        /// Another attempt would end the same way.
        lasting: bool,
    },
    /// An answer with a status that is no success.
    Status {
        host: String,
        status: u16,
        /// How long the server wants to be left alone.
        wait: Option<Duration>,
    },
    /// A web page where data was asked for.
    WebPage { host: String },
    /// Other bytes than the hub states.
    Damaged(String),
    /// Everything that no other attempt changes: what the user got wrong, what this system cannot do, a wish to stop.
    Lasting(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Lasting(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { host, why, .. } => write!(f, "{host}: {why}"),
            Self::Status { host, status: 429, wait: Some(wait) } => {
                write!(f, "{host} answers 429, too many requests, and asks for {}", seconds(*wait))
            }
            Self::Status { host, status: 429, .. } => write!(f, "{host} answers 429, too many requests"),
            Self::Status { host, status, .. } => write!(f, "{host} answers {status}"),
            Self::WebPage { host } => write!(f, "{host} answers with a web page"),
            Self::Damaged(what) => f.write_str(what),
            Self::Lasting(error) => write!(f, "{error:#}"),
        }
    }
}

impl Failure {
    /// Whether the reason may be gone a little later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { lasting, .. } => !lasting,
            // 511: a network wants a login first.
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=510 | 512..=599),
            Self::Damaged(_) => true,
            Self::WebPage { .. } | Self::Lasting(_) => false,
        }
    }

    /// Whether the hub itself was not reached, so that a copy in the cache is as good as it gets.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::WebPage { .. } => true,
            Self::Status { status, .. } => matches!(status, 429 | 500..=599),
            Self::Damaged(_) | Self::Lasting(_) => false,
        }
    }
}

/// Counts the attempts at one thing.
pub(super) struct Attempts<'a> {
    options: &'a HubOptions,
    failed: u32,
    pause: Duration,
}

impl<'a> Attempts<'a> {
    pub fn new(options: &'a HubOptions) -> Self {
        Self { options, failed: 0, pause: options.backoff }
    }

    /// Starts counting anew: the last attempt got further than all before.
    pub fn reset(&mut self) {
        *self = Self::new(self.options);
    }

    /// Says what failed and waits for the next attempt, with pauses that double or that the server asks for. Gives the
    /// failure back if there is none.
    pub fn after(&mut self, failure: Failure) -> Result<(), Failure> {
        self.failed = self.failed.saturating_add(1);
        if !failure.is_passing() || self.failed >= self.options.attempts {
            return Err(failure);
        }
        let asked = if let Failure::Status { wait, .. } = failure { wait } else { None };
        let pause = self.pause.max(asked.unwrap_or_default()).min(LONGEST_PAUSE);
        self.options.log(&format!("{failure}; trying again in {}", seconds(pause)));
        self.pause = self.pause.saturating_mul(2);
        Ok(self.options.pause(pause)?)
    }
}

/// Repeats what fails for a passing reason.
pub(super) fn retry<R>(options: &HubOptions, mut request: impl FnMut() -> Result<R, Failure>) -> Result<R, Failure> {
    let mut attempts = Attempts::new(options);
    loop {
        match request() {
            Ok(answer) => return Ok(answer),
            Err(failure) => attempts.after(failure)?,
        }
    }
}

/// How long a Retry-After header asks to wait: seconds, or a date.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Seconds as people read them.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let after = |value: &str| retry_after(value, now).map(|wait| wait.as_secs());
        assert_eq!(after("120"), Some(120));
        assert_eq!(after(" 0 "), Some(0));
        assert_eq!(after("99999999999999999999999"), Some(u64::MAX));
        // The example of RFC 9110 is that very second.
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
        assert_eq!(after("Sun, 06 Nov 1994 08:50:07 GMT"), Some(30));
        assert_eq!(after("Sat, 05 Nov 1994 08:49:37 GMT"), Some(0), "the past");
        for other in ["", "-1", "soon", "1.5"] {
            assert_eq!(after(other), None, "{other}");
        }
    }

    #[test]
    fn what_passes_is_tried_as_often_as_asked() {
        let options = HubOptions { attempts: 3, backoff: Duration::ZERO, ..HubOptions::default() };
        let status = |status| Failure::Status { host: "h".into(), status, wait: None };
        for (code, expected) in
            [(500, 3), (503, 3), (408, 3), (429, 3), (401, 1), (403, 1), (404, 1), (400, 1), (511, 1)]
        {
            let mut made = 0;
            let result: Result<(), _> = retry(&options, || {
                made += 1;
                Err(status(code))
            });
            assert!(result.is_err() && made == expected, "{code}: {made}");
        }
        let mut made = 0;
        let once = HubOptions { attempts: 0, ..options };
        assert!(
            retry::<()>(&once, || {
                made += 1;
                Err(status(500))
            })
            .is_err()
        );
        assert_eq!(made, 1, "at least once");
    }

    #[test]
    fn a_pause_is_what_the_server_asks_for_up_to_a_bound() {
        let lines = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let sink = lines.clone();
        let log: super::super::Log = std::sync::Arc::new(move |line: &str| sink.lock().unwrap().push(line.to_owned()));
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        let options = HubOptions { log: Some(log), stop: Some(stop), ..HubOptions::default() };
        for (asked, said) in [(Some(7), "trying again in 7.0 s"), (Some(9999), "in 120.0 s"), (None, "in 0.5 s")] {
            let wait = asked.map(Duration::from_secs);
            let failure = Failure::Status { host: "h".into(), status: 429, wait };
            // The user wants to stop, so nobody waits.
            let ended = Attempts::new(&options).after(failure).unwrap_err();
            assert!(matches!(&ended, Failure::Lasting(error) if error.is::<crate::progress::Interrupted>()), "{ended}");
            let line = lines.lock().unwrap().pop().unwrap();
            assert!(line.contains(said) && line.contains("429"), "{line}");
        }
    }
}
