//! Everything a command says besides its result: progress, notes and errors, all on stderr.

use super::errors::{EXIT_INTERRUPTED, hint, interrupted, messages, render_error};
use crate::memory::peak_rss_bytes;
use crate::progress::{Interrupted, Progress};
use crate::report::{bytes, seconds};
use crate::visible::{visible, visible_lines};
use anyhow::{Context, Error, Result};
use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::backtrace::BacktraceStatus;
use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines inside one stage are at least this far apart.
const PLAIN_EVERY: Duration = Duration::from_secs(5);
const JSON_EVERY: Duration = Duration::from_secs(1);
/// The bar's clock moves this often when no step arrives.
const TICK: Duration = Duration::from_millis(500);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ProgressMode {
    /// A bar on a terminal, lines elsewhere
    #[default]
    Auto,
    /// A bar with the time left
    Bar,
    /// One line per stage, and every few seconds inside long ones
    Plain,
    /// One JSON object per line
    Json,
    /// Nothing
    None,
}

/// How a command talks.
#[derive(Debug, Clone, Copy, Default)]
pub struct UiOptions {
    /// How progress is shown.
    pub progress: ProgressMode,
    /// Errors only.
    pub quiet: bool,
    /// How long stages took, and where errors came from.
    pub verbose: bool,
}

/// The command's voice.
pub struct Ui {
    mode: Mode,
    quiet: bool,
    verbose: bool,
    color: bool,
    every: Duration,
    started: Instant,
    stop: Arc<AtomicBool>,
    stage: Mutex<Option<Stage>>,
    out: Sink,
}

enum Mode {
    Bar(MultiProgress),
    Plain,
    Json,
    Silent,
}

/// Where lines go.
#[derive(Clone)]
enum Sink {
    Stderr,
    #[cfg(test)]
    Memory(Arc<Mutex<String>>),
}

struct Stage {
    name: String,
    steps: u64,
    done: u64,
    started: Instant,
    spoken: Instant,
    bar: Option<ProgressBar>,
}

impl Stage {
    /// Seconds left if steps keep taking as long as they did.
    fn eta(&self) -> Option<f64> {
        let left = self.steps.checked_sub(self.done)?;
        (self.done > 0).then(|| self.started.elapsed().as_secs_f64() * left as f64 / self.done as f64)
    }
}

impl Ui {
    /// Decides, from the options and from what stderr is, how to talk.
    pub fn new(options: UiOptions) -> Self {
        let terminal = stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let mode = match (options.quiet, options.progress) {
            (_, ProgressMode::Json) => Mode::Json,
            (true, _) | (_, ProgressMode::None) => Mode::Silent,
            (_, ProgressMode::Auto | ProgressMode::Bar) if terminal => Mode::Bar(MultiProgress::new()),
            (_, ProgressMode::Auto | ProgressMode::Bar | ProgressMode::Plain) => Mode::Plain,
        };
        Self {
            every: if matches!(mode, Mode::Json) { JSON_EVERY } else { PLAIN_EVERY },
            mode,
            quiet: options.quiet,
            verbose: options.verbose,
            color: terminal && colors_wanted(),
            started: Instant::now(),
            stop: Arc::default(),
            stage: Mutex::default(),
            out: Sink::Stderr,
        }
    }

    /// From now on Ctrl-C and SIGTERM end the work at its next step; a second one ends the program at once.
    pub fn stop_on_signals(&self) -> Result<()> {
        let (stop, out) = (self.stop.clone(), self.out.clone());
        let bars = if let Mode::Bar(bars) = &self.mode { Some(bars.clone()) } else { None };
        let json = matches!(self.mode, Mode::Json);
        let handler = move || {
            if stop.swap(true, Ordering::SeqCst) {
                std::process::exit(EXIT_INTERRUPTED);
            }
            let text = "stopping after the current step; once more stops at once";
            match &bars {
                Some(bars) => drop(bars.println(text)),
                None if json => out.line(&remark_event("note", text).to_string()),
                None => out.line(text),
            }
        };
        ctrlc::set_handler(handler).context("listening for Ctrl-C")
    }

