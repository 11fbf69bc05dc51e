//! What stands behind an encoder in a folder of sentence-transformers: how the states of a text's tokens become its embedding,
//! and how two embeddings are compared.

mod dense;
mod pooling;

pub use self::pooling::Pooling;

use self::dense::{Dense, dense};
use self::pooling::Pooled;
use crate::checkpoint::Source;
use crate::user_bail;
use anyhow::Result;
use candle_core::Tensor;
use serde_json::{Map, Value};

const LIST: &str = "modules.json";
const SETTINGS: &str = "config_sentence_transformers.json";
/// Where the pooling is in folders without a list.
const POOLING: &str = "1_Pooling";

/// How alike two embeddings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Similarity {
    Cosine,
    Dot,
    Euclidean,
    Manhattan,
}

impl Similarity {
    const ALL: [(Similarity, &'static str, &'static str); 4] = [
        (Similarity::Cosine, "cosine", "cosine"),
        (Similarity::Dot, "dot", "dot product"),
        (Similarity::Euclidean, "euclidean", "Euclidean distance"),
        (Similarity::Manhattan, "manhattan", "Manhattan distance"),
    ];
}

/// A step behind the pooling.
#[derive(Debug, Clone)]
enum Step {
    Dense(Dense),
    Normalize,
}

/// The modules behind an encoder.
#[derive(Debug, Clone)]
pub struct Modules {
    poolings: Vec<Pooling>,
    steps: Vec<Step>,
    similarity: Similarity,
    prompt: String,
}

impl Default for Modules {
    fn default() -> Self {
        Pooling::Mean.into()
    }
}

impl From<Pooling> for Modules {
    fn from(pooling: Pooling) -> Self {
        Self { poolings: vec![pooling], steps: Vec::new(), similarity: Similarity::Cosine, prompt: String::new() }
    }
}

impl Modules {
    /// Those of a folder: what its `modules.json` lists; without one its pooling, or the mean.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) naming the module or setting that is not supported or damaged.
    pub fn read(source: &Source) -> Result<Self> {
        let Some(bytes) = source.side_file(LIST)? else {
            let settings = json(source, &format!("{POOLING}/config.json"))?;
            let pooling = settings.map(|settings| Pooled::read(POOLING, &settings)).transpose()?;
            return Ok(pooling.map_or_else(Self::default, |pooled| Self { poolings: pooled.modes, ..Self::default() }));
        };
        let list: Vec<Map<String, Value>> = match serde_json::from_slice(&bytes) {
            Ok(list) => list,
            Err(error) => user_bail!(
                "{LIST} of {} is not a list of modules: {error}", source.label();
                "get the model's original {LIST}"
            ),
        };
        let (mut pooled, mut steps, mut width) = (None::<Pooled>, Vec::new(), 0);
        for (i, module) in list.iter().enumerate() {
            let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
            let (path, full) = (text("path"), text("type"));
            let kind = full.rsplit('.').next().unwrap_or_default();
            let place = format!("{path}/config.json");
            match kind {
                "Transformer" if i == 0 => {
                    if !path.is_empty() {
                        user_bail!(
                            "{LIST} of {} has its transformer in the folder {path}", source.label();
                            "give the folder {path}; what stands behind it is not measured then"
                        );
                    }
                }
                "Pooling" if i == 1 => {
                    let found = Pooled::read(path, &needed(source, &place)?)?;
                    width = found.width * found.modes.len();
                    pooled = Some(found);
                }
                "Dense" if pooled.is_some() => {
                    let dense = dense(source, path, &needed(source, &place)?, width)?;
                    width = dense.out();
                    steps.push(Step::Dense(dense));
                }
                "Normalize" if pooled.is_some() => steps.push(Step::Normalize),
                "Dropout" if pooled.is_some() => {}
                _ => user_bail!(
                    "{LIST} of {} lists the module {full} in place {i}, which is not supported", source.label();
                    "supported are Transformer, then Pooling, then any of Dense, Normalize and Dropout"
                ),
            }
        }
        let Some(pooled) = pooled else {
            user_bail!("{LIST} of {} lists no Pooling", source.label(); "get the model's original {LIST}")
        };
        let (similarity, prompt) = settings(source)?;
        if !prompt.is_empty() && !pooled.with_prompt {
            user_bail!(
                "{SETTINGS} of {} puts a prompt in front of every text, which the pooling leaves out (include_prompt)",
                source.label();
                "set default_prompt_name to null: texts are embedded without a prompt then"
            );
        }
        Ok(Self { poolings: pooled.modes, steps, similarity, prompt })
    }

