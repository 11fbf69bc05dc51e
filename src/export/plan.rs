//! Which tensors an export has, and where each comes from.

use super::linears::{self, Pair, bias_name, factors, own_bias, own_weight};
use crate::checkpoint::{Dtype, Entry, Origin, Source, decode, is_float};
use crate::user_bail;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a stored tensor that are converted at a time.
const PIECE: usize = 4 << 20;

/// Everything that is written.
pub(super) struct Plan {
    /// By name.
    tensors: BTreeMap<String, Planned>,
    pairs: Vec<Pair>,
}

struct Planned {
    dtype: Dtype,
    shape: Vec<usize>,
    content: Content,
}

impl Planned {
    fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8) as u64
    }
}

enum Content {
    /// The stored tensor of the same name.
    Stored,
    /// The weights of these linears.
    Weights(Vec<usize>),
    /// Their biases.
    Biases(Vec<usize>),
}

impl Plan {
    /// All tensors of the source under their names, in `dtype` where that is given.
    pub fn copies(source: &Source, dtype: Option<Dtype>) -> Result<Self> {
        let mut plan = Self { tensors: BTreeMap::new(), pairs: Vec::new() };
        for name in source.names() {
            plan.copy(source, name, dtype)?;
        }
        Ok(plan)
    }

    /// The tensors of a plain checkpoint: every linear dense and where its family has it. Without `dtype` a product has the
    /// type of its factors.
    pub fn plain(source: &Source, pairs: Vec<Pair>, dtype: Option<Dtype>) -> Result<Self> {
        let mut plan = Self { tensors: BTreeMap::new(), pairs };
        let mut matrices: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (i, pair) in plan.pairs.iter().enumerate() {
            matrices.entry(pair.want.weight_name()).or_default().push(i);
        }
        let mut replaced = BTreeSet::new();
        for (name, parts) in &matrices {
            replaced.extend(plan.matrix(source, name, parts, dtype)?);
        }
        for name in source.names().filter(|name| !replaced.contains(*name)) {
            plan.copy(source, name, dtype)?;
        }
        Ok(plan)
    }

    /// How many tensors are made of others: products, matrices put together again, and their biases.
    pub fn computed(&self) -> usize {
        self.tensors.values().filter(|tensor| !matches!(tensor.content, Content::Stored)).count()
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(Planned::bytes).sum()
    }

