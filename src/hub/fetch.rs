//! Fetching one file: what is missing of it, as often as it takes, until its bytes are those that the hub states.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ureq::http::header::CONTENT_RANGE;

use super::answer::Answer;
use super::cache::{Cache, Partial};
use super::http::Ask;
use super::retry::{Attempts, Failure};
use super::tree::{Entry, Remote};

/// Pause between two lines about one large file.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// An attempt that got this much further than all before is not counted as one that failed.
const PROGRESS: u64 = 256 << 10;

/// Fetches files of one commit.
pub(super) struct Fetch<'a> {
    pub remote: Remote<'a>,
    pub cache: Cache<'a>,
    pub commit: &'a str,
}

impl Fetch<'_> {
    /// Fetches one file unless the cache has it.
    pub fn file(&self, entry: &Entry) -> Result<PathBuf, Failure> {
        if !self.cache.has(entry)? {
            let _lock = self.cache.lock(entry)?;
            // Another program may have fetched it while this one waited.
            if !self.cache.has_blob(entry)? {
                if self.cache.knows(entry) {
                    let hub = &self.remote.http.endpoint;
                    let line = format!("{} in the cache is not the file that {hub} states", entry.path);
                    self.remote.options.log(&line);
                }
                self.fetch(entry)?;
            }
        }
        Ok(self.cache.path(entry))
    }

    fn fetch(&self, entry: &Entry) -> Result<(), Failure> {
        let options = self.remote.options;
        let mut partial = self.cache.partial(entry)?;
        let kept = match partial.length() {
            0 => String::new(),
            length => format!(", {} of them are there", size(length)),
        };
        options.log(&format!("fetching {}/{} ({}{kept})", self.remote.repository, entry.path, size(entry.size)));
        let mut attempts = Attempts::new(options);
        let mut furthest = partial.length();
        while let Err(failure) = self.attempt(entry, &mut partial) {
            if partial.length() >= furthest.saturating_add(PROGRESS) {
                attempts.reset();
            }
            furthest = furthest.max(partial.length());
            attempts.after(failure)?;
        }
        Ok(self.cache.publish(partial)?)
    }

    /// Asks for what is missing.
    fn attempt(&self, entry: &Entry, partial: &mut Partial) -> Result<(), Failure> {
        if partial.length() < entry.size || entry.size == 0 {
            self.receive(entry, partial)?;
        }
        if !partial.is_right() {
            partial.restart()?;
            let (path, hub) = (&entry.path, &self.remote.http.endpoint);
            return Err(Failure::Damaged(format!(
                "{path} has other bytes than {hub} states: they do not have the hash {}",
                entry.hash.hex()
            )));
        }
        Ok(())
    }

    fn receive(&self, entry: &Entry, partial: &mut Partial) -> Result<(), Failure> {
        let path = &entry.path;
        let url = self.remote.http.endpoint.file(self.remote.repository, self.commit, path);
        let page = path.ends_with(".html") || path.ends_with(".htm");
        let from = partial.length();
        let mut answer = self.remote.http.request(&Ask { from, page, ..Ask::get(url) })?;
        let goes_on = answer.status == 206 && is_rest(&answer, from, entry.size);
        if !goes_on && answer.status != 200 {
            // 416, or another part than the one asked for. No If-Range is needed, since the hash tells at the end: a server
            // that does not have this part has another file, or did not understand.
            partial.restart()?;
            return Err(answer.broken(&format!("it does not have the rest of {path}")));
        }
        let expected = if goes_on { entry.size - from } else { entry.size };
        if let Some(length) = answer.length().filter(|&length| length != expected) {
            let host = answer.host();
            return Err(Failure::Damaged(format!(
                "{host} has {length} bytes of {path} where there must be {expected}"
            )));
        }
        if !goes_on && from > 0 {
            self.remote.options.log(&format!("{} cannot go on with {path}: starting anew", answer.host()));
            partial.restart()?;
        }
        let mut spoken = Instant::now();
        while let Some(bytes) = answer.bytes()? {
            if bytes.len() as u64 > entry.size - partial.length() {
                partial.restart()?;
                return Err(Failure::Damaged(format!("{} sends more bytes of {path} than it states", answer.host())));
            }
            partial.write(&bytes)?;
            if spoken.elapsed() >= REPORT_EVERY {
                spoken = Instant::now();
                let percent = 100.0 * partial.length() as f64 / entry.size as f64;
                self.remote.options.log(&format!("fetching {path}: {percent:.0} % of {}", size(entry.size)));
            }
        }
        if partial.length() < entry.size {
            let (length, whole) = (partial.length(), entry.size);
            return Err(answer.broken(&format!("the connection broke off after {length} of {whole} bytes of {path}")));
        }
        Ok(())
    }
}

/// Whether a part is what was asked for: all bytes from `from` on of a file of `size` bytes.
fn is_rest(answer: &Answer, from: u64, size: u64) -> bool {
    let range = answer.text(CONTENT_RANGE).and_then(|range| range.trim().strip_prefix("bytes "));
    let Some((span, total)) = range.and_then(|range| range.split_once('/')) else { return false };
    let Some((first, last)) = span.split_once('-') else { return false };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let same = total.trim() == "*" || number(total) == Some(size);
    same && number(first) == Some(from) && number(last).is_some_and(|last| last.checked_add(1) == Some(size))
}

fn size(bytes: u64) -> String {
    let (scale, unit) = if bytes < 100_000 { (1e3, "kB") } else { (1e6, "MB") };
    format!("{:.1} {unit}", bytes as f64 / scale)
}
