//! Compression methods: one paper, one file.
//!
//! A method looks at one weight W (m, n) and the calibration sums of its input and answers with a [`Decomposition`]:
//! components in the order in which they should be kept. It knows no model names and no files.

mod auto;
mod awsvd;
mod decomposition;
mod lorap;
mod option;
mod output_pca;
mod page;
mod rom;
mod soco;
mod soft;
mod spectral;
mod svd;
mod whiten;

pub use auto::{GRADIENTS, two_sided, two_sided_workspace};
pub use awsvd::input_scales;
pub use decomposition::{Decomposition, HeldoutCurve, Workspace, heldout_curve, heldout_numbers};
pub use lorap::{RHO, ffn_keep};
pub use option::{
    DefaultValue, Domain, MethodOption, OptionValues, RunFacts, all_options, flag, value_of, variable, words,
};
pub use page::page;
pub use soft::soft_gate;
pub use spectral::{
    Basis, Controlled, LastPhase, Pace, Phase, PhaseSpec, Pressure, ScoreMap, Share, Spectral, SpectralSettings,
    Trains, Unit, Worth, ratios,
};

use crate::calibrate::SiteStats;
use crate::linalg::Mat;
use crate::plan::AllocationRule;
use crate::user_bail;
use anyhow::{Context, Result};

/// Every method, in the order in which the documentation explains them.
pub static METHODS: &[&dyn Method] =
    &[&auto::Auto, &svd::PlainSvd, &awsvd::Awsvd, &lorap::Lorap, &rom::Rom, &whiten::Whiten, &soft::Soft, &soco::Soco];

/// The method called `name` on the command line.
pub fn by_name(name: &str) -> Result<&'static dyn Method> {
    if let Some(method) = METHODS.iter().find(|method| method.card().name == name) {
        return Ok(*method);
    }
    user_bail!("unknown method {name:?}"; "the methods are {}", names())
}

/// The names of all methods, separated by commas.
pub fn names() -> String {
    METHODS.iter().map(|method| method.card().name).collect::<Vec<_>>().join(", ")
}

/// The decomposition that a learned method starts from.
pub fn of_basis(basis: Basis) -> &'static dyn Method {
    match basis {
        Basis::Weight => &svd::PlainSvd,
        Basis::Whitened => &whiten::Whiten,
    }
}

/// What a method has to know about the inputs of a linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// The weight alone.
    Nothing,
    /// The Gram matrix (its diagonal is part of it).
    Gram,
}

/// Which activations calibrate a linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Inputs {
    /// Those of the original model: one pass for all linears.
    Dense,
    /// Those behind the compressed earlier blocks.
    Blocks,
    /// Those behind everything that was compressed before, inside the block too.
    Sequential,
}

/// The part of a method a user can read: `softlm methods NAME` prints it.
#[derive(Debug)]
pub struct MethodCard {
    /// Name on the command line.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Title and arXiv id.
    pub paper: &'static str,
    /// How the paper is cited: a BibTeX entry.
    pub citation: &'static str,
    /// Equations, symbols and departures from the paper, Markdown. [`page()`] adds what follows from declarations.
    pub doc: &'static str,
}

/// A paper's way to factorise one weight.
pub trait Method: Sync {
    /// Name, paper and documentation.
    fn card(&self) -> &'static MethodCard;
    /// What [`Method::decompose`] needs to see.
    fn needs(&self) -> Needs;
    /// Which activations the method's paper calibrates with.
    fn inputs(&self) -> Inputs;
    /// How the method shares a budget out unless told otherwise.
    fn allocation(&self) -> AllocationRule {
        AllocationRule::Even
    }
    /// The options that the method has beside those of every run, each after those that its default depends on.
    fn options(&self) -> &'static [&'static MethodOption] {
        &[]
    }
    /// Whether feed-forward layers lose channels instead of rank.
    fn prunes_channels(&self) -> bool {
        false
    }
    /// The `keep` feed-forward channels that stay, ascending. Only for methods that prune channels.
    ///
    /// `entering` are the sums at the input of `gate` (N, n), if there is one, and `up` (N, n); `inner` those at the
    /// input of `down` (m, N).
    fn channels(
        &self,
        entering: &SiteStats,
        inner: &SiteStats,
        gate: Option<&Mat>,
        up: &Mat,
        down: &Mat,
        keep: usize,
    ) -> Result<Vec<usize>> {
        let _ = (entering, inner, gate, up, down, keep);
        anyhow::bail!("{} does not prune channels", self.card().name)
    }
    /// What the method trains, if it learns by gradients which components to keep.
    fn learned(&self) -> Option<&'static dyn Spectral> {
        None
    }
    /// What [`Method::decompose`] takes for a weight (m, n).
    fn workspace(&self, m: usize, n: usize) -> Workspace {
        Workspace::svd(m, n)
    }
    /// Splits `w` (m, n) into components, most valuable first. `stats` is given when [`Method::needs`] asks for it.
    /// Any Gram matrix is legal: singular, zero, of one token.
    fn decompose(&self, w: &Mat, stats: Option<&SiteStats>) -> Result<Decomposition>;
}

/// The calibration sums a method asked for, checked against the weight.
fn required<'a>(w: &Mat, stats: Option<&'a SiteStats>, method: &str) -> Result<&'a SiteStats> {
    let stats = stats.with_context(|| format!("{method} needs calibration statistics"))?;
    let (width, side) = (w.cols(), stats.gram.rows());
    anyhow::ensure!(
        side == width && stats.gram.cols() == width,
        "calibration statistics of {side} channels do not fit a weight with {width} inputs"
    );
    Ok(stats)
}
