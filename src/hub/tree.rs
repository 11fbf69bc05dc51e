//! What the hub says about a repository: the commit of a revision, and the files of a commit with their hashes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::Deserialize;
use ureq::http::header::LINK;
use url::Url;

use super::answer::Answer;
use super::http::{Ask, Http, host};
use super::retry::{Failure, retry};
use super::{HubOptions, Repository, is_inside, names};
use crate::error::UserError;

/// No answer about a repository is larger, nor are all pages of a listing together.
const LARGEST_JSON: usize = 64 << 20;
/// A thousand files each.
const MAX_PAGES: usize = 2000;

/// The hash that the hub states for a file, in lower-case hexadecimal digits. It names the blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hash {
    /// Of a file in Git LFS.
    Sha256(String),
    /// What git calls the file.
    Git(String),
}

impl Hash {
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Git(hex) => hex,
        }
    }
}

/// A file of a commit. Its path is plain.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub path: String,
    pub size: u64,
    pub hash: Hash,
}

#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

/// Asks the hub about one repository.
pub(super) struct Remote<'a> {
    pub http: &'a Http<'a>,
    pub repository: &'a Repository<'a>,
    pub options: &'a HubOptions,
}

impl Remote<'_> {
    /// The commit that `revision` is now. One attempt.
    pub fn commit(&self, revision: &str) -> Result<String, Failure> {
        let url = self.http.endpoint.api(self.repository, &["revision", revision]);
        let (info, _): (Info, _) = self.http.request(&Ask::get(url))?.json(LARGEST_JSON)?;
        let Some(commit) = info.sha.as_deref().and_then(names::commit) else {
            return Err(self.refuse("names no commit of 40 hexadecimal digits"));
        };
        if names::commit(revision).is_some_and(|asked| asked != commit) {
            return Err(self.refuse("answers for another commit than the one asked for"));
        }
        Ok(commit)
    }

    /// All files of a commit, by path.
    pub fn files(&self, commit: &str) -> Result<BTreeMap<String, Entry>, Failure> {
        let mut url = self.http.endpoint.api(self.repository, &["tree", commit]);
        url.set_query(Some("recursive=true"));
        let (mut items, mut left) = (Vec::new(), LARGEST_JSON);
        for _ in 0..MAX_PAGES {
            let (page, next, length) = retry(self.options, || {
                let answer = self.http.request(&Ask::get(url.clone()))?;
                let next = self.next_page(&answer)?;
                let (page, length): (Vec<Item>, _) = answer.json(left)?;
                Ok((page, next, length))
            })?;
            left -= length;
            items.extend(page);
            match next {
                Some(next) => url = next,
                None => return self.checked(items),
            }
        }
        Err(self.refuse("lists files without end"))
    }

    /// One file of a commit, if it is there.
    pub fn file(&self, commit: &str, path: &str) -> Result<Option<Entry>, Failure> {
        let url = self.http.endpoint.api(self.repository, &["paths-info", commit]);
        let ask = Ask { json: Some(serde_json::json!({"paths": [path]}).to_string()), ..Ask::get(url) };
        let items = retry(self.options, || Ok(self.http.request(&ask)?.json::<Vec<Item>>(LARGEST_JSON)?.0))?;
        Ok(self.checked(items)?.remove(path))
    }

    /// Where a listing goes on. That it does elsewhere is not believed: the question carries the token.
    fn next_page(&self, answer: &Answer) -> Result<Option<Url>, Failure> {
        let mut links = answer.headers.get_all(LINK).iter().map(|link| String::from_utf8_lossy(link.as_bytes()));
        let Some(next) = links.find_map(|link| next_link(&link).map(str::to_owned)) else { return Ok(None) };
        match answer.url.join(&next) {
            Ok(next) if self.http.endpoint.is_origin_of(&next) && next.username().is_empty() => Ok(Some(next)),
            Ok(next) => Err(self.refuse(&format!("continues its list of files on another server ({})", host(&next)))),
            Err(_) => Err(self.refuse("continues its list of files at what is no address")),
        }
    }

    /// The files among the items. A listing that no repository can have is refused; a name that this system could take for
    /// another is left out.
    fn checked(&self, items: Vec<Item>) -> Result<BTreeMap<String, Entry>, Failure> {
        let mut files = BTreeMap::new();
        let mut left_out = BTreeSet::new();
        for item in items.into_iter().filter(|item| item.kind == "file") {
            if !is_inside(&item.path) {
                return Err(self.refuse(&format!("names {:?}, a file outside the repository", short(&item.path))));
            }
            if !names::is_plain(&item.path) {
                left_out.insert(item.path);
                continue;
            }
            let entry = self.entry(item)?;
            if let Some(twice) = files.insert(entry.path.clone(), entry) {
                return Err(self.refuse(&format!("lists {:?} twice", short(&twice.path))));
            }
        }
        for path in files.keys() {
            let mut folders = path.match_indices('/').map(|(end, _)| &path[..end]);
            if let Some(both) = folders.find(|folder| files.contains_key(*folder)) {
                return Err(self.refuse(&format!("says that {:?} is both a file and a folder", short(both))));
            }
        }
        if let Some(first) = left_out.first() {
            let (count, repository) = (left_out.len(), self.repository);
            let example = short(first);
            self.options.log(&format!("{repository}: {count} with unusable names are left out, such as {example:?}"));
        }
        Ok(files)
    }

    fn entry(&self, item: Item) -> Result<Entry, Failure> {
        let (size, hex, digits) = match &item.lfs {
            Some(lfs) => (lfs.size, &lfs.oid, 64),
            None => (item.size, &item.oid, 40),
        };
        if hex.len() != digits || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(self.refuse(&format!("states no hash for {:?}, so that nothing could be checked", item.path)));
        }
        let hex = hex.to_ascii_lowercase();
        let hash = if item.lfs.is_some() { Hash::Sha256(hex) } else { Hash::Git(hex) };
        Ok(Entry { path: item.path, size, hash })
    }

    fn refuse(&self, what: &str) -> Failure {
        let error = UserError::new(format!("the hub at {} {what}, for {}", self.http.endpoint, self.repository))
            .hint("do not trust this hub; check HF_ENDPOINT");
        Failure::Lasting(error.into())
    }
}

