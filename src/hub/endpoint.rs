//! The hub's address, and who we are there.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use ureq::http::HeaderValue;
use url::Url;

use super::{HubOptions, Repository};
use crate::user_bail;

/// No token is longer.
const LARGEST_TOKEN: u64 = 16 << 10;

/// The hub. Shown without secrets.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Without user and password.
    url: Url,
    /// The value of the Authorization header, for this server alone.
    authorization: Option<HeaderValue>,
    shown: String,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Endpoint {
    /// The hub that the options name, and the token or the password for it.
    ///
    /// # Errors
    /// For an endpoint that is no address of a server, and a token that no header can carry. None shows a secret.
    pub fn new(options: &HubOptions) -> Result<Self> {
        let Some(text) = &options.endpoint else {
            let url = Url::parse("https://huggingface.co").context("the hub's own address")?;
            return Ok(Self { url, authorization: bearer(options)?, shown: "huggingface.co".to_owned() });
        };
        const HINT: &str = "HF_ENDPOINT must be a URL like https://huggingface.co";
        // What may hold a password is not repeated.
        let shown = if text.contains('@') { String::new() } else { format!(" {text:?}") };
        let Ok(mut url) = Url::parse(text) else { user_bail!("the address of the hub{shown} is no URL"; "{HINT}") };
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            user_bail!("the address of the hub{shown} is neither http:// nor https:// and a host"; "{HINT}");
        }
        if url.query().is_some() || url.fragment().is_some() || url.path().contains('@') {
            user_bail!("the address of the hub{shown} has more in it than a host, a port and a path"; "{HINT}");
        }
        let (user, password) = (url.username().to_owned(), url.password().map(str::to_owned));
        let authorization = if user.is_empty() && password.is_none() {
            bearer(options)?
        } else {
            // These cannot fail for a URL with a host.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            if options.token.is_some() {
                options.log("HF_ENDPOINT names a user of its own: the access token is not sent");
            }
            let mut pair = percent_decode_str(&user).collect::<Vec<u8>>();
            pair.push(b':');
            pair.extend(percent_decode_str(password.as_deref().unwrap_or_default()));
            Some(secret(&format!("Basic {}", STANDARD.encode(pair)))?)
        };
        let shown = url.as_str().trim_end_matches('/').to_owned();
        Ok(Self { url, authorization, shown })
    }

    /// Whether `url` is of this very server: scheme, host and port.
    pub fn is_origin_of(&self, url: &Url) -> bool {
        self.url.origin() == url.origin()
    }

    /// For requests to this server, and no other.
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// Where the interface answers `parts` about a repository.
    pub fn api(&self, repository: &Repository, parts: &[&str]) -> Url {
        self.join([&["api", repository.kind][..], &segments(repository.id), parts].concat())
    }

    /// Where the interface lists a single model: what any hub answers to anybody.
    pub fn first_model(&self) -> Url {
        let mut url = self.join(vec!["api", "models"]);
        url.set_query(Some("limit=1"));
        url
    }

    /// Where a file is. `path` is plain.
    pub fn file(&self, repository: &Repository, commit: &str, path: &str) -> Url {
        let kind = if repository.kind == "models" { &[][..] } else { &[repository.kind] };
        self.join([kind, &segments(repository.id), &["resolve", commit], &segments(path)].concat())
    }

    fn join(&self, parts: Vec<&str>) -> Url {
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }
}

fn segments(path: &str) -> Vec<&str> {
    path.split('/').collect()
}

/// The header for the user's token.
fn bearer(options: &HubOptions) -> Result<Option<HeaderValue>> {
    let (token, from) = match (&options.token, &options.token_file) {
        (Some(token), _) => (token.clone(), "HF_TOKEN".to_owned()),
        (None, Some(path)) => {
            let mut token = Vec::new();
            let read = File::open(path).and_then(|file| file.take(LARGEST_TOKEN).read_to_end(&mut token));
            match read {
                Ok(_) => (String::from_utf8_lossy(&token).into_owned(), path.display().to_string()),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    return Ok(None);
                }
                Err(error) => {
                    let path = path.display();
                    user_bail!("cannot read the access token in {path}: {error}"; "log in again, or set HF_TOKEN")
                }
            }
        }
        (None, None) => return Ok(None),
    };
    // Files end with a newline, and so does what people paste.
    match token.trim() {
        "" => Ok(None),
        token if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Some(secret(&format!("Bearer {token}"))?)),
        _ => user_bail!(
            "the access token in {from} has a line break, a space or another character inside that no token has";
            "copy the token anew from the hub's settings; it looks like hf_ and letters"
        ),
    }
}

