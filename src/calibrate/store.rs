//! Statistics on disk: a folder with `stats.json` and one safetensors file per block.
//!
//! Sums are raw, so two folders made from different texts of the same model can be [`merge`]d by addition. A Gram
//! matrix is stored as its lower triangle, row by row, in f64.

use super::collect::BlockStats;
use super::stats::SiteStats;
use crate::checkpoint::{Identity, Source, differences, write_file, write_tensors};
use crate::error::UserError;
use crate::linalg::Mat;
use crate::model::Site;
use crate::user_bail;
use anyhow::{Context, Result};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Format 1 recorded the weights alone: the same weights under another config.json or tokenizer give other statistics.
const FORMAT: u32 = 2;

/// What a folder of statistics was made from: `stats.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Version of this format.
    pub format: u32,
    /// Version of softlm that collected them.
    pub softlm: String,
    /// Tells these statistics from those of the same name that were there before or will be there after.
    pub generation: String,
    /// The model, as the user named it.
    pub model: String,
    /// Hashes of its files: everything that the statistics depend on beside the text.
    #[serde(flatten)]
    pub identity: Identity,
    /// Number of blocks.
    pub blocks: usize,
    /// What text went in, one entry per merged run.
    pub texts: Vec<String>,
}

impl Origin {
    /// Describes statistics of `source` over `text`.
    pub fn new(source: &Source, blocks: usize, text: String) -> Result<Self> {
        Ok(Self {
            format: FORMAT,
            softlm: env!("CARGO_PKG_VERSION").to_string(),
            generation: generation(),
            model: source.label().to_string(),
            identity: source.identity()?,
            blocks,
            texts: vec![text],
        })
    }

    /// Whether the same statistics would come out.
    pub fn is_same(&self, other: &Self) -> bool {
        *self == Self { generation: self.generation.clone(), model: self.model.clone(), ..other.clone() }
    }

    /// Every file by which the two models differ.
    fn differences(&self, other: &Self) -> Vec<String> {
        let mut all = differences(&self.identity.weights, &other.identity.weights);
        all.extend(differences(&self.identity.files, &other.identity.files));
        all
    }
}

/// Another string each time.
fn generation() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let hash = Sha256::digest(format!("{now} {}", std::process::id()));
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
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
        let described = |e: serde_json::Error| {
            UserError::new(format!("{} does not describe statistics: {e}", path.display()))
                .hint("collect them again, into a new folder")
        };
        let stored: Value = serde_json::from_str(&text).map_err(described)?;
        match stored["format"].as_u64() {
            Some(format) if format < u64::from(FORMAT) => user_bail!(
                "{} has format {format}, which does not record the config.json and the tokenizer it was made with", path.display();
                "collect the statistics again, into a new folder"
            ),
            Some(format) if format > u64::from(FORMAT) => user_bail!(
                "{} has format {format}, this version of softlm reads {FORMAT}", path.display();
                "collect the statistics again, into a new folder"
            ),
            _ => {}
        }
        let origin: Origin = serde_json::from_value(stored).map_err(described)?;
        Ok(Some(Self { dir: dir.to_path_buf(), origin }))
    }

    /// Fails if the statistics belong to another model than `origin` speaks of, or to the same weights under other
    /// settings.
    pub fn check_model(&self, origin: &Origin) -> Result<()> {
        if let Some(difference) = self.origin.differences(origin).first() {
            user_bail!(
                "{} was made from {}, from which {} differs: {difference}", self.dir.display(), self.origin.model, origin.model;
                "collect statistics of this model, or name another folder"
            );
        }
        Ok(())
    }

    /// Starts a new folder.
    pub fn create(dir: &Path, origin: Origin) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let json = serde_json::to_string_pretty(&origin)?;
        write_file(&dir.join("stats.json"), (json + "\n").as_bytes())?;
        Ok(Self { dir: dir.to_path_buf(), origin })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
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
        if let Some(difference) = origin.differences(&other.origin).first() {
            user_bail!(
                "{} was made from {}, {} from {}: {difference}",
                first.dir.display(), origin.model, other.dir.display(), other.origin.model;
                "only statistics of the same model, with the same config.json and tokenizer, add up"
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
    origin.generation = generation();
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