    /// The type that most of them are of.
    pub fn main_type(&self) -> String {
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for tensor in self.tensors.values() {
            *sums.entry(tensor.dtype.to_string()).or_default() += tensor.bytes();
        }
        sums.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(dtype, _)| dtype).unwrap_or_default()
    }

    /// Names, types and shapes of what is written.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Dtype, &[usize])> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.dtype, tensor.shape.as_slice()))
    }

    /// For the writer. Bytes that are stored already as they are wanted are copied.
    pub fn entries(&self, source: &Source) -> Vec<Entry> {
        let entry = |(name, tensor): (&String, &Planned)| {
            let same = source.info(name).is_some_and(|info| info.dtype == tensor.dtype);
            let from = match tensor.content {
                Content::Stored if same => Origin::Source(name.clone()),
                _ => Origin::Computed,
            };
            Entry { name: name.clone(), dtype: tensor.dtype, shape: tensor.shape.clone(), from }
        };
        self.tensors.iter().map(entry).collect()
    }

    /// Makes the data of one of [`Plan::entries`].
    pub fn compute(&self, source: &Source, name: &str, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let tensor = self.tensors.get(name).with_context(|| format!("tensor {name} was not planned"))?;
        let parts = |parts: &[usize]| parts.iter().map(|&i| &self.pairs[i]).collect::<Vec<_>>();
        match &tensor.content {
            Content::Stored => convert(source, name, tensor.dtype, write),
            Content::Weights(of) => write(&linears::matrix(source, &parts(of), &tensor.shape, tensor.dtype)?),
            Content::Biases(of) => {
                let len = tensor.shape.iter().product();
                write(&linears::bias(source, &parts(of), len, tensor.dtype)?)
            }
        }
    }

    fn copy(&mut self, source: &Source, name: &str, dtype: Option<Dtype>) -> Result<()> {
        let info = source.info(name).context("a listed tensor is missing")?;
        let dtype = dtype.filter(|_| is_float(info.dtype)).unwrap_or(info.dtype);
        let tensor = Planned { dtype, shape: info.shape.clone(), content: Content::Stored };
        self.tensors.insert(name.to_string(), tensor);
        Ok(())
    }

    /// Plans the matrix `name` that `parts` share, and its bias. Returns the names of the tensors that this replaces.
    fn matrix(&mut self, source: &Source, name: &str, parts: &[usize], dtype: Option<Dtype>) -> Result<Vec<String>> {
        let of: Vec<&Pair> = parts.iter().map(|&i| &self.pairs[i]).collect();
        let Some(first) = of.first().map(|pair| &pair.want) else { return Ok(Vec::new()) };
        let (bias, biased, transposed, input) = (bias_name(first), first.bias, first.transposed(), first.input);
        let rows: usize = of.iter().map(|pair| pair.want.out).sum();
        let apart = of.iter().any(|pair| pair.have.is_apart(source));
        let mut weights: Vec<String> = of.iter().flat_map(|pair| factors(&pair.want)).collect();
        weights.extend(of.iter().map(|pair| own_weight(&pair.want)).chain([name.to_string()]));
        let mut biases: Vec<String> = of.iter().map(|pair| own_bias(&pair.want)).collect();
        biases.push(bias.clone());
        if let Some(pair) = of.iter().find(|pair| pair.have.spec.bias && !pair.want.bias) {
            anyhow::bail!("{} has a bias, for which the config has no place", pair.want.name);
        }

        let shape = if transposed { vec![input, rows] } else { vec![rows, input] };
        let as_it_is = !apart && holds(source, name, &shape);
        let weight_type = common_type(source, &weights, name)?;
        if as_it_is {
            self.copy(source, name, dtype)?;
        } else {
            let content = Content::Weights(parts.to_vec());
            let dtype = dtype.unwrap_or(weight_type);
            self.tensors.insert(name.to_string(), Planned { dtype, shape, content });
        }
        if biased {
            let stored = biases.iter().filter(|name| source.is_stored(name)).count();
            if holds(source, &bias, &[rows]) && biases.iter().all(|name| *name == bias || !source.is_stored(name)) {
                self.copy(source, &bias, dtype)?;
            } else {
                // One that the family's config brings with it has none to take its type from: zeros.
                let own = if stored > 0 { common_type(source, &biases, &bias)? } else { weight_type };
                let content = Content::Biases(parts.to_vec());
                self.tensors.insert(bias, Planned { dtype: dtype.unwrap_or(own), shape: vec![rows], content });
            }
        }
        Ok([weights, biases].concat())
    }
}

/// Whether exactly this is stored.
fn holds(source: &Source, name: &str, shape: &[usize]) -> bool {
    source.is_stored(name) && source.info(name).is_some_and(|info| info.shape == shape)
}

/// The type that holds everything that those of the tensors do which are stored.
fn common_type(source: &Source, names: &[String], made: &str) -> Result<Dtype> {
    let mut common = None;
    for name in names.iter().filter(|name| source.is_stored(name)) {
        let dtype = source.info(name).context("a listed tensor is missing")?.dtype;
        if !is_float(dtype) {
            user_bail!(
                "tensor {name} is stored as {dtype}, not as BF16, F16, F32 or F64";
                "compress a checkpoint of one of these types"
            );
        }
        common = Some(match common {
            None => dtype,
            Some(other) if other == dtype => dtype,
            Some(Dtype::F64) => Dtype::F64,
            Some(_) if dtype == Dtype::F64 => Dtype::F64,
            Some(_) => Dtype::F32,
        });
    }
    match common {
        Some(dtype) => Ok(dtype),
        None => user_bail!(
            "tensor {made} is missing, and so are its factors";
            "the output is incomplete: `softlm verify` names everything that is wrong"
        ),
    }
}

/// A stored tensor in another type, a few MiB at a time. What is no number stays none: what uses it is not known here.
fn convert(source: &Source, name: &str, dtype: Dtype, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let stored = source.info(name).context("a planned tensor is missing")?.dtype;
    for piece in source.bytes(name)?.chunks(PIECE) {
        let mut bytes = Vec::new();
        linears::rounded(&decode(stored, piece), dtype, &mut bytes, name)?;
        write(&bytes)?;
        source.release(name);
    }
    Ok(())
}
