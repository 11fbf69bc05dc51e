//! Which names from users and servers may become paths.

use std::path::{Component, Path};

/// Whether this could be the id of a repository: `name` or `owner/name`.
pub fn is_id(id: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("..")
            && !part.contains("--")
    };
    let mut parts = id.split('/');
    parts.next().is_some_and(part) && parts.next().is_none_or(part) && parts.next().is_none()
}

/// Whether a relative name stays inside its folder.
pub(crate) fn is_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whether a name with `/` means the same file inside its folder on every system, and can be shown as it is: no backslash,
/// no control character, no part that is empty or a dot.
pub(super) fn is_plain(name: &str) -> bool {
    is_inside(name)
        && name.split('/').all(|part| !part.is_empty() && part != ".")
        && !name.contains(|c: char| c == '\\' || c.is_control())
}

/// Whether `path`, relative to a repository, belongs to a module that sentence-transformers puts behind the transformer, such
/// as `1_Pooling/config.json` and `2_Dense/model.safetensors`.
pub(crate) fn is_module_file(path: &str) -> bool {
    let Some((folder, file)) = path.split_once('/') else { return false };
    let number = folder.split_once('_').map_or("", |(number, _)| number);
    let numbered = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    numbered && matches!(file, "config.json" | "model.safetensors")
}

/// The commit that `revision` spells out in full, in lower case.
pub(super) fn commit(revision: &str) -> Option<String> {
    let full = revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    full.then(|| revision.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_told_by_their_folders() {
        for path in ["1_Pooling/config.json", "2_Dense/model.safetensors", "12_Dense_512/config.json"] {
            assert!(is_module_file(path), "{path}");
        }
        for path in [
            "config.json",
            "onnx/config.json",
            "Dense/model.safetensors",
            "_x/config.json",
            "2_Dense/pytorch_model.bin",
        ] {
            assert!(!is_module_file(path), "{path}");
        }
    }

    #[test]
    fn ids_are_told_from_paths() {
        for id in ["gpt2", "owner/name", "openai-community/gpt2", "a/b_c-1.5B", "x"] {
            assert!(is_id(id), "{id}");
        }
        for other in ["", "/abs", "./rel", "a/b/c", "a//b", "a/", "-a/b", "a/b.", "a/..", "a--b/c", "a b", "c:\\x", "é"]
        {
            assert!(!is_id(other), "{other}");
        }
    }

    #[test]
    fn names_that_leave_their_folder_are_told() {
        for name in ["config.json", "1_Pooling/config.json", "..x", "a/...", "ünï.json", "a b"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["", "/", "/etc/passwd", "..", "../x", "a/../x", "a/..", "./x"] {
            assert!(!is_inside(name) && !is_plain(name), "{name:?}");
        }
        for name in ["a//b", "a/", "a/./b", "..\\x", "a\\b", "a\0b", "a\nb", "\x1b[2J", "a\u{85}b"] {
            assert!(!is_plain(name), "{name:?}");
        }
    }

    #[test]
    fn a_commit_is_forty_hex_digits() {
        let full = "0123456789abcdefABCDEF012345678901234567";
        assert_eq!(commit(full), Some(full.to_lowercase()));
        for other in ["", "main", &full[1..], &format!("{full}0"), "../456789abcdef0123456789abcdef0123456789", "é"] {
            assert_eq!(commit(other), None, "{other}");
        }
    }
}