    /// How states become an embedding: `mean`, `first+mean`, `mean, Dense 512 (Tanh)`.
    pub fn name(&self) -> String {
        let poolings: Vec<&str> = self.poolings.iter().map(|pooling| pooling.name()).collect();
        let mut name = poolings.join("+");
        for step in &self.steps {
            if let Step::Dense(dense) = step {
                name += &format!(", {}", dense.name());
            }
        }
        name
    }

    /// How embeddings are compared: `cosine of mean-pooled states`.
    pub fn comparison(&self) -> String {
        let name = self.name();
        let (poolings, behind) = name.split_at(name.find(',').unwrap_or(name.len()));
        let similarity = Similarity::ALL.iter().find(|(known, ..)| *known == self.similarity).map_or("", |s| s.2);
        format!("{similarity} of {poolings}-pooled states{behind}")
    }

    /// A text as it is embedded: with the prompt that the folder puts in front.
    pub fn prompted(&self, text: &str) -> String {
        format!("{}{text}", self.prompt)
    }

    /// The embedding of a text's states (t, hidden).
    pub fn embed(&self, states: &Tensor) -> Result<Vec<f64>> {
        let states: Vec<Vec<f32>> = states.to_vec2()?;
        let pooled: Vec<f64> = self.poolings.iter().flat_map(|pooling| pooling.of(&states)).collect();
        Ok(self.steps.iter().fold(pooled, |x, step| match step {
            Step::Dense(dense) => dense.of(&x),
            Step::Normalize => {
                let norm = dot(&x, &x).sqrt().max(1e-12);
                x.iter().map(|x| x / norm).collect()
            }
        }))
    }

    /// How alike two embeddings are; distances count as negative.
    pub fn similarity(&self, a: &[f64], b: &[f64]) -> f64 {
        let differences = || a.iter().zip(b).map(|(a, b)| a - b);
        match self.similarity {
            Similarity::Cosine => cosine(a, b),
            Similarity::Dot => dot(a, b),
            Similarity::Euclidean => -differences().map(|d| d * d).sum::<f64>().sqrt(),
            Similarity::Manhattan => -differences().map(f64::abs).sum::<f64>(),
        }
    }

    /// Fails if the modules are for states of another width.
    pub(super) fn check(&self, hidden: usize) -> Result<()> {
        let width = hidden * self.poolings.len();
        let first = self.steps.iter().find_map(|step| if let Step::Dense(dense) = step { Some(dense) } else { None });
        if let Some(dense) = first.filter(|dense| dense.input != width) {
            user_bail!(
                "a Dense module of {LIST} takes {} numbers, but the pooled states have {width}", dense.input;
                "the folder's modules belong to another model"
            );
        }
        Ok(())
    }
}

fn dot<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a.into() * b.into()).sum()
}

/// The cosine of the angle between two vectors; 0 where one is zero.
pub(super) fn cosine<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> f64 {
    let size = (dot(a, a) * dot(b, b)).sqrt();
    if size > 0.0 { dot(a, b) / size } else { 0.0 }
}

/// How embeddings are compared, and what is put in front of every text.
fn settings(source: &Source) -> Result<(Similarity, String)> {
    let settings = json(source, SETTINGS)?.unwrap_or_default();
    let similarity = match settings.get("similarity_fn_name") {
        None | Some(Value::Null) => Similarity::Cosine,
        Some(name) => match Similarity::ALL.iter().find(|(_, known, _)| name.as_str() == Some(known)) {
            Some((similarity, ..)) => *similarity,
            None => user_bail!(
                "{SETTINGS} of {} has the similarity_fn_name {name}, which is not known", source.label();
                "known are {}", Similarity::ALL.map(|(_, name, _)| name).join(", ")
            ),
        },
    };
    let prompt = match settings.get("default_prompt_name").and_then(Value::as_str) {
        None => String::new(),
        Some(name) => match settings.get("prompts").and_then(|prompts| prompts.get(name)) {
            Some(Value::String(prompt)) => prompt.clone(),
            Some(Value::Null) => String::new(),
            _ => user_bail!(
                "{SETTINGS} of {} has the default_prompt_name {name:?}, which is not among its prompts", source.label();
                "correct it, or set it to null"
            ),
        },
    };
    Ok((similarity, prompt))
}

fn needed(source: &Source, name: &str) -> Result<Map<String, Value>> {
    match json(source, name)? {
        Some(settings) => Ok(settings),
        None => {
            user_bail!("{LIST} of {} needs {name}, which is not there", source.label(); "download the whole repository")
        }
    }
}

fn json(source: &Source, name: &str) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = source.side_file(name)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(settings) => Ok(Some(settings)),
        Err(error) => {
            user_bail!("{name} of {} is damaged: {error}", source.label(); "get the model's original {name}")
        }
    }
}
