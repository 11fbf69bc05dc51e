//! The command line: one file per subcommand. Only this module prints.
//!
//! stdout carries the result, stderr everything else. Exit codes: 0 fine, 1 a check that was asked for failed, 2 error,
//! 130 interrupted (the same command goes on from there).

mod bench;
mod calibrate;
mod compare;
mod compress;
mod cut;
mod doctor;
mod errors;
mod eval;
mod export;
mod gates;
mod generate;
mod html;
mod inspect;
mod manual;
mod methods;
mod page;
mod plan;
mod sweep;
mod synthetic;
mod ui;
mod values;
mod verify;

use crate::compute::Compute;
use crate::device::Choice;
use crate::hub::HubOptions;
use crate::method::{flag, variable};
use crate::progress::Progress;
use crate::recipe::{SET, SIZES};
use crate::user_bail;
use anyhow::Result;
use candle_core::Device;
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use errors::{EXIT_CHECK, EXIT_OK, exit_code};
use std::process::ExitCode;
use std::sync::Arc;
use ui::{ProgressMode, Ui, UiOptions};
use values::switch;

/// No machine has more cores; the system may refuse more threads.
const MAX_THREADS: usize = 1024;

/// Makes language models smaller by low-rank methods, and proves how good they still are.
#[derive(Parser)]
#[command(name = "softlm", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  softlm compress demo --method rom --keep 0.8 -o out   no network, no data set needed
  softlm eval out --ppl sample                          perplexity beside that of the original
  softlm compare out other                              two outputs side by side
  softlm generate out --prompt 'The sea'                what it writes
  softlm export out --to dense -o plain                 a checkpoint that needs no softlm
  softlm methods whiten                                 what a method does, and its paper

Options are also variables: --threads is SOFTLM_THREADS.
Exit codes: 0 fine, 1 a requested check failed, 2 error, 130 interrupted (run again to continue).";

#[derive(Args)]
struct Global {
    /// Worker threads; the result is the same for any number [default: all cores]
    #[arg(long, global = true, env = "SOFTLM_THREADS", help_heading = "Global")]
    threads: Option<usize>,
    /// Where to compute: auto (the GPU if there is one that works), cpu, cuda or cuda:N
    #[arg(long, global = true, env = "SOFTLM_DEVICE", default_value = "auto", help_heading = "Global")]
    device: String,
    /// Nothing from the network but what is cached
    #[arg(long, global = true, env = "SOFTLM_OFFLINE", value_parser = switch(), help_heading = "Global")]
    offline: bool,
    /// Branch, tag or commit of a model on the hub
    #[arg(long, global = true, env = "SOFTLM_REVISION", help_heading = "Global")]
    revision: Option<String>,
    /// How progress is shown on stderr: auto, bar, plain, json, none
    #[arg(
        long,
        global = true,
        env = "SOFTLM_PROGRESS",
        default_value = "auto",
        hide_possible_values = true,
        value_name = "MODE",
        help_heading = "Global"
    )]
    progress: ProgressMode,
    /// No progress and no notes
    #[arg(short, long, global = true, env = "SOFTLM_QUIET", value_parser = switch(), help_heading = "Global")]
    quiet: bool,
    /// More detail
    #[arg(short, long, global = true, env = "SOFTLM_VERBOSE", value_parser = switch(), help_heading = "Global")]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Compress a model
    Compress(Box<compress::Compress>),
    /// Make another size of what compress --elastic has written
    Cut(cut::Cut),
    /// Say what compress would do, from headers alone: sizes, memory and time
    Plan(Box<plan::Plan>),
    /// Compress to several sizes at once, and show them side by side
    Sweep(Box<sweep::Sweep>),
    /// Show several outputs side by side
    Compare(compare::Compare),
    /// Measure perplexity, and divergence from the original
    Eval(eval::Eval),
    /// Measure how fast a model reads and writes, beside what the machine can do
    Bench(bench::Bench),
    /// Continue a text
    Generate(generate::Generate),
    /// Collect activation statistics once, to be used by several runs
    Calibrate(calibrate::Calibrate),
    /// Write a compressed model as one that other programs load
    Export(export::Export),
    /// Prove that a compressed model's folder is whole
    Verify(verify::Verify),
    /// Show what is in a checkpoint, an output or a folder of statistics
    Inspect(inspect::Inspect),
    /// List the methods, or explain one
    Methods(methods::Methods),
    /// Check the machine, its disks and the hub, and say what to do about each
    Doctor(doctor::Doctor),
    /// Write a shell's completions of this command line
    Completions(manual::Completions),
    /// Write the manual page, or one for every command
    Man(manual::Man),
    /// Write a checkpoint of a configuration's shapes with made-up weights, for benchmarks
    #[command(hide = true)]
    Synthetic(synthetic::Synthetic),
}

impl Command {
    /// Whether it runs a model: the others need no device.
    fn computes(&self) -> bool {
        matches!(
            self,
            Self::Compress(_)
                | Self::Cut(_)
                | Self::Sweep(_)
                | Self::Plan(_)
                | Self::Bench(_)
                | Self::Eval(_)
                | Self::Generate(_)
                | Self::Calibrate(_)
        )
    }
}

