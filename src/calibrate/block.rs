//! The file of one block: per site the lower triangle of the Gram matrix, row by row, the sum and the count of tokens, and the
//! held-out inputs; sealed, and marked with whose and which block's they are.

use super::collect::{BlockStats, expert};
use super::origin::Origin;
use super::stats::SiteStats;
use crate::checkpoint::{Dtype, NamedTensor, TensorFile, TensorInfo, write_sealed};
use crate::error::UserError;
use crate::linalg::Mat;
use crate::model::Site;
use crate::user_bail;
use anyhow::{Context, Error, Result};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What to do about a file that is damaged or gone.
pub(super) const REPEAT: &str =
    "repeat the `softlm calibrate` that made these statistics: it makes again what is damaged or missing";
/// Keys of the header's free-form strings.
const ORIGIN: &str = "statistics";
const INDEX: &str = "block";
/// The tensors of a site.
const PARTS: [&str; 4] = ["gram", "sum", "tokens", "heldout"];

/// Sizes of what is stored of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SiteSize {
    /// Number of inputs.
    pub width: usize,
    /// Number of held-out tokens.
    pub heldout: usize,
}

/// A block's file, opened.
pub(super) struct BlockFile {
    path: PathBuf,
    file: TensorFile,
}

/// Whose file it has to be.
#[derive(Clone, Copy)]
pub(super) struct Owner<'a> {
    pub origin: &'a Origin,
    pub index: usize,
    /// The checksum it must have, if that is known.
    pub checksum: Option<&'a str>,
}

impl BlockFile {
    /// Reads the header and checks it against itself and `owner`.
    pub fn open(path: &Path, owner: Owner) -> Result<Self> {
        Self::checked(path, TensorFile::open(path), owner)
    }

    /// [`open`](Self::open) of a file whose every byte is checked.
    pub fn open_whole(path: &Path, owner: Owner) -> Result<Self> {
        Self::checked(path, TensorFile::open_sealed(path), owner)
    }

    fn checked(path: &Path, opened: Result<TensorFile>, owner: Owner) -> Result<Self> {
        let file = match opened {
            Ok(file) => file,
            // What may not be read is not damaged.
            Err(error) if File::open(path).is_err() => return Err(error),
            Err(error) => return Err(damaged(path, &format!("{error:#}"))),
        };
        let block = Self { path: path.into(), file };
        let (marked, index) = (block.file.metadata().get(ORIGIN), block.file.metadata().get(INDEX));
        if marked != Some(&owner.origin.id()?) || index != Some(&owner.index.to_string()) {
            return Err(damaged(path, "it belongs to other statistics, or to another block"));
        }
        if owner.checksum.is_some_and(|wanted| block.file.seal() != Some(wanted)) {
            return Err(damaged(path, "it is not the file that was there when the statistics were finished"));
        }
        for (site, size) in block.sites()? {
            let (all, held) = (owner.origin.heldout, size.heldout as u64);
            if held != all && (expert(site).is_none() || held > all) {
                return Err(damaged(path, &format!("{held} tokens are held out at {site}, not {all}")));
            }
        }
        Ok(block)
    }

    /// Sizes of all sites.
    pub fn sites(&self) -> Result<BTreeMap<Site, SiteSize>> {
        let mut sites = BTreeMap::new();
        for name in self.file.names() {
            let part = name.rsplit_once('.').filter(|(_, part)| PARTS.contains(part));
            let Some(site) = part.and_then(|(site, _)| site.parse().ok()) else {
                return Err(damaged(&self.path, &format!("tensor {name} belongs to no site")));
            };
            if let Entry::Vacant(entry) = sites.entry(site) {
                entry.insert(self.size_of(site)?);
            }
        }
        if sites.is_empty() {
            return Err(damaged(&self.path, "it has no sites"));
        }
        Ok(sites)
    }

