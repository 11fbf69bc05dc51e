//! Several files in one input: each begins with a line `%%% NAME`.

const MARK: &[u8] = b"%%% ";

/// The files of an input, in order. What stands in front of the first is none.
pub fn split(input: &[u8]) -> Vec<(&str, &[u8])> {
    let begins = |&at: &usize| input[at..].starts_with(MARK) && (at == 0 || input[at - 1] == b'\n');
    let starts: Vec<usize> = (0..input.len()).filter(begins).collect();
    let mut parts = Vec::new();
    for (i, &start) in starts.iter().enumerate() {
        // The line break in front of the next mark belongs to that.
        let end = starts.get(i + 1).map_or(input.len(), |next| next - 1);
        let part = &input[start + MARK.len()..end.max(start + MARK.len())];
        let line = part.iter().position(|&byte| byte == b'\n').unwrap_or(part.len());
        let name = std::str::from_utf8(&part[..line]).unwrap_or_default();
        parts.push((name, part.get(line + 1..).unwrap_or_default()));
    }
    parts
}

/// One input of several files.
pub fn join<N: AsRef<str>, C: AsRef<[u8]>>(parts: &[(N, C)]) -> Vec<u8> {
    let part = |(name, content): &(N, C)| [MARK, name.as_ref().as_bytes(), b"\n", content.as_ref()].concat();
    parts.iter().map(part).collect::<Vec<_>>().join(&b'\n')
}

/// The last of these names, as a file system would keep it.
pub fn find<'a>(parts: &[(&str, &'a [u8])], name: &str) -> Option<&'a [u8]> {
    parts.iter().rev().find(|(known, _)| *known == name).map(|(_, content)| *content)
}