    /// Set once the user wants to stop; for work that waits without making steps.
    pub fn stop(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// Ends the current stage. Call it before printing the result.
    pub fn finish(&self) {
        if let Some(stage) = self.lock().take() {
            self.end(stage);
        }
    }

    /// Says that something was done: a plain line, unless quiet or talking to a program.
    pub fn done(&self, text: &str) {
        if !self.quiet && !matches!(self.mode, Mode::Json) {
            self.out.line(&visible(text));
        }
    }

    /// Says that a check that was asked for failed, however quiet the command is.
    pub fn check_failed(&self, text: &str) {
        match self.mode {
            Mode::Json => self.event(json!({"event": "check_failed", "text": text})),
            _ => self.out.line(&format!("check failed: {}", visible(text))),
        }
    }

    /// Prints `error: …`, its causes and `hint: …`.
    pub fn print_error(&self, error: &Error) {
        if let Some(stage) = self.lock().take()
            && let Some(bar) = stage.bar
        {
            bar.finish_and_clear();
        }
        if matches!(self.mode, Mode::Json) {
            let event = if interrupted(error) { "interrupted" } else { "error" };
            let (message, causes) = messages(error);
            self.out
                .line(&json!({"event": event, "message": message, "causes": causes, "hint": hint(error)}).to_string());
            return;
        }
        self.out.line(&render_error(error, self.color));
        let trace = error.backtrace();
        if self.verbose && trace.status() == BacktraceStatus::Captured && !interrupted(error) {
            self.out.line(&visible_lines(&trace.to_string()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Stage>> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed(&self) -> String {
        format!("[{:>7.1} s]", self.started.elapsed().as_secs_f64())
    }

    fn end(&self, stage: Stage) {
        let took = stage.started.elapsed().as_secs_f64();
        if let Some(bar) = stage.bar {
            bar.finish_and_clear();
        }
        match &self.mode {
            Mode::Bar(bars) => drop(bars.println(format!("{:<14} {}", stage.name, seconds(took)))),
            Mode::Plain if self.verbose => {
                let peak = peak_rss_bytes().map(|peak| format!(", peak memory {}", bytes(peak))).unwrap_or_default();
                self.out.line(&format!("{} {}: done in {}{peak}", self.elapsed(), stage.name, seconds(took)));
            }
            Mode::Json => self.event(json!({"event": "stage_done", "name": stage.name, "seconds": round(took)})),
            Mode::Plain | Mode::Silent => {}
        }
    }

    /// `kind: text`, the kind in bold and in `color` where there are colours.
    fn remark(&self, kind: &str, text: &str, color: &str) {
        let said = visible(text);
        let shown =
            if self.color { format!("\x1b[1;{color}m{kind}:\x1b[0m {said}") } else { format!("{kind}: {said}") };
        match &self.mode {
            Mode::Json => self.event(remark_event(kind, text)),
            _ if self.quiet => {}
            Mode::Bar(bars) => drop(bars.println(shown)),
            Mode::Plain | Mode::Silent => self.out.line(&shown),
        }
    }

    fn event(&self, event: Value) {
        self.out.line(&event.to_string());
    }
}

impl Progress for Ui {
    fn stage(&self, name: &str, steps: u64) {
        self.finish();
        let shown = visible(name);
        let bar = match &self.mode {
            Mode::Bar(bars) => {
                let bar = bars.add(if steps > 1 { ProgressBar::new(steps) } else { ProgressBar::new_spinner() });
                bar.set_style(style(steps));
                bar.set_prefix(shown.clone());
                bar.enable_steady_tick(TICK);
                Some(bar)
            }
            Mode::Plain => {
                self.out.line(&format!("{} {shown}", self.elapsed()));
                None
            }
            Mode::Json => {
                self.event(json!({"event": "stage", "name": name, "steps": steps}));
                None
            }
            Mode::Silent => None,
        };
        let now = Instant::now();
        *self.lock() = Some(Stage { name: shown, steps, done: 0, started: now, spoken: now, bar });
    }

    fn step(&self, steps: u64) -> Result<()> {
        if let Some(stage) = self.lock().as_mut() {
            stage.done += steps;
            if let Some(bar) = &stage.bar {
                bar.inc(steps);
            }
            let due = stage.spoken.elapsed() >= self.every;
            if due && matches!(self.mode, Mode::Plain) && stage.done < stage.steps {
                let percent = 100 * stage.done / stage.steps;
                let left = stage.eta().map(|eta| format!(", {} left", seconds(eta))).unwrap_or_default();
                self.out.line(&format!("{} {}: {percent} %{left}", self.elapsed(), stage.name));
                stage.spoken = Instant::now();
            } else if matches!(self.mode, Mode::Json) && (due || stage.done == stage.steps) {
                let (done, of, eta) = (stage.done, stage.steps, stage.eta().map(round));
                self.event(json!({"event": "step", "done": done, "of": of, "eta_s": eta}));
                stage.spoken = Instant::now();
            }
        }
        if self.stop.load(Ordering::SeqCst) {
            return Err(Interrupted.into());
        }
        Ok(())
    }

    fn note(&self, text: &str) {
        self.remark("note", text, "36");
    }

    fn warn(&self, text: &str) {
        self.remark("warning", text, "33");
    }
}

impl Drop for Ui {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Sink {
    /// Writes one line. A closed stderr is no reason to stop working.
    fn line(&self, text: &str) {
        match self {
            Sink::Stderr => drop(writeln!(stderr().lock(), "{text}")),
            #[cfg(test)]
            Sink::Memory(lines) => {
                lines.lock().expect("no test panics while holding it").push_str(&format!("{text}\n"))
            }
        }
    }
}

fn remark_event(kind: &str, text: &str) -> Value {
    json!({"event": kind, "text": text})
}

/// Milliseconds are enough for a log.
fn round(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

fn style(steps: u64) -> ProgressStyle {
    let template = match steps {
        0 | 1 => "{prefix:<14} {spinner} {elapsed}",
        _ => "{prefix:<14} {bar:28} {percent:>3} %  {elapsed}, {eta} left",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// `NO_COLOR` with any content but the empty one turns colours off.
pub(super) fn colors_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::UserError;

    fn ui(mode: ProgressMode, quiet: bool, verbose: bool) -> (Ui, Arc<Mutex<String>>) {
        let mut ui = Ui::new(UiOptions { progress: mode, quiet, verbose });
        let lines = Arc::<Mutex<String>>::default();
        ui.out = Sink::Memory(lines.clone());
        ui.every = Duration::ZERO;
        (ui, lines)
    }

    fn work(ui: &Ui) {
        ui.stage("compressing", 4);
        for _ in 0..4 {
            ui.step(1).expect("nobody interrupts");
        }
        ui.note("a fallback was taken");
        ui.warn("a doubt");
        ui.stage("writing", 1);
        ui.finish();
    }

    fn said(lines: &Arc<Mutex<String>>) -> Vec<String> {
        lines.lock().expect("no panic").lines().map(String::from).collect()
    }

    #[test]
    fn json_progress_is_one_object_per_line() {
        let (ui, lines) = ui(ProgressMode::Json, false, false);
        work(&ui);
        ui.print_error(&UserError::new("what").hint("way out").into());
        let events: Vec<Value> =
            said(&lines).iter().map(|line| serde_json::from_str(line).expect("every line is JSON")).collect();
        let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
        let steps = ["step"; 4];
        let expected =
            [&["stage"], &steps[..], &["note", "warning", "stage_done", "stage", "stage_done", "error"]].concat();
        assert_eq!(kinds, expected);
        assert_eq!(events[0], json!({"event": "stage", "name": "compressing", "steps": 4}));
        assert_eq!((&events[2]["done"], &events[2]["of"]), (&json!(2), &json!(4)));
        assert!(events[2]["eta_s"].is_f64() && events[4]["eta_s"] == json!(0.0), "{events:?}");
        assert_eq!(events[6], json!({"event": "warning", "text": "a doubt"}));
        assert_eq!((&events[7]["name"], events[7]["seconds"].is_f64()), (&json!("compressing"), true));
        assert_eq!((&events[10]["message"], &events[10]["hint"]), (&json!("what"), &json!("way out")));
    }

    #[test]
    fn plain_progress_is_a_line_per_stage_with_percentages_inside() {
        let (ui, lines) = ui(ProgressMode::Plain, false, false);
        work(&ui);
        let lines = said(&lines);
        let ends = ["] compressing", "", "", "", "note: a fallback was taken", "warning: a doubt", "] writing"];
        assert_eq!(lines.len(), ends.len(), "{lines:?}");
        assert!(lines.iter().zip(ends).all(|(line, end)| line.ends_with(end)), "{lines:?}");
        assert!(lines[2].contains("compressing: 50 %, ") && lines[2].ends_with(" left"), "{lines:?}");
    }

    #[test]
    fn lines_inside_a_stage_keep_their_distance() {
        let (mut ui, lines) = ui(ProgressMode::Plain, false, false);
        ui.every = Duration::from_secs(3600);
        work(&ui);
        assert_eq!(said(&lines).len(), 4);
    }

    #[test]
    fn quiet_says_nothing_but_errors() {
        let (ui, lines) = ui(ProgressMode::Auto, true, false);
        work(&ui);
        assert_eq!(said(&lines), Vec::<String>::new());
        ui.print_error(&UserError::new("what").into());
        assert_eq!(said(&lines), ["error: what"]);
    }

    #[test]
    fn verbose_tells_how_long_stages_took() {
        let (ui, lines) = ui(ProgressMode::Plain, false, true);
        work(&ui);
        assert!(said(&lines).iter().any(|line| line.contains("compressing: done in ")), "{:?}", said(&lines));
    }

    #[test]
    fn a_stop_ends_the_work_at_the_next_step() {
        let (ui, _) = ui(ProgressMode::None, false, false);
        ui.stage("compressing", 2);
        ui.step(1).expect("not yet");
        ui.stop.store(true, Ordering::SeqCst);
        let error = ui.step(1).expect_err("stopped");
        assert!(error.is::<Interrupted>());
    }
}