/// What every command gets.
struct Context<'a> {
    ui: &'a Ui,
    hub: HubOptions,
    compute: Compute,
    verbose: bool,
}

/// Whether a check that was asked for held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Fine,
    CheckFailed,
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    settle_environment();
    crate::memory::keep();
    let cli = Cli::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit());
    let threads = set_threads(cli.global.threads);
    let ui = Arc::new(Ui::new(UiOptions {
        progress: cli.global.progress,
        quiet: cli.global.quiet,
        verbose: cli.global.verbose,
    }));
    let outcome = threads.and_then(|()| ui.stop_on_signals()).and_then(|()| run(cli, &ui));
    let code = match outcome {
        Ok(Outcome::Fine) => EXIT_OK,
        Ok(Outcome::CheckFailed) => EXIT_CHECK,
        Err(error) => {
            ui.print_error(&error);
            exit_code(&error)
        }
    };
    ExitCode::from(code as u8)
}

fn run(cli: Cli, ui: &Arc<Ui>) -> Result<Outcome> {
    let mut hub = HubOptions::from_env();
    hub.offline |= cli.global.offline;
    hub.revision = cli.global.revision;
    let said = ui.clone();
    hub.log = Some(Arc::new(move |line| said.note(line)));
    hub.stop = Some(ui.stop());
    let choice = Choice::parse(&cli.global.device)?;
    let device = if cli.command.computes() { choice.open(|why| ui.note(why))? } else { Device::Cpu };
    let context = Context { ui, hub, compute: Compute::from(&device), verbose: cli.global.verbose };
    match cli.command {
        Command::Compress(command) => command.run(&context),
        Command::Cut(command) => command.run(&context),
        Command::Plan(command) => command.run(&context),
        Command::Sweep(command) => command.run(&context),
        Command::Compare(command) => command.run(&context),
        Command::Eval(command) => command.run(&context),
        Command::Bench(command) => command.run(&context),
        Command::Generate(command) => command.run(&context),
        Command::Calibrate(command) => command.run(&context),
        Command::Export(command) => command.run(&context),
        Command::Verify(command) => command.run(&context),
        Command::Inspect(command) => command.run(&context),
        Command::Methods(command) => command.run(),
        Command::Doctor(command) => command.run(&context),
        Command::Completions(command) => command.run(self::command()),
        Command::Man(command) => command.run(self::command()),
        Command::Synthetic(command) => command.run(&context),
    }
}

/// The command line. Whatever `compress` takes is also a variable. Its help is short: `-h` leaves out what is rarely needed,
/// and words and variables are in the text of `--help`.
fn command() -> clap::Command {
    let short = std::env::args_os().any(|arg| arg == "-h");
    let brief = |arg: Arg| arg.hide_env(true).hide_possible_values(true);
    let of_recipes = move |command: clap::Command| {
        command.mut_args(|arg| {
            let (id, hidden) = (arg.get_id().to_string(), arg.is_hide_set());
            let arg = brief(arg).hide(hidden || short && !compress::OFTEN.split(' ').any(|often| often == id));
            if id == SET { arg } else { arg.env(variable(&id)) }
        })
    };
    let command = Cli::command().mut_args(brief).mut_subcommand("compress", of_recipes);
    let command = command.mut_subcommand("plan", of_recipes);
    command.mut_subcommand("sweep", |sweep| sweep::several_sizes(of_recipes(sweep)))
}

/// Makes the environment mean what people expect: an empty variable is one that is not set, and a size asked for by
/// flag silences the sizes of the environment, which are other ways to ask.
#[allow(unsafe_code, reason = "variables of the environment, before any thread")]
fn settle_environment() {
    let asks_for = |flag: &str| std::env::args_os().any(|arg| arg.to_string_lossy().split('=').next() == Some(flag));
    let by_flag = SIZES.iter().any(|key| asks_for(&flag(key)));
    let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SOFTLM_"));
    let dropped =
        ours.filter(|(name, value)| value.is_empty() || by_flag && SIZES.iter().any(|key| *name == *variable(key)));
    for (name, _) in dropped.collect::<Vec<_>>() {
        // SAFETY: nothing else runs yet: this is the first thing the process does.
        unsafe { std::env::remove_var(name) };
    }
}

#[allow(unsafe_code, reason = "variables of the environment, before any thread")]
fn set_threads(threads: Option<usize>) -> Result<()> {
    if let Some(threads) = threads.filter(|threads| !(1..=MAX_THREADS).contains(threads)) {
        user_bail!("--threads {threads} is not between 1 and {MAX_THREADS}"; "leave it out to use all cores");
    }
    // candle asks for this at every product, and where it is not set it reads what the system says of its processors anew.
    let said = std::env::var("RAYON_NUM_THREADS").is_ok_and(|said| said.parse().is_ok_and(|n: usize| n > 0));
    let threads =
        threads.or_else(|| if said { None } else { std::thread::available_parallelism().map(usize::from).ok() });
    // SAFETY: nothing else runs yet: only the arguments have been read.
    unsafe {
        if let Some(threads) = threads {
            std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
        }
        // A second pool, for sums and the like, whose threads wait actively and slow the first one down.
        std::env::set_var("CANDLE_NUM_THREADS", "1");
    }
    Ok(())
}
