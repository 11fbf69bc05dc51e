//! The licence of the model that is compressed, as its folder states it.

use crate::checkpoint::Source;
use crate::report::Licence;
use anyhow::Result;

/// How the names of files with a licence begin, in capitals.
const FILES: [&str; 3] = ["LICENSE", "LICENCE", "COPYING"];

/// What the front matter of README.md says, and which files hold a licence. `None` where the folder says nothing.
pub(super) fn licence(source: &Source) -> Result<Option<Licence>> {
    // The built-in model has softlm's own.
    if source.dir().is_none() {
        return Ok(Some(Licence { id: Some("apache-2.0".into()), ..Licence::default() }));
    }
    // One that cannot be read says nothing.
    let readme = source.side_file("README.md").ok().flatten().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let front = readme.as_deref().map(front_matter).unwrap_or_default();
    let value = |key: &str| front.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
    let held = |name: &String| FILES.iter().any(|start| name.to_ascii_uppercase().starts_with(start));
    let licence = Licence {
        id: value("license"),
        name: value("license_name"),
        link: value("license_link"),
        files: source.side_files()?.into_iter().filter(held).collect(),
    };
    Ok(Some(licence).filter(|licence| *licence != Licence::default()))
}

/// The scalars at the top level of the YAML between two lines `---` with which a text begins; of a list the first. That is
/// as much YAML as a licence takes.
fn front_matter(text: &str) -> Vec<(String, String)> {
    let mut lines = text.trim_start_matches('\u{feff}').lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Vec::new();
    }
    let mut found: Vec<(String, String)> = Vec::new();
    let mut open = None;
    for line in lines.take_while(|line| line.trim_end() != "---") {
        if let Some(item) = line.trim_start().strip_prefix("- ") {
            if let (Some(key), Some(value)) = (open.take(), scalar(item)) {
                found.push((key, value));
            }
            continue;
        }
        let Some((key, value)) = line.split_once(':').filter(|_| !line.starts_with([' ', '\t', '#'])) else { continue };
        match scalar(value.trim().strip_prefix('[').map_or(value, |list| list.split([',', ']']).next().unwrap_or(""))) {
            Some(value) => found.push((key.trim().to_string(), value)),
            None => open = Some(key.trim().to_string()),
        }
    }
    found
}

/// A YAML scalar on one line: quotes and a comment behind it taken off. `None` for nothing.
fn scalar(text: &str) -> Option<String> {
    let text = text.trim();
    let value = match text.chars().next() {
        Some(quote @ ('"' | '\'')) => text[1..].split(quote).next().unwrap_or(""),
        _ => text.split(" #").next().unwrap_or("").trim_end(),
    };
    (!value.is_empty() && value != "null" && value != "~").then(|| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        front_matter(text)
    }

    #[test]
    fn scalars_are_read_however_they_are_written() {
        let text = "---\nlicense: other # see below\nlicense_name: \"my: licence\"\nlicense_link: 'LICENSE.md'\ntags:\n- a\n- b\n\
                    extra:\n  license: mit\nempty:\nlanguage: [en, de]\n---\nlicense: gpl\n";
        let expected = [
            ("license", "other"),
            ("license_name", "my: licence"),
            ("license_link", "LICENSE.md"),
            ("tags", "a"),
            ("language", "en"),
        ];
        assert_eq!(read(text), expected.map(|(key, value)| (key.to_string(), value.to_string())));
    }

    #[test]
    fn lists_give_their_first_and_texts_without_front_matter_nothing() {
        assert_eq!(
            read("---\r\nlicense:\r\n  - mit\r\n  - bsd\r\n---\r\n"),
            [("license".to_string(), "mit".to_string())]
        );
        assert!(read("# title\n---\nlicense: mit\n---\n").is_empty() && read("").is_empty());
        assert!(read("---\nlicense: null\n---\n").is_empty());
    }
}
