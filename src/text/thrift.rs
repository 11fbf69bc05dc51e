//! The footer of a parquet file, walked once before the parquet library reads it: that reserves memory for as many elements
//! as a list claims to have. The footer is in Thrift's compact protocol.

/// Structures within structures; those of parquet are not nearly as deep.
const DEEPEST: usize = 32;

/// Whether `bytes` begin with a structure in which nothing claims to be longer than the bytes that are left.
pub(super) fn is_sound(bytes: &[u8]) -> bool {
    Walk { rest: bytes }.structure(0).is_some()
}

struct Walk<'b> {
    rest: &'b [u8],
}

/// Types of values, as a field and a list's header name them.
mod kind {
    pub const TRUE: u8 = 1;
    pub const FALSE: u8 = 2;
    pub const BYTE: u8 = 3;
    pub const I16: u8 = 4;
    pub const I64: u8 = 6;
    pub const DOUBLE: u8 = 7;
    pub const BINARY: u8 = 8;
    pub const LIST: u8 = 9;
    pub const SET: u8 = 10;
    pub const MAP: u8 = 11;
    pub const STRUCT: u8 = 12;
    pub const UUID: u8 = 13;
}

impl Walk<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn skip(&mut self, bytes: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(bytes).ok()?..)?;
        Some(())
    }

    fn structure(&mut self, depth: usize) -> Option<()> {
        if depth == DEEPEST {
            return None;
        }
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Some(());
            }
            if head >> 4 == 0 {
                self.varint()?;
            }
            // A field says in its head whether it is true.
            if !matches!(head & 15, kind::TRUE | kind::FALSE) {
                self.value(head & 15, depth)?;
            }
        }
    }

    /// A value as it stands in a list, where every one has a byte at least.
    fn value(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            kind::TRUE | kind::FALSE | kind::BYTE => self.skip(1),
            kind::I16..=kind::I64 => self.varint().map(drop),
            kind::DOUBLE => self.skip(8),
            kind::UUID => self.skip(16),
            kind::BINARY => {
                let length = self.varint()?;
                self.skip(length)
            }
            kind::LIST | kind::SET => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
                self.elements(count, &[head & 15], depth)
            }
            kind::MAP => match self.varint()? {
                0 => Some(()),
                count => {
                    let kinds = self.byte()?;
                    self.elements(count, &[kinds >> 4, kinds & 15], depth)
                }
            },
            kind::STRUCT => self.structure(depth + 1),
            _ => None,
        }
    }

    fn elements(&mut self, count: u64, kinds: &[u8], depth: usize) -> Option<()> {
        if count > self.rest.len() as u64 || depth == DEEPEST {
            return None;
        }
        for _ in 0..count {
            kinds.iter().try_for_each(|&kind| self.value(kind, depth + 1))?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_held_against_the_bytes_that_are_left() {
        // A number, a string, a list of two structures, one of two truths, an empty map, a field by its full number.
        let sound = [
            0x15, 2, 0x18, 3, b'a', b'b', b'c', 0x19, 0x2c, 0x15, 2, 0, 0x11, 0, 0x19, 0x21, 1, 2, 0x1b, 0, 5, 80, 2, 0,
        ];
        assert!(is_sound(&sound));
        assert!((0..sound.len()).all(|cut| !is_sound(&sound[..cut])));
        for unsound in [
            // A list of 2^28 structures, a string and a map of as many bytes.
            &[0x19, 0xfc, 0x80, 0x80, 0x80, 0x80, 1, 0, 0][..],
            &[0x18, 0x80, 0x80, 0x80, 0x80, 1, 0],
            &[0x1b, 0x80, 0x80, 0x80, 0x80, 1, 0x55, 0],
            &[0x1e, 0],
            &[0x1c; 64],
            &[0x19; 64],
        ] {
            assert!(!is_sound(unsound), "{unsound:?}");
        }
    }
}
