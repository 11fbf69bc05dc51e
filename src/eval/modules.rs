//! What stands behind an encoder in a folder of sentence-transformers: how the states of a text's tokens become its embedding,
//! and how two embeddings are compared.

use crate::checkpoint::Source;
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::{Tensor, cpu::erf::erf_f64};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

const LIST: &str = "modules.json";
const SETTINGS: &str = "config_sentence_transformers.json";
/// Where the pooling is in folders without a list.
const POOLING: &str = "1_Pooling";

/// How the states of a text become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The state at its first token.
    First,
    /// The largest value over its tokens, in each place.
    Max,
    /// The mean over all its tokens, special ones included.
    Mean,
    /// The sum over all its tokens by the square root of their number.
    MeanSqrtLen,
    /// The mean over its tokens, weighted 1, 2, 3, …
    WeightedMean,
    /// The state at its last token.
    Last,
}

impl Pooling {
    /// All of them in the order in which several are joined: name here, name and older key in a folder.
    const ALL: [(Pooling, &'static str, &'static str, &'static str); 6] = [
        (Pooling::First, "first", "cls", "pooling_mode_cls_token"),
        (Pooling::Max, "max", "max", "pooling_mode_max_tokens"),
        (Pooling::Mean, "mean", "mean", "pooling_mode_mean_tokens"),
        (Pooling::MeanSqrtLen, "sqrt-length", "mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
        (Pooling::WeightedMean, "weighted-mean", "weightedmean", "pooling_mode_weightedmean_tokens"),
        (Pooling::Last, "last", "lasttoken", "pooling_mode_lasttoken"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(pooling, ..)| *pooling == self).map_or("", |(_, name, ..)| name)
    }

    /// The vector of states, one row per token.
    fn of(self, states: &[Vec<f32>]) -> Vec<f64> {
        let count = states.len() as f64;
        let width = states.first().map_or(0, Vec::len);
        let sum = |weight: &dyn Fn(usize) -> f64| -> Vec<f64> {
            let at = |j: usize| states.iter().enumerate().map(|(i, state)| weight(i) * f64::from(state[j])).sum();
            (0..width).map(at).collect()
        };
        let row = |row: Option<&Vec<f32>>| row.map_or(Vec::new(), |row| row.iter().map(|&x| f64::from(x)).collect());
        match self {
            Self::First => row(states.first()),
            Self::Last => row(states.last()),
            Self::Max => {
                let at = |j: usize| states.iter().map(|state| f64::from(state[j])).fold(f64::NEG_INFINITY, f64::max);
                (0..width).map(at).collect()
            }
            Self::Mean => sum(&|_| 1.0 / count),
            Self::MeanSqrtLen => sum(&|_| 1.0 / count.sqrt()),
            Self::WeightedMean => sum(&|i| (i + 1) as f64 / (count * (count + 1.0) / 2.0)),
        }
    }
}

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

/// act(W x + b), plus what was before if it says so.
#[derive(Debug, Clone)]
struct Dense {
    /// Rows of `input` numbers.
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
    residual: Option<Residual>,
    input: usize,
    activation: Activation,
}

#[derive(Debug, Clone)]
enum Residual {
    Same,
    Projected(Vec<f64>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activation {
    Identity,
    Tanh,
    Relu,
    Gelu,
    Sigmoid,
    Silu,
}

impl Activation {
    const ALL: [(Activation, &'static str); 6] = [
        (Activation::Identity, "Identity"),
        (Activation::Tanh, "Tanh"),
        (Activation::Relu, "ReLU"),
        (Activation::Gelu, "GELU"),
        (Activation::Sigmoid, "Sigmoid"),
        (Activation::Silu, "SiLU"),
    ];

    fn of(self, x: f64) -> f64 {
        match self {
            Self::Identity => x,
            Self::Tanh => x.tanh(),
            Self::Relu => x.max(0.0),
            Self::Gelu => x * 0.5 * (1.0 + erf_f64(x / std::f64::consts::SQRT_2)),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Silu => x / (1.0 + (-x).exp()),
        }
    }
}

impl Dense {
    fn of(&self, x: &[f64]) -> Vec<f64> {
        let times = |weight: &[f64]| -> Vec<f64> {
            weight.chunks_exact(self.input).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        };
        let mut y = times(&self.weight);
        for (y, bias) in y.iter_mut().zip(self.bias.iter().flatten()) {
            *y += bias;
        }
        y.iter_mut().for_each(|y| *y = self.activation.of(*y));
        let kept = match &self.residual {
            None => return y,
            Some(Residual::Same) => x.to_vec(),
            Some(Residual::Projected(weight)) => times(weight),
        };
        y.iter().zip(kept).map(|(y, x)| y + x).collect()
    }
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
                    width = dense.weight.len() / dense.input;
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
                let activation =
                    Activation::ALL.iter().find(|(known, _)| *known == dense.activation).map_or("", |a| a.1);
                name += &format!(", Dense {} ({activation})", dense.weight.len() / dense.input);
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

/// The settings of a Pooling module.
struct Pooled {
    modes: Vec<Pooling>,
    width: usize,
    with_prompt: bool,
}

impl Pooled {
    fn read(path: &str, settings: &Map<String, Value>) -> Result<Self> {
        const NAMES: [&str; 4] = ["word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"];
        let mut modes = Vec::new();
        let known = |key: &str| NAMES.contains(&key) || Pooling::ALL.iter().any(|(.., older)| *older == key);
        for (key, value) in settings.iter().filter(|(key, _)| !known(key)) {
            if !matches!(value, Value::Null | Value::Bool(false)) {
                user_bail!("{path}/config.json asks for `{key}`, which is not supported"; "take it out to measure without it");
            }
        }
        let named: Vec<&Value> = match settings.get("pooling_mode") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(modes)) => modes.iter().collect(),
            Some(mode) => vec![mode],
        };
        for mode in named {
            match Pooling::ALL.iter().find(|(_, _, name, _)| mode.as_str() == Some(name)) {
                Some((pooling, ..)) => modes.push(*pooling),
                None => user_bail!(
                    "{path}/config.json asks for the pooling mode {mode}, which is not known";
                    "known are {}", Pooling::ALL.map(|(_, _, name, _)| name).join(", ")
                ),
            }
        }
        if modes.is_empty() {
            let on = |key: &str| settings.get(key).and_then(Value::as_bool).unwrap_or(false);
            modes = Pooling::ALL.iter().filter(|(.., older)| on(older)).map(|(pooling, ..)| *pooling).collect();
        }
        if modes.is_empty() {
            modes.push(Pooling::Mean);
        }
        let number = |key: &str| settings.get(key).and_then(Value::as_u64);
        let width = number("embedding_dimension").or(number("word_embedding_dimension")).unwrap_or(0) as usize;
        let with_prompt = settings.get("include_prompt").and_then(Value::as_bool).unwrap_or(true);
        Ok(Self { modes, width, with_prompt })
    }
}

fn dense(source: &Source, path: &str, settings: &Map<String, Value>, width: usize) -> Result<Dense> {
    const NAMES: [&str; 7] = [
        "in_features",
        "out_features",
        "bias",
        "activation_function",
        "use_residual",
        "module_input_name",
        "module_output_name",
    ];
    let place = format!("{path}/config.json");
    if let Some(key) = settings.keys().find(|key| !NAMES.contains(&key.as_str())) {
        user_bail!("{place} asks for `{key}`, which is not supported"; "take it out to measure without it");
    }
    for key in ["module_input_name", "module_output_name"] {
        if let Some(name) = settings.get(key).and_then(Value::as_str).filter(|name| *name != "sentence_embedding") {
            user_bail!("{place} has {key} {name:?}: only sentence_embedding is supported"; "measure the model without this module");
        }
    }
    let size = |key: &str| match settings.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()) {
        Some(size) if size > 0 => Ok(size),
        _ => user_bail!("{place} has no {key}"; "get the model's original {place}"),
    };
    let (input, out) = (size("in_features")?, size("out_features")?);
    if width > 0 && input != width {
        user_bail!("{place} takes {input} numbers, but {width} come in"; "the modules of {LIST} belong to different models");
    }
    let on = |key: &str, default: bool| settings.get(key).and_then(Value::as_bool).unwrap_or(default);
    let full =
        settings.get("activation_function").and_then(Value::as_str).unwrap_or("torch.nn.modules.activation.Tanh");
    let name = full.rsplit('.').next().unwrap_or_default();
    let known = Activation::ALL.iter().find(|(_, known)| *known == name && full.starts_with("torch.nn."));
    let Some((activation, _)) = known else {
        user_bail!(
            "{place} has the activation {full}, which is not supported";
            "supported are torch's {}", Activation::ALL.map(|(_, name)| name).join(", ")
        );
    };
    let file = format!("{path}/model.safetensors");
    let Some(bytes) = source.side_file(&file)? else {
        let pickled = format!("{path}/pytorch_model.bin");
        if source.stored_file(&pickled)?.is_some() {
            user_bail!(
                "{} has {pickled}, a pickle, which can run code when read; it was not opened", source.label();
                "save the model again with sentence-transformers: SentenceTransformer(DIR).save_pretrained(DIR)"
            );
        }
        user_bail!("{} has no {file}", source.label(); "download the whole repository")
    };
    let tensors = match SafeTensors::deserialize(&bytes) {
        Ok(tensors) => tensors,
        Err(error) => user_bail!("{file} of {} is damaged: {error}", source.label(); "download or copy it again"),
    };
    let read = |name: &str, shape: &[usize]| numbers(&tensors, &file, name, shape);
    let residual = match (on("use_residual", false), input == out) {
        (false, _) => None,
        (true, true) => Some(Residual::Same),
        (true, false) => Some(Residual::Projected(read("residual.weight", &[out, input])?)),
    };
    let bias = if on("bias", true) { Some(read("linear.bias", &[out])?) } else { None };
    let weight = read("linear.weight", &[out, input])?;
    Ok(Dense { weight, bias, residual, input, activation: *activation })
}

fn numbers(tensors: &SafeTensors, file: &str, name: &str, shape: &[usize]) -> Result<Vec<f64>> {
    let Ok(tensor) = tensors.tensor(name) else {
        user_bail!("{file} has no tensor {name}"; "download or copy it again");
    };
    if tensor.shape() != shape {
        user_bail!(
            "tensor {name} of {file} has shape {:?}, but {shape:?} is expected", tensor.shape();
            "the file belongs to another model than the config.json beside it"
        );
    }
    let data = tensor.data();
    let found: Vec<f64> = match tensor.dtype() {
        Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::F32 => data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f64()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f64()).collect(),
        other => user_bail!("tensor {name} of {file} is stored as {other}"; "convert it to F32"),
    };
    if found.iter().any(|x| !x.is_finite()) {
        user_bail!("tensor {name} of {file} holds values that are not finite"; "get a sound copy of the file");
    }
    Ok(found)
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
    serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{name} of {} is damaged", source.label()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn poolings_are_those_of_sentence_transformers() {
        let states = Tensor::new(&[[1f32, -4.0], [3.0, 2.0], [5.0, 8.0], [7.0, -2.0]], &Device::Cpu).unwrap();
        for (pooling, expected) in [
            (Pooling::First, [1.0, -4.0]),
            (Pooling::Max, [7.0, 8.0]),
            (Pooling::Mean, [4.0, 1.0]),
            (Pooling::MeanSqrtLen, [8.0, 2.0]),
            (Pooling::WeightedMean, [5.0, 1.6]),
            (Pooling::Last, [7.0, -2.0]),
        ] {
            let found = Modules::from(pooling).embed(&states).unwrap();
            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(found.len() == 2 && off < 1e-12, "{pooling:?}: {found:?}");
        }
    }

    #[test]
    fn settings_of_a_pooling_are_read_in_either_form() {
        let read =
            |settings: Value| Pooled::read("1_Pooling", settings.as_object().unwrap()).map(|pooled| pooled.modes);
        use serde_json::json;
        let older =
            json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true, "pooling_mode_max_tokens": false});
        assert_eq!(read(older).unwrap(), [Pooling::First, Pooling::Mean]);
        assert_eq!(read(json!({"pooling_mode": "lasttoken"})).unwrap(), [Pooling::Last]);
        assert_eq!(read(json!({"pooling_mode": ["mean", "cls"]})).unwrap(), [Pooling::Mean, Pooling::First]);
        assert_eq!(read(json!({})).unwrap(), [Pooling::Mean]);
        assert!(read(json!({"pooling_mode": "sum"})).unwrap_err().to_string().contains("\"sum\""));
        assert!(read(json!({"pooling_mode_new": true})).unwrap_err().to_string().contains("pooling_mode_new"));
    }

    #[test]
    fn activations_are_those_of_torch() {
        let at = |x: f64| Activation::ALL.map(|(activation, _)| activation.of(x));
        let expected = [-0.7, -0.6043677771171635, 0.0, -0.1693745565561511, 0.3318122278318339, -0.23226855948228373];
        for (found, expected) in at(-0.7).into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} for {expected}");
        }
    }

    #[test]
    fn dense_is_a_linear_an_activation_and_what_was_before() {
        let dense = Dense {
            weight: vec![1.0, 2.0, -1.0, 0.5],
            bias: Some(vec![0.5, 0.0]),
            residual: Some(Residual::Same),
            input: 2,
            activation: Activation::Relu,
        };
        assert_eq!(dense.of(&[1.0, 1.0]), [4.5, 1.0]);
        let dense = Dense { residual: Some(Residual::Projected(vec![0.0, 1.0, 1.0, 0.0])), bias: None, ..dense };
        assert_eq!(dense.of(&[1.0, 2.0]), [7.0, 1.0]);
    }
}