    fn size_of(&self, site: Site) -> Result<SiteSize> {
        let info = |part: &str| {
            let info = self.file.info(&key(site, part));
            info.ok_or_else(|| damaged(&self.path, &format!("{site} has no {part}")))
        };
        let (sum, heldout) = (info("sum")?, info("heldout")?);
        let (Some(&width), Some(&rows)) = (sum.shape.first(), heldout.shape.first()) else {
            return Err(damaged(&self.path, &format!("{site} has numbers where it should have lists")));
        };
        let is = |info: &TensorInfo, dtype, shape: &[usize]| info.dtype == dtype && info.shape == shape;
        // The header was checked: as many numbers as a width says are in the file.
        let triangle = width as u128 * (width as u128 + 1) / 2;
        let triangle = usize::try_from(triangle).unwrap_or(usize::MAX);
        if width == 0
            || !is(sum, Dtype::F64, &[width])
            || !is(info("gram")?, Dtype::F64, &[triangle])
            || !is(info("tokens")?, Dtype::U64, &[1])
            || !is(heldout, Dtype::F32, &[rows, width])
        {
            return Err(damaged(&self.path, &format!("the sizes of {site} contradict each other")));
        }
        Ok(SiteSize { width, heldout: rows })
    }

    /// The seal of the file.
    pub fn checksum(&self) -> Result<String> {
        Ok(self.file.seal().with_context(|| format!("{} has no checksum", self.path.display()))?.to_string())
    }

    /// The statistics, if they can be what `origin` says.
    pub fn read(&self, origin: &Origin) -> Result<BlockStats> {
        let mut stats = BlockStats::new();
        for (site, size) in self.sites()? {
            let read = self.site(site, size.width)?;
            let (seen, all) = (read.tokens, origin.tokens);
            let fault = read.fault().or_else(|| {
                let other = seen != all && (expert(site).is_none() || seen > all);
                other.then(|| format!("it says that {seen} tokens were seen, not {all}"))
            });
            if let Some(fault) = fault {
                return Err(damaged(&self.path, &format!("no text gives such statistics of {site}: {fault}")));
            }
            stats.insert(site, read);
        }
        Ok(stats)
    }

    fn site(&self, site: Site, n: usize) -> Result<SiteStats> {
        let (file, key) = (&self.file, |part: &str| key(site, part));
        let triangle = file.f64s(&key("gram"))?;
        let gram = Mat::from_fn(n, n, |i, j| {
            let (i, j) = (i.max(j), i.min(j));
            triangle[i * (i + 1) / 2 + j]
        });
        let (sum, heldout) = (file.f64s(&key("sum"))?, file.f32s(&key("heldout"))?);
        Ok(SiteStats { tokens: file.count(&key("tokens"))?, gram, sum, heldout })
    }
}

/// Writes the file of block `index`.
pub(super) fn write(path: &Path, origin: &Origin, index: usize, stats: &BlockStats) -> Result<()> {
    let mut tensors: Vec<NamedTensor> = Vec::new();
    for (&site, s) in stats {
        if let Some(fault) = s.fault() {
            user_bail!(
                "block {index}: no sums over activations of site {site}: {fault}";
                "the checkpoint is damaged, or its weights overflow f32"
            );
        }
        let n = s.width();
        let triangle = (0..n).flat_map(|i| (0..=i).map(move |j| (i, j)));
        let gram: Vec<f64> = triangle.map(|(i, j)| s.gram.get(i, j)).collect();
        tensors.push(NamedTensor::f64(key(site, "gram"), [n * (n + 1) / 2], &gram));
        tensors.push(NamedTensor::f64(key(site, "sum"), [n], &s.sum));
        tensors.push(NamedTensor::count(key(site, "tokens"), s.tokens));
        tensors.push(NamedTensor::f32(key(site, "heldout"), [s.heldout_tokens(), n], &s.heldout));
    }
    let marks = [(ORIGIN.to_string(), origin.id()?), (INDEX.to_string(), index.to_string())];
    write_sealed(path, &tensors, &BTreeMap::from(marks))
}

fn key(site: Site, part: &str) -> String {
    format!("{site}.{part}")
}

pub(super) fn damaged(path: &Path, why: &str) -> Error {
    UserError::new(format!("the statistics {} are damaged: {why}", path.display())).hint(REPEAT).into()
}
