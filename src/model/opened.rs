//! A model over its checkpoint: names and sizes; weights are read when asked for.

use super::block::Block;
use super::family::{TextModel, text_model, unknown_keys};
use super::head::{Classifier, Head};
use super::ids::{LinearId, Site};
use super::layout::{Layout, Readout};
use super::linear::load_bias;
use super::narrow::take_shapes;
use super::needed::Form;
use super::norm::Norm;
use super::spec::LinearSpec;
use crate::checkpoint::{Section, Source, family_config};
use crate::compute::{Compute, Limits};
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};

/// What a model says about a text, beside its final states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// At each position, which token comes next: a decoder.
    NextToken,
    /// At each masked position, which token belongs there: an encoder.
    MaskedToken,
    /// Which of so many classes the text belongs to, or with one class a score: an encoder.
    Classes(usize),
    /// Nothing: an encoder whose states are what it is used for.
    States,
}

/// A language model over a checkpoint. Holds names and sizes; weights are read when asked for.
pub struct Model {
    source: Source,
    layout: Layout,
    /// Those of the layout's linears that may be compressed.
    linears: Vec<LinearSpec>,
    /// Where its config lies.
    text: TextModel,
    compute: Compute,
}

/// Reads the layout of `source`, and where its config lies. Names and shapes of tensors are yet to be checked.
pub(super) fn describe(source: &mut Source) -> Result<(Layout, TextModel)> {
    let text = text_model(&family_config(source.config()))?;
    super::quantised::refuse(source, &text.config)?;
    let mut layout = super::family::layout(source, &text)?;
    // A compressed model may have biases where its family has none.
    if Section::of(source.config()).is_some() {
        for spec in &mut layout.linears {
            spec.bias |= source.info(&format!("{}.bias", spec.name)).is_some();
        }
        take_shapes(source, &mut layout)?;
    }
    Ok((layout, text))
}

impl Model {
    /// Recognises the family of `source` and checks names and shapes. Reads no weight.
    pub fn load(mut source: Source, compute: impl Into<Compute>) -> Result<Self> {
        let (layout, text) = describe(&mut source)?;
        super::check::check(&source, &layout)?;
        let linears = layout.linears.iter().filter(|spec| !spec.id.role.is_small()).cloned().collect();
        Ok(Self { source, layout, linears, text, compute: compute.into() })
    }

    /// Counts small linears among those that may be compressed: x_proj and dt_proj of a state-space block.
    pub fn with_small_linears(mut self) -> Self {
        self.linears.clone_from(&self.layout.linears);
        self
    }

    /// Holds matrices in bf16 or f16 as they are stored ([`Compute::holds_half`]) from here on.
    pub fn holding_half(mut self) -> Self {
        self.compute.holds_half = true;
        self
    }