fn secret(text: &str) -> Result<HeaderValue> {
    // Neither form holds anything but visible ASCII.
    let mut value = HeaderValue::from_str(text).ok().context("the access token cannot be sent")?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::UserError;

    fn endpoint(url: &str) -> Result<Endpoint> {
        Endpoint::new(&HubOptions { endpoint: Some(url.into()), ..HubOptions::default() })
    }

    #[test]
    fn addresses_are_put_together() {
        let model = Repository { kind: "models", id: "ours/demo" };
        let set = Repository { kind: "datasets", id: "ours/set" };
        let hub = Endpoint::new(&HubOptions::default()).unwrap();
        assert_eq!(hub.to_string(), "huggingface.co");
        assert_eq!(
            hub.api(&set, &["revision", "refs/convert/parquet"]).as_str(),
            "https://huggingface.co/api/datasets/ours/set/revision/refs%2Fconvert%2Fparquet"
        );
        let mirror = endpoint("http://mirror:8080/hf/").unwrap();
        assert_eq!(
            mirror.file(&model, "abc", "1_P/a b?#%.json").as_str(),
            "http://mirror:8080/hf/ours/demo/resolve/abc/1_P/a%20b%3F%23%25.json"
        );
        assert_eq!(mirror.file(&set, "abc", "x").as_str(), "http://mirror:8080/hf/datasets/ours/set/resolve/abc/x");
    }

    #[test]
    fn a_password_is_sent_and_not_shown() {
        let options = HubOptions {
            endpoint: Some("https://me:s%3Acret@mirror:8443".into()),
            token: Some("hf_token".into()),
            ..HubOptions::default()
        };
        let mirror = Endpoint::new(&options).unwrap();
        assert_eq!(mirror.authorization().unwrap(), format!("Basic {}", STANDARD.encode("me:s:cret")).as_str());
        assert_eq!(mirror.to_string(), "https://mirror:8443");
        let model = Repository { kind: "models", id: "ours/demo" };
        assert_eq!(mirror.file(&model, "abc", "x").as_str(), "https://mirror:8443/ours/demo/resolve/abc/x");
        assert!(!format!("{mirror:?}").contains("cret") && !format!("{mirror:?}").contains("Basic"), "{mirror:?}");
    }

    #[test]
    fn what_is_no_address_of_a_server_is_refused_without_its_password() {
        for bad in [
            "not a url",
            "",
            "huggingface.co",
            "file:///etc",
            "ftp://x",
            "https://",
            "data:x",
            "https://x?y=1",
            "https://x#y",
            "me:hunter2@mirror",
            "ftp://me:hunter2@mirror",
            "https://me:hunt/er2@mirror",
            "https://hunter2/x@mirror",
            "https://me:hunter2@",
            "https://me:hunter2@mirror:99999",
        ] {
            let error = endpoint(bad).unwrap_err();
            let error = error.downcast_ref::<UserError>().unwrap();
            let said = format!("{error} {error:?}");
            assert!(said.contains("HF_ENDPOINT") && !said.contains("hunt"), "{said}");
        }
    }

    #[test]
    fn a_token_is_trimmed_or_refused_and_never_shown() {
        let with = |token: &str| bearer(&HubOptions { token: Some(token.into()), ..HubOptions::default() });
        assert_eq!(with(" hf_x\r\n").unwrap().unwrap(), "Bearer hf_x");
        assert!(with(" \n").unwrap().is_none());
        for bad in ["hf_se\ncret", "hf_se cret", "hf_se\u{e9}cret", "hf_se\0cret\x7f", "hf_se\r\nX-Evil: cret"] {
            let error = with(bad).unwrap_err();
            assert!(!format!("{error:?}").contains("cret") && error.to_string().contains("HF_TOKEN"), "{error:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let from_file = || bearer(&HubOptions { token_file: Some(path.clone()), ..HubOptions::default() });
        assert!(from_file().unwrap().is_none(), "nobody has logged in");
        std::fs::write(&path, "hf_file\n").unwrap();
        assert_eq!(from_file().unwrap().unwrap(), "Bearer hf_file");
        std::fs::write(&path, "hf_se\ncret").unwrap();
        assert!(from_file().unwrap_err().to_string().contains(&path.display().to_string()));
    }
}
