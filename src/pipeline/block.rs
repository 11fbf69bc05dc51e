//! One finished block on disk: its compressed tensors and what is to be reported about them.

use super::stored;
use crate::checkpoint::{NamedTensor, TensorFile, write_sealed};
use crate::model::{Block, LinearSpec, Model};
use crate::report::LinearReport;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// What became of the linears of one block.
#[derive(Default)]
pub struct FinishedBlock {
    /// Final names, types and bytes. Linears that stay as they are have none.
    pub tensors: Vec<NamedTensor>,
    /// One entry per linear.
    pub linears: Vec<LinearReport>,
}

impl FinishedBlock {
    /// Writes the block, all or nothing.
    pub fn save(&self, path: &Path) -> Result<()> {
        let metadata = BTreeMap::from([("linears".to_string(), serde_json::to_string(&self.linears)?)]);
        write_sealed(path, &self.tensors, &metadata)
    }

    /// Reads a block written by [`FinishedBlock::save`].
    pub fn load(path: &Path) -> Result<Self> {
        let file = TensorFile::open_unfinished(path)?;
        let linears = reports_of(&file)?;
        let mut tensors = Vec::new();
        for name in file.names() {
            tensors.push(file.read(name)?);
        }
        Ok(Self { tensors, linears })
    }

    /// What is to be reported about a block written by [`FinishedBlock::save`], without its tensors.
    pub fn reports(path: &Path) -> Result<Vec<LinearReport>> {
        reports_of(&TensorFile::open_unfinished(path)?)
    }

    /// Brings what is reported into the order of the block. Parts of a fused matrix stand on their own as soon as one of them
    /// is stored in another form.
    pub fn complete(&mut self, model: &Model, index: usize) -> Result<()> {
        let place = |id| model.block_linears(index).position(|spec| spec.id == id);
        self.linears.sort_by_key(|linear| place(linear.id));
        let has = |tensors: &[NamedTensor], spec: &LinearSpec| {
            tensors.iter().any(|t| t.name.strip_prefix(&spec.name).is_some_and(|rest| rest.starts_with('.')))
        };
        let touched: Vec<&str> =
            model.block_linears(index).filter(|spec| has(&self.tensors, spec)).filter_map(LinearSpec::fused).collect();
        for spec in model.block_linears(index) {
            if spec.fused().is_some_and(|fused| touched.contains(&fused)) && !has(&self.tensors, spec) {
                self.tensors.push(stored::dense_part(model.source(), spec)?);
            }
        }
        Ok(())
    }

    /// Puts the compressed linears into `block`.
    pub fn install(&self, model: &Model, block: &mut Block, index: usize) -> Result<()> {
        for spec in model.block_linears(index) {
            install(&self.tensors, spec, model, block)?;
        }
        Ok(())
    }
}

fn reports_of(file: &TensorFile) -> Result<Vec<LinearReport>> {
    let linears = file.metadata().get("linears").context("a finished block lacks its report")?;
    serde_json::from_str(linears).with_context(|| format!("the report in {} is damaged", file.name()))
}

/// Puts the linear that `tensors` hold for `spec` into `block`, if they hold it.
pub fn install(tensors: &[NamedTensor], spec: &LinearSpec, model: &Model, block: &mut Block) -> Result<()> {
    let bias = block.linear(spec.id.role).and_then(|linear| linear.bias().cloned());
    if let Some(linear) = stored::linear(tensors, spec, bias, model.device())? {
        block.swap_linear(spec.id.role, linear)?;
    }
    Ok(())
}
