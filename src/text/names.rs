//! Names of texts as users write them: `NAME`, `PATH`, `NAME=PATH`, and several separated by commas. Paths may hold commas and
//! equals signs too: a path that exists is a path.

use std::path::Path;

/// The names in each of `values`, which are separated by commas. Parts that together are the path of something that exists,
/// or `NAME=PATH` of it, are one name.
pub fn split_names<S: AsRef<str>>(values: &[S]) -> Vec<String> {
    values.iter().flat_map(|value| split(value.as_ref())).collect()
}

fn split(value: &str) -> Vec<String> {
    let parts: Vec<&str> = value.split(',').collect();
    let mut names = Vec::new();
    let mut rest = parts.as_slice();
    while !rest.is_empty() {
        let together = (2..=rest.len()).rev().find(|&count| is_there(&rest[..count].join(",")));
        let (name, behind) = rest.split_at(together.unwrap_or(1));
        names.push(name.join(","));
        rest = behind;
    }
    names
}

fn is_there(name: &str) -> bool {
    Path::new(name).exists() || named(name).is_some_and(|(_, path)| Path::new(path).exists())
}

/// `NAME=PATH`, if that is what it is. A name has no separators, so that a path with `=` in a folder stays a path.
pub(super) fn named(spec: &str) -> Option<(&str, &str)> {
    let (name, path) = spec.split_once('=')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+');
    (!name.is_empty() && name.chars().all(plain) && !path.is_empty()).then_some((name, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        assert_eq!(named("wiki=a/b.txt"), Some(("wiki", "a/b.txt")));
        assert_eq!(named("my-set.v2=-"), Some(("my-set.v2", "-")));
        assert_eq!(named("runs/lr=1/text.txt"), None);
        assert_eq!(named("=x"), None);
        assert_eq!(named("x="), None);
        assert_eq!(named("plain.txt"), None);
    }

    #[test]
    fn a_path_that_exists_is_not_split() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
        for name in ["a,b.txt", "a,b,c.txt", "a"] {
            std::fs::write(path(name), "x").unwrap();
        }
        let (ab, abc, a) = (path("a,b.txt"), path("a,b,c.txt"), path("a"));
        assert_eq!(split_names(&["sample", "x,y"]), ["sample", "x", "y"]);
        assert_eq!(split_names(&[format!("sample,{ab},wiki={abc},z")]), ["sample", &ab, &format!("wiki={abc}"), "z"]);
        // What only looks like a path is several names, the first of them one that exists.
        assert_eq!(split_names(&[format!("{a},c.txt")]), [a.as_str(), "c.txt"]);
        assert_eq!(split_names(&["a,,b"]), ["a", "", "b"]);
        assert!(split_names::<String>(&[]).is_empty());
    }
}