/// Names of others, short enough for a line.
fn short(name: &str) -> String {
    name.chars().take(100).collect()
}

/// The address in a Link header (RFC 8288) whose relation is `next`.
fn next_link(header: &str) -> Option<&str> {
    let mut rest = header;
    while let Some((address, after)) = rest.split_once('<')?.1.split_once('>') {
        // The parameters last until the next address; a comma may be inside quotes, where no `<` is of use.
        let end = after.find('<').unwrap_or(after.len());
        let mut parameters = after[..end].split([';', ',']).map(str::trim);
        let is_next =
            |value: &str| value.trim().trim_matches('"').split(' ').any(|rel| rel.eq_ignore_ascii_case("next"));
        if parameters.any(|p| {
            p.split_once('=').is_some_and(|(name, value)| name.trim().eq_ignore_ascii_case("rel") && is_next(value))
        }) {
            return Some(address);
        }
        rest = &after[end..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_links() {
        for (header, expected) in [
            (r#"<https://hub/x?cursor=a,b>; rel="next""#, Some("https://hub/x?cursor=a,b")),
            (r#"<a>; rel="prev", <b>; title="t"; rel=next"#, Some("b")),
            (r#"<a>;rel="last next""#, Some("a")),
            (r#"<a>; REL="Next""#, Some("a")),
            (r#"<a>; rel="nextish""#, None),
            (r#"<a; rel="next""#, None),
            ("next", None),
            ("", None),
        ] {
            assert_eq!(next_link(header), expected, "{header}");
        }
    }

    fn checked(items: serde_json::Value) -> Result<Vec<String>, Failure> {
        let options = HubOptions::default();
        let http = Http::new(&options)?;
        let repository = Repository { kind: "models", id: "ours/demo" };
        let remote = Remote { http: &http, repository: &repository, options: &options };
        let items = serde_json::from_value(items).map_err(anyhow::Error::from)?;
        Ok(remote.checked(items)?.into_keys().collect())
    }

    #[test]
    fn listings_that_no_repository_has_are_refused() {
        let item = |path: &str| serde_json::json!({"type": "file", "path": path, "size": 1, "oid": "0".repeat(40)});
        let folder = serde_json::json!({"type": "directory", "path": "../x", "oid": "x"});
        assert_eq!(checked(serde_json::json!([item("a"), item("b/c"), folder])).unwrap(), ["a", "b/c"]);
        assert_eq!(checked(serde_json::json!([item("a"), item("b\\c"), item("\x1b[2J")])).unwrap(), ["a"]);
        for (bad, words) in [
            (vec![item("../x.json")], "outside"),
            (vec![item("/etc/x.json")], "outside"),
            (vec![item("")], "outside"),
            (vec![item("a/../../x.json")], "outside"),
            (vec![item("a"), item("a")], "twice"),
            (vec![item("a/b/c"), item("a-b"), item("a")], "both a file and a folder"),
        ] {
            let refused = checked(serde_json::json!(bad)).unwrap_err();
            assert!(refused.to_string().contains(words) && !refused.is_passing(), "{refused}");
        }
        for oid in ["0", "", "../../../../../../../../../../../../../x", &"g".repeat(40), &"0".repeat(64)] {
            let bad = serde_json::json!([{"type": "file", "path": "a", "size": 1, "oid": oid}]);
            assert!(checked(bad).unwrap_err().to_string().contains("states no hash"), "{oid}");
        }
        let lfs = serde_json::json!([{"type": "file", "path": "a", "lfs": {"oid": "0".repeat(40), "size": 1}}]);
        assert!(checked(lfs).unwrap_err().to_string().contains("states no hash"));
    }
}
