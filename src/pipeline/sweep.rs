//! Several sizes of one model by one method, each an output of its own, as [`compress`](super::compress) writes it to the last
//! byte.
//!
//! Text is read once. Where the method decomposes the original model, that is done once too, as an elastic output, from which
//! every size is cut; a method that trains, or looks at inputs behind compressed blocks, begins anew with every size.

use super::elastic::{check_survey, survey_of};
use super::tasks::EvalData;
use super::{allocate, compress_windows, open, read_data, tokenizer};
use crate::compute::Compute;
use crate::forward::KeptStates;
use crate::hub::HubOptions;
use crate::machine::StageClock;
use crate::method::{Inputs, by_name};
use crate::plan::AllocationRule;
use crate::progress::Progress;
use crate::recipe::{LearnOptions, Options, Recipe, WeightRule, default_output};
use crate::report::Report;
use crate::user_bail;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The folder, beside those of the sizes, of the elastic output that they are cut from.
pub const SWEEP_SURVEY: &str = "elastic";

/// What a sweep makes.
#[derive(Debug, Clone)]
pub struct Sweep {
    folder: PathBuf,
    /// One output per size, in the order asked for.
    sizes: Vec<Recipe>,
    /// What they are cut from, where one set of decompositions serves all.
    survey: Option<Recipe>,
}

impl Sweep {
    /// Compresses as `options` say to every fraction of `keeps`, into the folders `keep-0.9`, `keep-0.8`, … of their output.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) for no sizes, sizes outside (0, 1) or twice the same, for options that set a
    /// size in another way, and as [`Options::resolve`].
    pub fn new(options: &Options, keeps: &[f64]) -> Result<Self> {
        if let Some(keep) = keeps.iter().find(|keep| !(**keep > 0.0 && **keep < 1.0)) {
            user_bail!("--keep {keep} is outside (0, 1)"; "each is the fraction of parameters kept, for example 0.9,0.8,0.6");
        }
        if let Some((_, keep)) = keeps.iter().enumerate().find(|(i, keep)| keeps[..*i].contains(keep)) {
            user_bail!("--keep names {keep} twice"; "name each size once");
        }
        let Some(largest) = keeps.iter().copied().max_by(f64::total_cmp) else {
            user_bail!("--keep names no size"; "for example --keep 0.9,0.8,0.6");
        };
        let single = Options { keep: Some(largest), ..options.clone() }.resolve()?;
        let folder = options.output.clone().unwrap_or_else(|| default_output(&single.model, &single.method, "sweep"));
        let of_size = |keep: &f64| {
            let output = folder.join(format!("keep-{keep}"));
            Options { keep: Some(*keep), output: Some(output), ..options.clone() }.resolve()
        };
        let mut sizes = keeps.iter().map(of_size).collect::<Result<Vec<_>>>()?;
        let survey = survey(options, largest, &sizes[0], &folder)?;
        if let Some(survey) = &survey {
            let place = survey_of(&survey.output);
            sizes.iter_mut().for_each(|size| size.survey = Some(place.clone()));
        }
        Ok(Self { folder, sizes, survey })
    }

    /// Where all of it goes.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The recipe of every size.
    pub fn sizes(&self) -> &[Recipe] {
        &self.sizes
    }

    /// Whether one set of decompositions serves all sizes.
    pub fn decomposes_once(&self) -> bool {
        self.survey.is_some()
    }

    /// Makes every size and returns the reports that were written beside the weights. Sizes that were finished before are kept.
    pub fn run(
        &self,
        force: bool,
        hub: &HubOptions,
        compute: impl Into<Compute>,
        progress: &dyn Progress,
    ) -> Result<Vec<Report>> {
        let compute: Compute = compute.into();
        let first = &self.sizes[0];
        let open =
            |recipe: &Recipe| open::as_asked(recipe, open::open_dense(&recipe.model, hub)?, compute.clone(), progress);
        let mut clock = StageClock::start(progress);
        let model = open(first)?;
        // Whether a size can be met, its shapes show.
        for recipe in &self.sizes {
            allocate::by_shape(recipe, by_name(&recipe.method)?, &model)?;
        }
        let tokenizer = tokenizer(model.source())?;
        let data = read_data(first, &model, &tokenizer, hub, &mut clock)?;
        fs::create_dir_all(&self.folder).with_context(|| format!("creating {}", self.folder.display()))?;
        if let Some(survey) = &self.survey {
            // What it is judged by is what the sizes are judged by.
            compress_windows(survey, force, model, data.calibration.clone(), EvalData::default(), clock, progress)?;
            check_survey(survey, &open(first)?)?;
        }
        // The original is run once on every text.
        let kept = KeptStates::new()?;
        let make = |recipe: &Recipe| {
            progress.note(&format!("keep {}", recipe.keep));
            let clock = StageClock::start(progress);
            let eval = EvalData { texts: &data.texts, tasks: &data.tasks, kept: Some(&kept) };
            compress_windows(recipe, force, open(recipe)?, data.calibration.clone(), eval, clock, progress)
                .with_context(|| format!("at keep {}", recipe.keep))
        };
        self.sizes.iter().map(make).collect()
    }
}

/// The elastic output of the `largest` size, if one set of decompositions serves all sizes of recipes like `size`.
fn survey(options: &Options, largest: f64, size: &Recipe, folder: &Path) -> Result<Option<Recipe>> {
    let method = by_name(&size.method)?;
    if size.learn.is_some() || size.inputs != Inputs::Dense || method.prunes_channels() {
        return Ok(None);
    }
    let forms = size.allocation == AllocationRule::Forms;
    // Decompositions know nothing of how they are weighed and shared out, nor of what is done with a size afterwards.
    let options = Options {
        output: Some(folder.join(SWEEP_SURVEY)),
        elastic: Some(vec![largest]),
        keep: None,
        allocation: (!forms).then_some(AllocationRule::Global),
        weight: (!forms).then_some(WeightRule::Unit),
        last_blocks: None,
        ppl: Some(vec!["none".into()]),
        tasks: None,
        limit: None,
        task: None,
        heal: None,
        heal_lr: None,
        heal_batch: None,
        learn: LearnOptions::default(),
        // Where labels are trained on, text comes from the same place.
        calib: Some(size.calib.clone()),
        ..options.clone()
    };
    Ok(Some(options.resolve()?))
}
