//! A small hub: repository information, file trees and files over HTTP/1.1, with ranges, and faults on request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use softlm::hub::HubOptions;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub does instead of answering.
#[derive(Clone)]
pub enum Fault {
    /// Closes the connection without a word.
    Drop,
    /// Promises the whole body and sends half of it.
    Truncate,
    /// Promises the whole body and sends that many bytes.
    Cut(usize),
    /// Answers with this status and a short error page.
    Status(u16),
    /// Answers with this status, these headers and this body.
    Reply(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Says nothing, for as long as the other side waits.
    Stall,
    /// Sends that many bytes of the body and then nothing, for as long as the other side waits.
    StallAfter(usize),
    /// Sends a byte of the body now and then.
    Drip,
    /// Sends the right number of bytes, the last of which is wrong.
    Flip,
    /// Sends the whole file, whatever part was asked for.
    Whole,
    /// Answers once that many requests for the listing of files have come in.
    Hold(usize),
}

impl Fault {
    pub fn page(status: u16, headers: &[(&'static str, &str)], body: &str) -> Self {
        let headers = headers.iter().map(|&(name, value)| (name, value.to_owned())).collect();
        Self::Reply(status, headers, body.as_bytes().to_vec())
    }

    pub fn redirect(location: &str) -> Self {
        Self::page(302, &[("Location", location)], "elsewhere")
    }

    pub fn json(value: Value) -> Self {
        Self::Reply(200, vec![("Content-Type", "application/json".into())], value.to_string().into_bytes())
    }
}

/// A request.
pub struct Seen {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

#[derive(Default)]
pub struct State {
    /// Repository (`owner/name` or `datasets/owner/name`) to path to content.
    pub files: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// The next time `method` and a path that ends like this are asked for, misbehave; every time if it is to stay.
    pub faults: Vec<(&'static str, String, Fault, bool)>,
    pub seen: Vec<Seen>,
    /// Bytes of bodies by path.
    pub sent: BTreeMap<String, usize>,
    /// If set, all requests must carry it.
    pub token: Option<String>,
}

/// A small hub.
pub struct Hub {
    pub state: Arc<Mutex<State>>,
    pub endpoint: String,
    cache: tempfile::TempDir,
}

impl Hub {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                // A client that has gone away is its own business.
                thread::spawn(move || serve(stream, &state).ok());
            }
        });
        Self { state, endpoint, cache: tempfile::tempdir().unwrap() }
    }

    /// A hub with the built-in model as `ours/demo`.
    pub fn with_demo() -> Self {
        let hub = Self::start();
        hub.put_demo("ours/demo");
        hub
    }

    pub fn options(&self) -> HubOptions {
        HubOptions {
            endpoint: Some(self.endpoint.clone()),
            cache: Some(self.cache().to_owned()),
            attempts: 3,
            backoff: Duration::from_millis(5),
            ..HubOptions::default()
        }
    }

    pub fn cache(&self) -> &Path {
        self.cache.path()
    }

    /// The repository of the built-in model in the cache.
    pub fn demo_cache(&self) -> PathBuf {
        self.cache().join("models--ours--demo")
    }

    pub fn put(&self, repository: &str, path: &str, content: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.files.entry(repository.to_owned()).or_default().insert(path.to_owned(), content.to_vec());
    }

    pub fn put_demo(&self, repository: &str) {
        for (path, content) in demo() {
            self.put(repository, path, content);
        }
    }

    pub fn fault(&self, method: &'static str, path: &str, fault: Fault) {
        self.state.lock().unwrap().faults.push((method, path.to_owned(), fault, false));
    }

    pub fn always(&self, method: &'static str, path: &str, fault: Fault) {
        self.state.lock().unwrap().faults.push((method, path.to_owned(), fault, true));
    }

    pub fn heal(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// How many requests of that kind came in so far.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.seen.iter().filter(|seen| seen.method == method && seen.path.ends_with(path)).count()
    }

    pub fn requests(&self) -> usize {
        self.state.lock().unwrap().seen.len()
    }