    /// Keeps to `limits` from here on.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.compute.limits = limits;
        self
    }

    /// Numbers in the weights of block `index`, as many as there are once they are read.
    pub fn block_numbers(&self, index: usize) -> usize {
        let numbers = |name: &str| self.source.info(name).map_or(0, |info| info.elements());
        let linear = |spec: &LinearSpec| match spec.form(&self.source) {
            Form::Factors => spec.factor_names().iter().map(|name| numbers(name)).sum(),
            Form::Own | Form::Matrix => spec.params(),
        };
        let linears: usize = self.layout.linears.iter().filter(|spec| spec.id.block == index).map(linear).sum();
        let tensors = self.layout.blocks.get(index).map_or(0, |block| {
            block.tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum::<usize>()
        });
        linears + tensors
    }

    /// The most numbers that a linear of block `index`, small ones included, takes in or gives out per token.
    pub fn widest(&self, index: usize) -> usize {
        let linears = self.layout.linears.iter().filter(|spec| spec.id.block == index);
        linears.map(|spec| spec.out.max(spec.input)).max().unwrap_or(0)
    }

    /// Whether the logits of tokens are capped, which takes them twice.
    pub fn caps_logits(&self) -> bool {
        self.layout.token_head().is_some_and(|head| head.soft_cap.is_some())
    }

    /// What it was described as.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The checkpoint behind the model.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Name of the family, as `model_type` has it.
    pub fn family(&self) -> &'static str {
        self.layout.family
    }

    /// `model_type` of the multimodal model whose text model this is, if it is one's.
    pub fn inside(&self) -> Option<&'static str> {
        self.text.inside
    }

    /// Name of the family, and of the multimodal model around it: `llama`, `llama in llava`.
    pub fn described_family(&self) -> String {
        let family = self.family();
        self.inside().map_or_else(|| family.to_string(), |inside| format!("{family} in {inside}"))
    }

    /// The config of the model itself: all of config.json, or what it says about the text model, with what it leaves out
    /// there.
    pub fn config(&self) -> &Map<String, Value> {
        &self.text.config
    }

    /// The object of a copy of config.json that holds the model's own config.
    pub fn config_in<'c>(&self, whole: &'c mut Map<String, Value>) -> &'c mut Map<String, Value> {
        self.text.config_in(whole)
    }

    /// Where that object lies: `text_config.`, or nothing where it is the whole.
    pub fn config_path(&self) -> String {
        self.text.path.iter().map(|key| format!("{key}.")).collect()
    }

    /// Keys of its config that neither softlm nor the family's configuration class knows, and that say something.
    pub fn unknown_keys(&self) -> Vec<String> {
        unknown_keys(&self.text.config, self.text.family)
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.layout.blocks.len()
    }

    /// Longest sequence the model was made for; [`UNBOUNDED`](super::UNBOUNDED) where there is no such thing.
    pub fn context(&self) -> usize {
        self.layout.context
    }

    /// Rows of the embedding.
    pub fn vocab(&self) -> usize {
        self.layout.vocab
    }

    /// Width of the hidden state.
    pub fn hidden(&self) -> usize {
        self.layout.hidden
    }

    /// Where and how the model computes.
    pub fn compute(&self) -> &Compute {
        &self.compute
    }

    /// The device that runs the model.
    pub fn device(&self) -> &Device {
        &self.compute.device
    }

    /// Every linear of every block that may be compressed, in block order, with its dense shape, which in an output may be
    /// smaller than the base's.
    pub fn linears(&self) -> &[LinearSpec] {
        &self.linears
    }

    /// Those of [`Model::linears`] that are in block `index`, in the order in which activations reach them.
    pub fn block_linears(&self, index: usize) -> impl Iterator<Item = &LinearSpec> {
        self.linears.iter().filter(move |spec| spec.id.block == index)
    }

    /// Where the inputs of those linears are observed, in the order in which activations reach them.
    pub fn block_sites(&self, index: usize) -> Vec<Site> {
        let mut sites = Vec::new();
        for spec in self.block_linears(index) {
            if !sites.contains(&spec.site) {
                sites.push(spec.site);
            }
        }
        sites
    }

    /// Number of inputs at every site of block `index`, those of small linears included.
    pub fn site_widths(&self, index: usize) -> BTreeMap<Site, usize> {
        let linears = self.layout.linears.iter().filter(|spec| spec.id.block == index);
        linears.map(|spec| (spec.site, spec.input)).collect()
    }

    /// Key of config.json that holds the width of the feed-forward layer that a linear belongs to.
    pub fn width_key(&self, id: LinearId) -> &'static str {
        self.layout.width_key(id)
    }

    /// The bias (out) of a linear, if it has one.
    pub fn bias(&self, spec: &LinearSpec) -> Result<Option<Tensor>> {
        if !spec.bias {
            return Ok(None);
        }
        load_bias(&self.source, spec, &self.compute).map(Some)
    }

    /// Stored tensors that no forward pass reads, sorted: buffers, heads that are not run, other models of the same
    /// checkpoint.
    pub fn unused_tensors(&self) -> Vec<&str> {
        self.layout.unused(&self.source)
    }

    /// What it says about a text.
    pub fn output(&self) -> Output {
        self.layout.output()
    }

    /// Whether its predictions are worth nothing unless a sequence begins with the tokenizer's BOS.
    pub fn needs_bos(&self) -> bool {
        self.layout.embedding.needs_bos
    }

    /// Whether every position sees the whole text.
    pub fn is_encoder(&self) -> bool {
        self.output() != Output::NextToken
    }

    /// Looks up the embeddings of `rows`, equally long sequences of one text each: (rows, t, hidden).
    pub fn embed(&self, rows: &[&[u32]]) -> Result<Tensor> {
        self.embed_at(rows, 0, None)
    }

    /// [`Model::embed`] of rows that begin at position `start`.
    pub fn embed_from(&self, rows: &[&[u32]], start: usize) -> Result<Tensor> {
        self.embed_at(rows, start, None)
    }

    /// [`Model::embed`] of sequences whose tokens have types, such as 0 in the first and 1 in the second text of a pair; by
    /// default all are 0. A model without types takes none.
    pub fn embed_typed(&self, rows: &[&[u32]], types: Option<&[&[u32]]>) -> Result<Tensor> {
        self.embed_at(rows, 0, types)
    }

    fn embed_at(&self, rows: &[&[u32]], start: usize, types: Option<&[&[u32]]>) -> Result<Tensor> {
        let t = rows.first().map_or(0, |r| r.len());
        if start + t > self.layout.context {
            user_bail!(
                "a window of {} tokens is longer than the model's context of {}", start + t, self.layout.context;
                "use a smaller --window"
            );
        }
        let ids: Vec<u32> = rows.iter().flat_map(|r| r.iter().copied()).collect();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.layout.vocab) {
            user_bail!(
                "token id {id} is outside the embedding, which has {} rows", self.layout.vocab;
                "the tokenizer does not belong to this model"
            );
        }
        let (hidden, embedding) = (self.layout.hidden, &self.layout.embedding);
        let mut x = self.look_up(&embedding.tokens, &ids)?.reshape((rows.len(), t, hidden))?;
        if let Some(scale) = embedding.scale {
            x = (x * scale)?;
        }
        if let Some(known) = &embedding.types {
            let types = match types {
                Some(types) => types.iter().flat_map(|row| row.iter().copied()).collect(),
                None => vec![0; ids.len()],
            };
            if let Some(kind) = types.iter().find(|&&kind| kind as usize >= known.count) {
                user_bail!(
                    "token type {kind} is outside `{}`, which has {} rows", known.name, known.count;
                    "the tokenizer does not belong to this model"
                );
            }
            x = (x + self.look_up(&known.name, &types)?.reshape((rows.len(), t, hidden))?)?;
        }
        if let Some(positions) = &embedding.positions {
            let first = positions.offset + start;
            let order: Vec<u32> = (first..first + t).map(|i| i as u32).collect();
            let positions = self.compute.rows(&self.source, &positions.name, &order, hidden)?;
            x = x.broadcast_add(&positions)?;
        }
        match &embedding.norm {
            Some(norm) => Norm::load(&self.source, norm, &self.compute)?.forward(&x),
            None => Ok(x),
        }
    }

    /// Rows of a table (any, hidden) by their indices. They are gathered from the map, each once: only what the text uses
    /// is read, and what a tied, huge or partly unused table holds elsewhere does not matter.
    fn look_up(&self, table: &str, ids: &[u32]) -> Result<Tensor> {
        let mut distinct = ids.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let place: HashMap<u32, u32> = distinct.iter().enumerate().map(|(i, &id)| (id, i as u32)).collect();
        let rows = self.compute.rows(&self.source, table, &distinct, self.layout.hidden)?;
        let index: Vec<u32> = ids.iter().map(|id| place[id]).collect();
        Ok(rows.index_select(&Tensor::from_vec(index, ids.len(), self.device())?, 0)?)
    }

    /// Loads block `index`.
    pub fn block(&self, index: usize) -> Result<Block<'_>> {
        let layout = self.layout.blocks.get(index).with_context(|| format!("there is no block {index}"))?;
        let linears = self.layout.linears.iter().filter(|spec| spec.id.block == index);
        Block::load(&self.source, index, layout, linears, &self.compute)
            .with_context(|| format!("loading block {index}"))
    }

    /// Length of sequence behind which the first positions too are run in another way.
    pub fn original_context(&self) -> Option<usize> {
        self.layout.blocks.iter().filter_map(|block| block.shape.original_context()).min()
    }

    /// Loads what makes logits of tokens. Only for models whose [`Model::output`] is a token.
    pub fn head(&self) -> Result<Head> {
        let Some(head) = self.layout.token_head() else {
            user_bail!("{} has no head that predicts tokens", self.source.label(); "it is an encoder; see `softlm eval --help`")
        };
        Head::load(&self.source, &self.layout, head, &self.compute)
    }

    /// Loads what makes logits of classes, if the model has that.
    pub fn classifier(&self) -> Result<Option<Classifier>> {
        match &self.layout.head {
            Readout::Classes(head) => Classifier::load(&self.source, self.layout.hidden, head, &self.compute).map(Some),
            _ => Ok(None),
        }
    }
}
