//! Values by name in little memory: a header or an index may list millions of tensors.

use std::ops::Range;

/// A map from names to values, in the order of the names: all names in one string, so that an entry costs its value and
/// eight bytes.
#[derive(Debug)]
pub(super) struct NameTable<T> {
    names: String,
    entries: Vec<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    start: u32,
    end: u32,
    value: T,
}

impl<T> NameTable<T> {
    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&T> {
        let found = self.entries.binary_search_by(|entry| of(&self.names, entry).cmp(name));
        found.ok().map(|at| &self.entries[at].value)
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The `at`th name and its value.
    pub fn at(&self, at: usize) -> (&str, &T) {
        let entry = &self.entries[at];
        (of(&self.names, entry), &entry.value)
    }

    /// All names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.entries.iter().map(|entry| (of(&self.names, entry), &entry.value))
    }

    /// All values, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().map(|entry| &mut entry.value)
    }
}

fn of<'n, T>(names: &'n str, entry: &Entry<T>) -> &'n str {
    &names[entry.start as usize..entry.end as usize]
}

/// A table being filled, in any order.
pub(super) struct NameTableBuilder<T> {
    names: String,
    entries: Vec<Entry<T>>,
}

/// Two values of the same name, in the order in which they came.
pub(super) struct Twice<T> {
    pub name: String,
    pub first: T,
    pub second: T,
}

impl<T> NameTableBuilder<T> {
    pub fn new() -> Self {
        Self { names: String::new(), entries: Vec::new() }
    }

    /// Where the next name is to be written.
    pub fn name(&mut self) -> &mut String {
        &mut self.names
    }

    /// What was written there since the last entry.
    pub fn pending(&self) -> &str {
        &self.names[self.written()..]
    }

    /// Takes back what was written there.
    pub fn drop_pending(&mut self) {
        self.names.truncate(self.written());
    }

    fn written(&self) -> usize {
        self.entries.last().map_or(0, |entry| entry.end as usize)
    }

    /// Gives the name that was written a value; false if the names together are longer than can be counted.
    pub fn push(&mut self, value: T) -> bool {
        let Range { start, end } = self.written()..self.names.len();
        let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end)) else { return false };
        self.entries.push(Entry { start, end, value });
        true
    }

    /// The table, unless a name is in it twice.
    pub fn finish(self) -> Result<NameTable<T>, Twice<T>> {
        let Self { names, mut entries } = self;
        entries.sort_unstable_by(|a, b| of(&names, a).cmp(of(&names, b)).then(a.start.cmp(&b.start)));
        if let Some(at) = entries.windows(2).position(|pair| of(&names, &pair[0]) == of(&names, &pair[1])) {
            let name = of(&names, &entries[at]).to_string();
            let (second, first) = (entries.swap_remove(at + 1).value, entries.swap_remove(at).value);
            return Err(Twice { name, first, second });
        }
        // Lists grow by halves; tables are kept.
        entries.shrink_to_fit();
        Ok(NameTable { names, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(pairs: &[(&str, u8)]) -> Result<NameTable<u8>, Twice<u8>> {
        let mut builder = NameTableBuilder::new();
        for (name, value) in pairs {
            builder.name().push_str("dropped");
            builder.drop_pending();
            builder.name().push_str(name);
            assert_eq!(builder.pending(), *name);
            assert!(builder.push(*value));
        }
        builder.finish()
    }

    #[test]
    fn names_are_found_and_in_order() {
        let Ok(table) = table(&[("b", 1), ("", 2), ("ab", 3), ("é", 4)]) else { panic!("no name is there twice") };
        assert_eq!(table.iter().collect::<Vec<_>>(), [("", &2), ("ab", &3), ("b", &1), ("é", &4)]);
        assert_eq!((table.get("ab"), table.get("a"), table.get("")), (Some(&3), None, Some(&2)));
        assert_eq!((table.len(), table.at(2)), (4, ("b", &1)));
    }

    #[test]
    fn a_name_has_one_value() {
        let Err(twice) = table(&[("a", 1), ("b", 2), ("c", 3), ("b", 4)]) else { panic!("b is there twice") };
        assert_eq!((twice.name.as_str(), twice.first, twice.second), ("b", 2, 4));
    }
}
