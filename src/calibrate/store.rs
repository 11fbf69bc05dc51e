//! Statistics on disk: a folder with `stats.json` and one safetensors file per block.
//!
//! Sums are raw, so two folders made from different texts of the same model can be [`merge`]d by addition. A Gram
//! matrix is stored as its lower triangle, row by row, in f64.

use super::collect::BlockStats;
use super::stats::SiteStats;
use crate::checkpoint::{Source, write_file, write_tensors};
use crate::linalg::Mat;
use crate::model::Site;
use crate::user_bail;
use anyhow::{Context, Result};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;

/// What a folder of statistics was made from: `stats.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Version of this format.
    pub format: u32,
    /// The model, as the user named it.
    pub model: String,
    /// Hash over the weight files' hashes.
    pub model_sha256: String,
    /// Number of blocks.
    pub blocks: usize,
    /// What text went in, one entry per merged run.
    pub texts: Vec<String>,
}

impl Origin {
    /// Describes statistics of `source` over `text`.
    pub fn new(source: &Source, blocks: usize, text: String) -> Result<Self> {
        let model_sha256 = source.fingerprint()?;
        Ok(Self { format: FORMAT, model: source.label().to_string(), model_sha256, blocks, texts: vec![text] })
    }
}

/// A folder of statistics, being filled or complete.
pub struct StatsStore {
    dir: PathBuf,
    /// What the statistics were made from.
    pub origin: Origin,
}

impl StatsStore {
    /// Opens `dir` if it holds statistics; `None` if it does not exist or is empty.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("stats.json");
        if !path.exists() {
            if dir.is_dir() && fs::read_dir(dir)?.next().is_some() {
                let dir = dir.display();
                user_bail!("{dir} holds no statistics (no stats.json) but is not empty"; "name another folder for --stats");
            }
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let origin: Origin = match serde_json::from_str(&text) {
            Ok(origin) => origin,
            Err(e) => {
                user_bail!("{} does not describe statistics: {e}", path.display(); "collect them again, into a new folder")
            }
        };
        if origin.format != FORMAT {
            user_bail!(
                "{} has format {}, this version of softlm reads {FORMAT}", path.display(), origin.format;
                "collect the statistics again"
            );
        }
        Ok(Some(Self { dir: dir.to_path_buf(), origin }))
    }

    /// Starts a new folder.
    pub fn create(dir: &Path, origin: Origin) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let json = serde_json::to_string_pretty(&origin)?;
        write_file(&dir.join("stats.json"), (json + "\n").as_bytes())?;
        Ok(Self { dir: dir.to_path_buf(), origin })
    }

    /// Whether block `index` is there.
    pub fn has(&self, index: usize) -> bool {
        self.path(index).exists()
    }

    /// Stores the statistics of block `index`.
    pub fn put(&self, index: usize, stats: &BlockStats) -> Result<()> {
        let mut tensors = Vec::new();
        for (site, s) in stats {
            let n = s.width();
            let triangle = (0..n).flat_map(|i| (0..=i).map(move |j| (i, j)));
            let gram = triangle.flat_map(|(i, j)| s.gram.get(i, j).to_le_bytes()).collect();
            tensors.push((format!("{site}.gram"), Dtype::F64, vec![n * (n + 1) / 2], gram));
            let sum = s.sum.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.push((format!("{site}.sum"), Dtype::F64, vec![n], sum));
            tensors.push((format!("{site}.tokens"), Dtype::U64, vec![1], s.tokens.to_le_bytes().to_vec()));
            let heldout = s.heldout.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.push((format!("{site}.heldout"), Dtype::F32, vec![s.heldout.len() / n, n], heldout));
        }
        write_tensors(&self.path(index), &tensors, &BTreeMap::new())
    }

    /// Reads the statistics of block `index`.
    pub fn get(&self, index: usize) -> Result<BlockStats> {
        let path = self.path(index);
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let file = SafeTensors::deserialize(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        let mut stats = BlockStats::new();
        let sites = file.names().into_iter().filter_map(|name| name.strip_suffix(".sum")?.parse::<Site>().ok());
        for site in sites {
            let sum: Vec<f64> = f64s(file.tensor(&format!("{site}.sum"))?.data());
            let n = sum.len();
            let triangle = f64s(file.tensor(&format!("{site}.gram"))?.data());
            let tokens = file.tensor(&format!("{site}.tokens"))?.data().try_into().map(u64::from_le_bytes);
            let heldout = file.tensor(&format!("{site}.heldout"))?.data().as_chunks::<4>().0;
            if triangle.len() != n * (n + 1) / 2 {
                user_bail!("{}: {site} has inconsistent sizes", path.display(); "collect the statistics again");
            }
            let gram = Mat::from_fn(n, n, |i, j| {
                let (i, j) = (i.max(j), i.min(j));
                triangle[i * (i + 1) / 2 + j]
            });
            let heldout = heldout.iter().map(|b| f32::from_le_bytes(*b)).collect();
            stats.insert(site, SiteStats { tokens: tokens.context("token count")?, gram, sum, heldout });
        }
        Ok(stats)
    }

    fn path(&self, index: usize) -> PathBuf {
        self.dir.join(format!("block-{index:05}.safetensors"))
    }
}

fn f64s(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

/// Adds the statistics of several folders of the same model into a new folder.
pub fn merge(folders: &[PathBuf], out: &Path) -> Result<Origin> {
    let mut stores = Vec::new();
    for dir in folders {
        match StatsStore::open(dir)? {
            Some(store) => stores.push(store),
            None => user_bail!("{} holds no statistics", dir.display(); "make them with `softlm calibrate`"),
        }
    }
    let Some(first) = stores.first() else { user_bail!("nothing to merge"; "name at least one folder") };
    let mut origin = first.origin.clone();
    for other in &stores[1..] {
        if other.origin.model_sha256 != origin.model_sha256 {
            user_bail!(
                "{} was made from {}, {} from {}", first.dir.display(), origin.model, other.dir.display(), other.origin.model;
                "only statistics of the same model add up"
            );
        }
        origin.texts.extend(other.origin.texts.iter().cloned());
    }
    if StatsStore::open(out)?.is_some() {
        user_bail!("{} already holds statistics", out.display(); "name a new folder for the sum");
    }
    for (dir, store) in folders.iter().zip(&stores) {
        if let Some(index) = (0..origin.blocks).find(|&index| !store.has(index)) {
            user_bail!("{} lacks the statistics of block {index}", dir.display(); "finish it with the command that began it");
        }
    }
    let target = StatsStore::create(out, origin.clone())?;
    for index in 0..origin.blocks {
        let mut sum = first.get(index)?;
        for other in &stores[1..] {
            for (site, stats) in other.get(index)? {
                let Some(mine) = sum.get_mut(&site) else {
                    user_bail!("block {index}: {site} is not in every folder"; "collect the statistics again")
                };
                mine.merge(&stats);
            }
        }
        target.put(index, &sum)?;
    }
    Ok(origin)
}

impl SiteStats {
    /// Adds the sums of another run over the same site.
    pub fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.gram.add_assign(&other.gram);
        self.sum.iter_mut().zip(&other.sum).for_each(|(a, b)| *a += b);
        self.heldout.extend_from_slice(&other.heldout);
    }
}