    /// Bytes sent of files whose path ends like this.
    pub fn sent(&self, path: &str) -> usize {
        self.state.lock().unwrap().sent.iter().filter(|(sent, _)| sent.ends_with(path)).map(|(_, bytes)| bytes).sum()
    }
}

/// Options whose log is kept.
pub fn logged(options: HubOptions) -> (HubOptions, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = lines.clone();
    let log = Arc::new(move |line: &str| sink.lock().unwrap().push(line.to_owned()));
    (HubOptions { log: Some(log), ..options }, lines)
}

pub fn demo() -> [(&'static str, &'static [u8]); 5] {
    [
        ("config.json", include_bytes!("../../../src/demo/config.json")),
        ("generation_config.json", include_bytes!("../../../src/demo/generation_config.json")),
        ("model.safetensors", include_bytes!("../../../src/demo/model.safetensors")),
        ("tokenizer.json", include_bytes!("../../../src/demo/tokenizer.json")),
        ("tokenizer_config.json", include_bytes!("../../../src/demo/tokenizer_config.json")),
    ]
}

/// Whether the hub keeps the file in Git LFS.
fn is_large(path: &str) -> bool {
    [".safetensors", ".parquet", ".gz", ".bin"].iter().any(|end| path.ends_with(end))
}

/// The hash that the hub states for a file, which names its blob.
pub fn hash(path: &str, content: &[u8]) -> String {
    let digest = if is_large(path) {
        Sha256::digest(content).to_vec()
    } else {
        let mut hasher = sha1::Sha1::new_with_prefix(format!("blob {}\0", content.len()));
        hasher.update(content);
        hasher.finalize().to_vec()
    };
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the listing says about a file.
pub fn entry(path: &str, content: &[u8]) -> Value {
    let (size, hash) = (content.len(), hash(path, content));
    if is_large(path) {
        json!({"type": "file", "oid": "e".repeat(40), "size": size, "path": path,
               "lfs": {"oid": hash, "size": size, "pointerSize": 134}, "xetHash": "f".repeat(64)})
    } else {
        json!({"type": "file", "oid": hash, "size": size, "path": path})
    }
}

/// Answers one request: repository info, file tree, information about paths, and files.
fn serve(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut authorization, mut range, mut length) = (None, None, 0);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => authorization = Some(value.to_owned()),
            "range" => range = Some(value.to_owned()),
            "content-length" => length = value.parse().unwrap_or(0),
            "accept-encoding" => assert_eq!(value, "identity"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = target.split('?').next().unwrap_or_default().replace("%2F", "/");

    let mut locked = state.lock().unwrap();
    let refused =
        locked.token.as_ref().is_some_and(|token| authorization.as_deref() != Some(&format!("Bearer {token}")));
    let (seen_method, seen_path) = (method.clone(), path.clone());
    locked.seen.push(Seen { method: seen_method, path: seen_path, authorization, range: range.clone() });
    let fault = locked.faults.iter().position(|(m, end, ..)| *m == method && path.ends_with(end.as_str()));
    let fault =
        fault.map(
            |index| {
                if locked.faults[index].3 { locked.faults[index].2.clone() } else { locked.faults.remove(index).2 }
            },
        );
    let mut headers = vec![("Content-Type", "application/json".to_owned()), ("X-Repo-Commit", COMMIT.to_owned())];
    let (mut status, mut content) = match &fault {
        Some(Fault::Drop) => return Ok(()),
        Some(Fault::Status(status)) => (*status, b"sorry".to_vec()),
        Some(Fault::Reply(status, own, body)) => {
            headers = own.clone();
            (*status, body.clone())
        }
        _ if refused => (401, json!({"error": "Access to this repository is restricted"}).to_string().into_bytes()),
        _ => answer(&locked, &path, &body).map_or((404, b"not here".to_vec()), |content| (200, content)),
    };
    drop(locked);
    if let Some(Fault::Hold(listings)) = fault {
        let come = || state.lock().unwrap().seen.iter().filter(|seen| seen.path.contains("/tree/")).count();
        while come() < listings {
            thread::sleep(Duration::from_millis(5));
        }
    }
    let etag = content.iter().fold(7, |hash: u64, &byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    headers.push(("ETag", format!("\"../../../{etag:016x}\"")));
    if matches!(fault, Some(Fault::Flip)) {
        *content.last_mut().unwrap() ^= 1;
    }
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    if let Some(from) = from.filter(|_| status == 200 && !matches!(fault, Some(Fault::Whole))) {
        let size = content.len();
        if from < size {
            status = 206;
            content.drain(..from);
            headers.push(("Content-Range", format!("bytes {from}-{}/{size}", size - 1)));
        } else {
            status = 416;
            headers.push(("Content-Range", format!("bytes */{size}")));
            content = b"no such bytes".to_vec();
        }
    }
    let stall = |mut stream: TcpStream| stream.read(&mut [0]).map(drop);
    if matches!(fault, Some(Fault::Stall)) {
        return stall(stream);
    }
    write!(stream, "HTTP/1.1 {status} whatever\r\nContent-Length: {}\r\nConnection: close\r\n", content.len())?;
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    write!(stream, "\r\n")?;
    let end = match fault {
        Some(Fault::Truncate) => content.len() / 2,
        Some(Fault::Cut(length) | Fault::StallAfter(length)) => length.min(content.len()),
        _ => content.len(),
    };
    let step = if matches!(fault, Some(Fault::Drip)) { 1 } else { 64 << 10 };
    for piece in content[..end].chunks(step) {
        stream.write_all(piece)?;
        *state.lock().unwrap().sent.entry(path.clone()).or_default() += piece.len();
        if step == 1 {
            thread::sleep(Duration::from_millis(5));
        }
    }
    stream.flush()?;
    if matches!(fault, Some(Fault::StallAfter(_))) { stall(stream) } else { Ok(()) }
}

fn answer(state: &State, path: &str, body: &[u8]) -> Option<Vec<u8>> {
    for (repository, files) in &state.files {
        let api = match repository.strip_prefix("datasets/") {
            Some(_) => format!("/api/{repository}"),
            None => format!("/api/models/{repository}"),
        };
        let known = |revision: &str| revision == "main" || revision == "refs/convert/parquet" || revision == COMMIT;
        if let Some(rest) = path.strip_prefix(&format!("{api}/")) {
            return match rest.split_once('/')? {
                ("revision", revision) if known(revision) => Some(json!({"id": repository, "sha": COMMIT})),
                ("tree", COMMIT) => Some(files.iter().map(|(path, content)| entry(path, content)).collect()),
                ("paths-info", COMMIT) => {
                    let asked: Value = serde_json::from_slice(body).ok()?;
                    let asked = asked["paths"].as_array()?;
                    let found = files.iter().filter(|(path, _)| asked.contains(&json!(path)));
                    Some(found.map(|(path, content)| entry(path, content)).collect())
                }
                _ => None,
            }
            .map(|value: Value| value.to_string().into_bytes());
        }
        // Also where files lie behind a redirect.
        for place in [format!("/{repository}/resolve/{COMMIT}/"), format!("/elsewhere/{repository}/")] {
            if let Some(file) = path.strip_prefix(&place) {
                return files.get(file).cloned();
            }
        }
    }
    None
}
