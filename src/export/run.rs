//! From an output to an export: check, write beside, publish.

use super::Form;
use super::card::{Facts, card};
use super::description::{FACTORS_FILE, factors_json};
use super::linears::{Held, held};
use super::plan::Plan;
use super::target::{self, Target};
use crate::checkpoint::{Dtype, Origin, Section, Source, family_config, free_space, write_computed, write_file};
use crate::hash::Sha256;
use crate::job::{Copied, EXPORT_FINGERPRINT, EXPORT_MARK, Job};
use crate::model::{Description, Model, verify};
use crate::progress::Progress;
use crate::recipe::StoredType;
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::Device;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What to write, and how.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Which of the three forms.
    pub form: Form,
    /// The new folder.
    pub output: PathBuf,
    /// Type of all weights; with `Auto` everything keeps its own, and a product has that of its factors.
    pub dtype: StoredType,
    /// Largest weight file.
    pub max_shard_bytes: u64,
    /// Whether an earlier export or output in the same place is replaced.
    pub force: bool,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Exported {
    /// Which form.
    pub form: Form,
    /// Tensors in it.
    pub tensors: usize,
    /// Those that were computed: products, matrices put together again, and what belongs to them.
    pub computed: usize,
    /// Bytes of all tensors of the output it was made from.
    pub bytes_before: u64,
    /// Bytes of all tensors of the export.
    pub bytes: u64,
    /// Things the user should know, each a sentence without its full stop.
    pub notes: Vec<String>,
}

/// Writes the output `source` in another form. The new folder appears whole or not at all.
///
/// # Errors
/// A [`UserError`](crate::error::UserError) for a source that is not an output of softlm or is damaged, for a form that its
/// shapes or biases do not allow, for a value that does not fit the type, and for a place that cannot be written.
pub fn export(mut source: Source, options: &ExportOptions, progress: &dyn Progress) -> Result<Exported> {
    if Section::of(source.config()).is_none() {
        let label = source.label();
        user_bail!(
            "{label} is not an output of softlm: there are no factors to export";
            "name a folder that `softlm compress` wrote; a plain checkpoint needs no export"
        );
    }
    keep_apart(&source, &options.output)?;
    let config = family_config(source.config());
    let have = Description::new(&mut source, &config)?;
    let held = held(&source, &have)?;
    let target = match options.form {
        Form::Dense => Some(target::dense(&mut source, &have, &held)?),
        Form::Plain => Some(target::plain(&mut source, &have, &held)?),
        Form::Factors => None,
    };
    let wanted = wanted(options.dtype);
    let notes = target.as_ref().map(notes).unwrap_or_default();
    let (plan, config) = match target {
        Some(Target { config, pairs, .. }) => (Plan::plain(&source, pairs, wanted)?, Some(with_dtype(config, wanted))),
        None => (Plan::copies(&source, wanted)?, None),
    };
    let (fingerprint, copied) = (fingerprint(&source, options)?, Copied::of(&source)?);
    let work = Work { source: &source, have: &have, held: &held, plan: &plan, copied, fingerprint, options, progress };
    let output = &options.output;
    if !options.force && Job::is_export(output, &work.fingerprint) {
        Job::clean_up(output, &work.fingerprint)?;
        progress.note(&format!("{} was already written by the same command: nothing was done", output.display()));
        return Ok(work.exported(notes));
    }
    work.copied.announce_code(&source, progress);
    let job = Job::open(output, &work.fingerprint, options.force)?;
    let made = job.assembly().and_then(|dir| work.write(&dir, config, &notes));
    if made.is_err() {
        // Nothing of it can be continued. The error that is on its way matters more than one in here.
        let _ = job.discard_assembly();
    }
    made?;
    let mut notes = notes;
    notes.extend(job.publish()?.note(output));
    Ok(work.exported(notes))
}

/// Of everything that decides the bytes of an export.
fn fingerprint(source: &Source, options: &ExportOptions) -> Result<String> {
    let mut hash = Sha256::new();
    let (form, dtype, shard) = (options.form.name(), options.dtype, options.max_shard_bytes);
    hash.update(format!("{} {form} {dtype:?} {shard} {}", env!("CARGO_PKG_VERSION"), source.label()));
    hash.update(source.identity()?.fingerprint());
    Ok(hash.hex())
}

/// Fails when one of the two folders lies in the other.
fn keep_apart(source: &Source, output: &Path) -> Result<()> {
    let Some(input) = source.dir().and_then(|dir| dir.canonicalize().ok()) else { return Ok(()) };
    // The output need not exist, its parent does.
    let place = output.canonicalize().ok().or_else(|| {
        let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(parent.canonicalize().ok()?.join(output.file_name()?))
    });
    let Some(place) = place else { return Ok(()) };
    if place.starts_with(&input) || input.starts_with(&place) {
        let how = match place == input {
            true => "is the folder",
            false if place.starts_with(&input) => "lies in the folder",
            false => "holds the folder",
        };
        user_bail!("{} {how} that is exported, {}", output.display(), source.label(); "choose another -o");
    }
    Ok(())
}

