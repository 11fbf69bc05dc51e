//! `softlm sweep`

use super::html::Html;
use super::page::{page_width, print_json, print_result, stdout_color};
use super::values::{MemoryLimits, switch};
use super::{Context, Outcome};
use crate::checkpoint::write_file;
use crate::pipeline::{SWEEP_SURVEY, Sweep as Sizes};
use crate::progress::Progress;
use crate::recipe::{Options, Recipe, SIZES};
use crate::report::{Comparison, Entry, Report, compare_table};
use crate::user_bail;
use anyhow::Result;
use clap::{Arg, Args, Command};
use std::path::PathBuf;

/// Sizes where none are named.
const KEEPS: [f64; 4] = [0.9, 0.8, 0.6, 0.4];
/// The file that shows them side by side.
const RESULT: &str = "sweep.json";

#[derive(Args)]
pub struct Sweep {
    #[command(flatten)]
    options: Options,
    /// Recipe file (TOML); flags and environment go before it
    #[arg(long, value_name = "FILE", help_heading = "What")]
    config: Option<PathBuf>,
    /// Replace existing outputs, or other unfinished runs
    #[arg(long, value_parser = switch(), help_heading = "What")]
    force: bool,
    #[command(flatten)]
    html: Html,
    #[command(flatten)]
    memory: MemoryLimits,
    /// Print one JSON object
    #[arg(long, value_parser = switch())]
    json: bool,
}

/// What `compress` takes, but for one size: --keep names several, and there is no other way to ask for them.
pub fn several_sizes(command: Command) -> Command {
    let hide = |arg: Arg| {
        let long = format!("single-{}", arg.get_id().as_str().replace('_', "-"));
        arg.long(long).hide(true).env(None::<&str>)
    };
    let others = SIZES.into_iter().filter(|key| *key != "elastic");
    let command = others.fold(command, |command, key| command.mut_arg(key, hide));
    let sizes = "Fractions of the linears to keep, comma-separated [default: 0.9,0.8,0.6,0.4]";
    let folder = "Folder for the results, one in keep-F each [default: MODEL-METHOD-sweep]";
    command
        .mut_arg("elastic", |arg| arg.long("keep").help(sizes).env("SOFTLM_SWEEP_KEEP"))
        .mut_arg("output", |arg| arg.help(folder))
}

impl Sweep {
    pub fn run(self, context: &Context) -> Result<Outcome> {
        let options = self.options.split_names();
        let options = match &self.config {
            Some(path) => options.or_file(path)?,
            None => options,
        };
        let keeps = match (&options.elastic, single_size(&options)) {
            (Some(keeps), _) => keeps.clone(),
            (None, None) => KEEPS.to_vec(),
            (None, Some(key)) => {
                user_bail!("the recipe's `{key}` is one size, and sweep makes several"; "say which with --keep 0.9,0.8,0.6")
            }
        };
        let options = Options { elastic: None, ..options };
        let sizes = Sizes::new(&options, &keeps)?;
        let folder = sizes.folder();
        if folder.join("config.json").exists() {
            user_bail!("{} is a model's folder", folder.display(); "choose another -o: a sweep has a folder of its own");
        }
        self.html.check(None, self.force)?;
        let compute = self.memory.of(context)?;
        if !sizes.decomposes_once() {
            let method = &sizes.sizes()[0].method;
            context.ui.note(&format!("{method} begins anew with every size: its decompositions do not serve several"));
        }
        let reports = sizes.run(self.force, &context.hub, compute, context.ui)?;
        context.ui.finish();
        let entries = entries(&sizes, reports);
        let result = serde_json::to_string_pretty(&Comparison::new(&entries))?;
        write_file(&folder.join(RESULT), format!("{result}\n").as_bytes())?;
        self.html.write(&entries)?;
        if self.json {
            print_json(&result)?;
        } else {
            print_result(&compare_table(&entries, page_width(), stdout_color()))?;
        }
        context.ui.done(&format!("the outputs are in {}", folder.display()));
        if sizes.decomposes_once() {
            let survey = folder.join(SWEEP_SURVEY);
            context.ui.done(&format!("other sizes: softlm cut {} --keep 0.7", survey.display()));
        }
        Ok(Outcome::Fine)
    }
}

/// The key of an option that asks for one size: in a recipe, since sweep has no flags for them. --keep goes before it.
fn single_size(options: &Options) -> Option<&'static str> {
    let Options { keep, target_params, target_bytes, block_keep, max_ppl_increase, .. } = options;
    let given = [
        ("keep", keep.is_some()),
        ("target_params", target_params.is_some()),
        ("target_bytes", target_bytes.is_some()),
        ("block_keep", block_keep.is_some()),
        ("max_ppl_increase", max_ppl_increase.is_some()),
    ];
    given.into_iter().find(|(_, given)| *given).map(|(key, _)| key)
}

fn entries(sizes: &Sizes, reports: Vec<Report>) -> Vec<Entry> {
    let entry = |(recipe, report): (&Recipe, Report)| {
        let name = recipe.output.display().to_string();
        Entry { name, report }
    };
    sizes.sizes().iter().zip(reports).map(entry).collect()
}
