//! What can be checked of a checkpoint's files without knowing its family.

use super::source::Source;

impl Source {
    /// One sentence for everything that is wrong with the index of a sharded checkpoint: it lists every tensor, each in
    /// the shard that holds it, and their total size.
    pub fn index_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let Some(index) = &self.index else { return problems };
        let mut total = 0;
        for name in self.names() {
            let Some(info) = self.info(name) else { continue };
            total += info.bytes() as u64;
            // Opening has checked the other direction: what is listed is there.
            if !index.weight_map.contains_key(name) {
                let file = self.file_of(info).name();
                problems.push(format!("{name} lies in {file}, but the index does not list it."));
            }
        }
        match index.total_size {
            Some(size) if size == total => {}
            Some(size) => {
                problems.push(format!("The index gives {size} bytes in total, but the tensors have {total}."));
            }
            None => problems.push(format!("The index has no metadata.total_size; the tensors have {total} bytes.")),
        }
        problems
    }
}