fn wanted(dtype: StoredType) -> Option<Dtype> {
    match dtype {
        StoredType::Auto => None,
        StoredType::F32 => Some(Dtype::F32),
        StoredType::F16 => Some(Dtype::F16),
        StoredType::Bf16 => Some(Dtype::BF16),
    }
}

/// The config with the type of the weights, under the key that it has for that.
fn with_dtype(mut config: Map<String, Value>, dtype: Option<Dtype>) -> Map<String, Value> {
    let name = match dtype {
        Some(Dtype::F32) => "float32",
        Some(Dtype::F16) => "float16",
        Some(Dtype::BF16) => "bfloat16",
        _ => return config,
    };
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(key.to_string(), json!(name));
    config
}

fn notes(target: &Target) -> Vec<String> {
    let mut notes = Vec::new();
    let put_back = target.pairs.iter().filter(|pair| pair.is_narrower()).count();
    if put_back > 0 {
        notes.push(format!("the channels and dimensions that were removed are back as zeros, in {put_back} linears"));
    }
    if !target.bias_keys.is_empty() {
        let keys: Vec<String> = target.bias_keys.iter().map(|key| format!("`{key}`")).collect();
        let empty = target.pairs.iter().filter(|pair| pair.want.bias && !pair.have.spec.bias).count();
        notes.push(format!(
            "config.json has {} on, for biases that the base does without; {empty} linears that have none got zeros",
            keys.join(" and ")
        ));
    }
    notes
}

/// Everything that is known before anything is written.
struct Work<'a> {
    source: &'a Source,
    have: &'a Description,
    held: &'a [Held],
    plan: &'a Plan,
    copied: Copied,
    fingerprint: String,
    options: &'a ExportOptions,
    progress: &'a dyn Progress,
}

impl Work<'_> {
    /// Writes the whole folder; `config` is that of a plain checkpoint.
    fn write(&self, dir: &Path, config: Option<Map<String, Value>>, notes: &[String]) -> Result<()> {
        let Self { source, plan, options, progress, .. } = self;
        let bytes = plan.bytes().saturating_add(self.copied.bytes);
        let free = free_space(dir)?;
        if bytes > free {
            user_bail!(
                "{} has {free} bytes free, the export needs {bytes}", dir.display();
                "make room, or choose another -o"
            );
        }
        progress.stage("verifying", 1);
        // Rows that are only looked up are copied as they are.
        if let Some(problem) = verify(source, None, Some(0))?.problems.first() {
            let label = source.label();
            user_bail!(
                "{label} is damaged: {}", problem.trim_end_matches('.');
                "`softlm verify {label}` names everything that is wrong; compress again"
            );
        }
        let entries = plan.entries(source);
        let made = entries.iter().filter(|entry| matches!(entry.from, Origin::Computed)).count();
        progress.stage("exporting", made as u64);
        let metadata = BTreeMap::from([
            (EXPORT_MARK.to_string(), options.form.name().to_string()),
            (EXPORT_FINGERPRINT.to_string(), self.fingerprint.clone()),
            self.copied.mark(),
        ]);
        let compute = |name: &str, write: &mut dyn FnMut(&[u8]) -> Result<()>| {
            plan.compute(source, name, write).with_context(|| format!("exporting {name}"))?;
            progress.step(1)
        };
        write_computed(dir, &entries, source, options.max_shard_bytes, &metadata, &mut |_| {}, &compute)?;
        self.copied.copy(source, dir)?;
        self.describe(dir, config, notes)
    }

    /// What is said of it.
    fn exported(&self, notes: Vec<String>) -> Exported {
        let Self { source, plan, options, .. } = self;
        Exported {
            form: options.form,
            tensors: plan.entries(source).len(),
            computed: plan.computed(),
            bytes_before: source.names().filter_map(|name| source.info(name)).map(|info| info.bytes() as u64).sum(),
            bytes: plan.bytes(),
            notes,
        }
    }

    /// The card, and config.json or the description of the factors.
    fn describe(&self, dir: &Path, config: Option<Map<String, Value>>, notes: &[String]) -> Result<()> {
        let Self { source, have, held, plan, options, .. } = self;
        let dtype = plan.main_type();
        let facts = Facts { form: options.form, dtype, family: have.family(), output: have.output(), notes };
        write_file(&dir.join("README.md"), card(source, &facts)?.as_bytes())?;
        let Some(config) = config else {
            let files = files(dir)?;
            let file_of = |name: &str| files.get(name).cloned().unwrap_or_else(|| "model.safetensors".to_string());
            return write_file(&dir.join(FACTORS_FILE), &factors_json(source, have, held, plan, file_of)?);
        };
        write_file(&dir.join("config.json"), (serde_json::to_string_pretty(&config)? + "\n").as_bytes())?;
        // Names and shapes of every tensor against the config, as everybody will read them.
        let load = || Model::load(Source::open(dir)?, &Device::Cpu);
        load().context("the export does not load, which is a bug in softlm").map(drop)
    }
}

/// Which shard holds each tensor; empty where there is one file.
fn files(dir: &Path) -> Result<BTreeMap<String, String>> {
    let path = dir.join("model.safetensors.index.json");
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let index: Value = serde_json::from_slice(&fs::read(&path)?)?;
    Ok(serde_json::from_value(index["weight_map"].clone())?)
}
