//! `softlm calibrate`

use super::page::print_result;
use super::values::MemoryLimits;
use super::{Context, Outcome};
use crate::calibrate::{self, Origin, StatsStore, collect_and_advance};
use crate::forward::{States, each_block};
use crate::pipeline::{self, CalibrationWish};
use crate::progress::Progress;
use crate::recipe::BosRule;
use crate::text::{Sampling, split_names};
use crate::visible::visible;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Calibrate {
    /// Model: `demo`, a folder, or a hub id
    #[arg(env = "SOFTLM_MODEL", required_unless_present = "merge")]
    model: Option<String>,
    /// Folder to write; what it already holds of the same text is kept
    #[arg(short, long, env = "SOFTLM_STATS")]
    output: PathBuf,
    /// Instead of collecting: add up these folders of statistics
    #[arg(long, conflicts_with_all = ["model", "calib"])]
    merge: Option<Vec<String>>,
    /// Calibration text: sample, wikitext2, ptb, c4, a file, `-` or NAME=FILE; several separated by commas
    #[arg(long, env = "SOFTLM_CALIB", default_value = "sample")]
    calib: Vec<String>,
    /// Windows of calibration text
    #[arg(long, env = "SOFTLM_CALIB_WINDOWS", default_value_t = 128)]
    calib_windows: usize,
    /// Tokens per window [default: 2048 or the model's context]
    #[arg(long, env = "SOFTLM_WINDOW")]
    window: Option<usize>,
    /// Seed of the random choice of windows
    #[arg(long, env = "SOFTLM_SEED", default_value_t = 0)]
    seed: u64,
    /// Begin each window with the tokenizer's BOS. `auto`: where the model cannot do without (Gemma 2 and 3) and its
    /// tokenizer puts one in front of a text
    #[arg(long, env = "SOFTLM_BOS", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "auto", hide_possible_values = true, value_name = "auto|true|false")]
    bos: BosRule,
    #[command(flatten)]
    memory: MemoryLimits,
}

impl Calibrate {
    pub fn run(self, context: &Context) -> Result<Outcome> {
        let store = match &self.merge {
            Some(folders) => {
                let folders: Vec<PathBuf> = split_names(folders).into_iter().map(Into::into).collect();
                calibrate::merge(&folders, &self.output, context.ui)?
            }
            None => self.collect(context)?,
        };
        context.ui.finish();
        let (origin, place) = (&store.origin, self.output.display().to_string());
        print_result(&format!("{}: {} blocks of {}\n", visible(&place), origin.blocks, visible(&origin.model)))?;
        Ok(Outcome::Fine)
    }

    fn collect(&self, context: &Context) -> Result<StatsStore> {
        let name = self.model.as_deref().unwrap_or_default();
        let source = pipeline::open_source(name, &context.hub)?;
        let model = pipeline::load_model(source, self.memory.of(context)?, context.ui)?;
        let tokenizer = pipeline::tokenizer(model.source())?;
        let wish = CalibrationWish {
            specs: &split_names(&self.calib),
            windows: self.calib_windows,
            window: self.window,
            sampling: Sampling::Random { seed: self.seed },
            bos: self.bos,
            heldout: pipeline::HELDOUT_TOKENS,
        };
        let text = pipeline::calibration(&model, &tokenizer, &wish, &context.hub)?;
        let (limits, estimate) = pipeline::fit_calibration(&model, &text)?;
        let model = model.with_limits(limits);
        pipeline::check_numbers(&model, &text, &[], context.ui)?;
        text.doubts(&model, self.calib_windows).iter().for_each(|doubt| context.ui.warn(doubt));
        let (tokens, heldout) = (text.windows.tokens(), text.heldout.tokens());
        let origin =
            Origin::new(model.source(), model.blocks(), text.describe(), tokens, heldout)?.computed(model.compute());
        let store = StatsStore::fill(&self.output, origin.clone(), context.ui)?;
        store.check(&model, &origin)?;
        if store.is_finished() {
            return Ok(store);
        }
        pipeline::announce(&estimate, context.ui);
        let mut states = States::embed(&model, &text.windows.ids())?;
        let mut heldout = States::embed(&model, &text.heldout.ids())?;
        context.ui.stage("calibrating", model.blocks() as u64);
        each_block(&model, |index, block| {
            if store.has(index) {
                states.advance(&block)?;
                heldout.advance(&block)?;
            } else {
                let sites = model.block_sites(index);
                store.put(index, &collect_and_advance(&block, &mut states, &mut heldout, &sites)?)?;
            }
            context.ui.step(1)
        })?;
        Ok(store)
    }
}
