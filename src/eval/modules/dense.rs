//! A linear layer behind the pooling.

use super::LIST;
use crate::checkpoint::{Source, decode, is_float};
use crate::user_bail;
use anyhow::Result;
use candle_core::cpu::erf::erf_f64;
use safetensors::SafeTensors;
use serde_json::{Map, Value};

/// act(W x + b), plus what was before if it says so.
#[derive(Debug, Clone)]
pub(super) struct Dense {
    /// Rows of `input` numbers.
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
    residual: Option<Residual>,
    pub input: usize,
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
    /// Numbers that come out.
    pub fn out(&self) -> usize {
        self.weight.len() / self.input
    }

    /// `Dense 512 (Tanh)`
    pub fn name(&self) -> String {
        let activation =
            Activation::ALL.iter().find(|(known, _)| *known == self.activation).map_or("", |(_, name)| name);
        format!("Dense {} ({activation})", self.out())
    }

    pub fn of(&self, x: &[f64]) -> Vec<f64> {
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

/// The module in the folder `path`, into which `width` numbers come, if that is known.
pub(super) fn dense(source: &Source, path: &str, settings: &Map<String, Value>, width: usize) -> Result<Dense> {
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
        if source.has_file(&pickled)? {
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
    if !is_float(tensor.dtype()) {
        user_bail!("tensor {name} of {file} is stored as {}", tensor.dtype(); "convert it to F32");
    }
    let found: Vec<f64> = decode(tensor.dtype(), tensor.data());
    if found.iter().any(|x| !x.is_finite()) {
        user_bail!("tensor {name} of {file} holds values that are not finite"; "get a sound copy of the file");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

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
