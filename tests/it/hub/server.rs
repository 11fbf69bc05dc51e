//! A small hub: repository information, file trees and files over HTTP/1.1, and faults on request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use softlm::hub::HubOptions;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub does instead of answering.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    /// Closes the connection without a word.
    Drop,
    /// Promises the whole body and sends half of it.
    Truncate,
    /// Answers with this status and a short error page.
    Status(u16),
}

#[derive(Default)]
pub struct State {
    /// Repository (`owner/name` or `datasets/owner/name`) to path to content.
    pub files: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// The next time `method` and a path that ends like this are asked for, misbehave.
    pub faults: Vec<(&'static str, String, Fault)>,
    /// Method, path and authorization of every request.
    pub seen: Vec<(String, String, Option<String>)>,
    /// If set, all requests must carry it.
    pub token: Option<String>,
}

/// A small hub.
pub struct Hub {
    pub state: Arc<Mutex<State>>,
    endpoint: String,
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

    pub fn options(&self) -> HubOptions {
        HubOptions {
            endpoint: Some(self.endpoint.clone()),
            cache: Some(self.cache.path().to_owned()),
            attempts: 3,
            backoff: Duration::from_millis(5),
            ..HubOptions::default()
        }
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
        self.state.lock().unwrap().faults.push((method, path.to_owned(), fault));
    }

    /// How many requests of that kind came in so far.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.seen.iter().filter(|(m, p, _)| m == method && p.ends_with(path)).count()
    }
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

/// Answers one request: repository info, file tree, information about paths, and files.
fn serve(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut authorization, mut length) = (None, 0);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => authorization = Some(value.to_owned()),
            "content-length" => length = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = target.split('?').next().unwrap_or_default().replace("%2F", "/");

    let mut state = state.lock().unwrap();
    state.seen.push((method.clone(), path.clone(), authorization.clone()));
    let fault = state.faults.iter().position(|(m, end, _)| *m == method && path.ends_with(end.as_str()));
    let fault = fault.map(|index| state.faults.remove(index).2);
    let refused =
        state.token.as_ref().is_some_and(|token| authorization.as_deref() != Some(&format!("Bearer {token}")));
    let (status, content) = match fault {
        Some(Fault::Drop) => return Ok(()),
        Some(Fault::Status(status)) => (status, b"sorry".to_vec()),
        _ if refused => (401, json!({"error": "Access to this repository is restricted"}).to_string().into_bytes()),
        _ => answer(&state, &path, &body).map_or((404, b"not here".to_vec()), |content| (200, content)),
    };
    drop(state);
    let etag: u64 = content.iter().fold(7, |hash: u64, &byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    write!(
        stream,
        "HTTP/1.1 {status} whatever\r\nContent-Length: {}\r\nETag: \"{etag:016x}{:08x}\"\r\nX-Repo-Commit: {COMMIT}\r\n\
         Content-Type: application/json\r\nConnection: close\r\n\r\n",
        content.len(),
        content.len()
    )?;
    if method != "HEAD" {
        let sent = if fault == Some(Fault::Truncate) { content.len() / 2 } else { content.len() };
        stream.write_all(&content[..sent])?;
    }
    stream.flush()
}

fn answer(state: &State, path: &str, body: &[u8]) -> Option<Vec<u8>> {
    let entry =
        |path: &String, content: &Vec<u8>| json!({"type": "file", "oid": "0", "size": content.len(), "path": path});
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
        if let Some(file) = path.strip_prefix(&format!("/{repository}/resolve/{COMMIT}/")) {
            return files.get(file).cloned();
        }
    }
    None
}
