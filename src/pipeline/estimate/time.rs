//! How long a run will take: operations of each stage over the rates of this machine.
//!
//! With P the numbers of all block linears, T the calibration tokens, n the inputs of a site and (m, n) the shape of a linear:
//!
//! | stage | operations |
//! |---|---|
//! | differentiating | 6 P per token, forward, again and back, m² of every output, and the head twice |
//! | statistics | 2 P per token, and n² of every site for one triangle of its Gram matrix |
//! | decomposing | of every linear an SVD, min(m, n)² max(m, n), and where inputs count an eigendecomposition, n³ |
//! | measuring | of some tokens 2 P of the blocks from each part on, and the head, for every part |
//! | learning, healing | per step of some tokens 10 P (the original, forward, again, back), and for every look what is judged by |
//! | evaluating | 2 P of each model per token, and its head |
//!
//! Products run at the rate of products, which is measured, and decompositions at that of a small eigendecomposition, which is
//! measured too. What is read and written is not counted: it goes on beside the work.

use super::super::forms::block_parts;
use super::super::texts::usual_window;
use super::super::weights::kl_tokens;
use super::compression::Compression;
use crate::linalg::{Mat, evd_symmetric, on_one_thread};
use crate::machine;
use crate::method::{Inputs, Needs};
use crate::model::{LinearSpec, Model};
use crate::plan::{AllocationRule, Choice};
use crate::recipe::WeightRule;
use anyhow::Result;
use candle_core::Device;
use std::time::Instant;

/// Rows of the matrix whose decomposition is timed.
const EIGEN: usize = 256;
/// min² max of an SVD in units of the n³ of an eigendecomposition: it needs both sides, and comes behind products that make the
/// matrix and before those that judge it.
const SVD: f64 = 1.6;
/// Looks that a training takes at most.
const LOOKS: f64 = 20.0;

/// What this machine does per second.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Multiplications and additions of f32 products.
    pub products: f64,
    /// n³ of eigendecompositions, side by side on all threads.
    pub eigen: f64,
}

impl Rates {
    /// Measures for about a second.
    pub fn measure(device: &Device) -> Result<Self> {
        let entry = |i: usize, j: usize| 1.0 / (1.0 + i.abs_diff(j) as f64) + if i == j { 1.0 } else { 0.0 };
        let rows: Vec<f64> = (0..EIGEN * EIGEN).map(|at| entry(at / EIGEN, at % EIGEN)).collect();
        let matrix = Mat::from_rows(EIGEN, EIGEN, &rows);
        let timed = || {
            let started = Instant::now();
            on_one_thread(|| evd_symmetric(&matrix, "a matrix that is timed")).map(|_| started.elapsed().as_secs_f64())
        };
        // The first one pays for what is touched for the first time.
        timed()?;
        let seconds = timed()?;
        let threads = rayon::current_num_threads() as f64;
        Ok(Self { products: machine::product_rate(device)?, eigen: threads * (EIGEN as f64).powi(3) / seconds })
    }
}

/// Seconds of the stages of a run, in order; those that nothing is done in are left out. Evaluation is that of `evaluated`
/// tokens.
pub fn stages(run: &Compression, rates: Rates, evaluated: usize) -> Vec<(String, f64)> {
    let (recipe, model) = (run.recipe, run.model);
    let windows = &run.calibration.windows;
    let tokens = windows.tokens() as f64;
    let params: f64 = model.linears().iter().map(|spec| spec.params() as f64).sum();
    let left: f64 = run.plan.kept as f64;
    let head = (model.hidden() * model.vocab()) as f64;
    let seconds = |operations: f64| operations / rates.products;
    let looks_at_text = run.method.needs() == Needs::Gram;
    let triangles: f64 = (0..model.blocks()).flat_map(|index| model.site_widths(index).into_values()).map(square).sum();
    let statistics = if looks_at_text { tokens * (2.0 * params + triangles) } else { 0.0 };
    let decomposing: f64 =
        model.linears().iter().filter(|spec| changes(run, spec)).map(|s| units(s, looks_at_text)).sum();
    let forms = recipe.allocation == AllocationRule::Forms;
    let measured = recipe.allocation == AllocationRule::Global && recipe.weight == WeightRule::Kl;
    let mut stages: Vec<(&str, f64)> = Vec::new();
    if forms && run.with_gradients() {
        let tokens = run.gradient_tokens() as f64;
        let outputs: f64 = model.linears().iter().map(|spec| square(spec.out)).sum();
        stages.push(("differentiating", seconds(tokens * (6.0 * params + outputs + 4.0 * head))));
    }
    let behind = recipe.inputs != Inputs::Dense || run.narrows();
    // Behind compressed blocks every window goes through each block twice, once for its statistics.
    let passes = if behind && looks_at_text { 2.0 * tokens * params } else { 0.0 };
    let name = if behind { "compressing" } else { "decomposing" };
    stages.push((name, seconds(statistics + passes) + decomposing / rates.eigen));
    if forms || measured {
        stages.push(("measuring", seconds(measuring(model, forms, params, head))));
    }
    for (name, steps, batch) in [
        (
            "learning",
            recipe.learn.as_ref().map_or(0, |learn| learn.steps),
            recipe.learn.as_ref().map_or(0, |l| l.batch),
        ),
        ("healing", recipe.heal, recipe.heal_batch),
    ] {
        let shown = (steps * batch * windows.window) as f64;
        let judged = LOOKS.min(steps as f64) * run.calibration.trained_on().1.tokens() as f64;
        stages.push((name, seconds((10.0 * shown + 2.0 * judged) * (params + head))));
    }
    stages.push(("evaluating", seconds(2.0 * evaluated as f64 * (params + left + 2.0 * head))));
    stages.into_iter().filter(|(_, seconds)| *seconds > 0.0).map(|(name, s)| (name.to_string(), s)).collect()
}

/// Operations of cutting one part after the other: each runs through the blocks from its own on, and through the head.
fn measuring(model: &Model, forms: bool, params: f64, head: f64) -> f64 {
    let count = |index: usize| match forms {
        true => block_parts(model, index).chunk_by(|a, b| a.shares_input(b)).count(),
        false => model.block_linears(index).count(),
    };
    let variants: Vec<usize> = (0..model.blocks()).flat_map(|index| vec![index; count(index)]).collect();
    let blocks: usize = variants.iter().map(|index| model.blocks() - index).sum();
    let per_token = blocks as f64 * params / model.blocks() as f64 + variants.len() as f64 * head;
    2.0 * kl_tokens(model, variants.into_iter()) as f64 * per_token
}

fn square(n: usize) -> f64 {
    (n * n) as f64
}

/// Whether a plan by shapes changes a linear; where spectra decide, all may change.
fn changes(run: &Compression, spec: &LinearSpec) -> bool {
    run.plan.choice(spec.id).is_none_or(|choice| choice != Choice::Dense)
}

/// What decomposing a linear takes, in n³ of eigendecompositions.
fn units(spec: &LinearSpec, looks_at_text: bool) -> f64 {
    let (short, long) = (spec.out.min(spec.input) as f64, spec.out.max(spec.input) as f64);
    SVD * short * short * long + if looks_at_text { (spec.input as f64).powi(3) } else { 0.0 }
}

/// Tokens of `windows` of `window` tokens that a model without text would be evaluated on.
pub fn evaluated(model: &Model, corpora: usize, windows: Option<usize>, window: Option<usize>) -> usize {
    windows.map_or(0, |windows| corpora * windows * window.unwrap_or(usual_window(model).min(model.context())))
}
