//! From corpus names to windows.

use super::Labels;
use crate::calibrate::StatsStore;
use crate::eval::Modules;
use crate::hub::HubOptions;
use crate::model::{Model, Output};
use crate::recipe::{BosRule, Recipe};
use crate::report::{CalibrationInfo, CorpusInfo, TrainingTextInfo};
use crate::text::{self, Corpus, Sampling, Split, Tokenizer, Windows};
use crate::user_bail;
use anyhow::{Context, Result};

/// The field's usual window.
const USUAL_WINDOW: usize = 2048;
/// The usual window of an encoder: its texts are sentences and passages.
const ENCODER_WINDOW: usize = 128;
/// Of a pseudo-perplexity, where every token costs a window: its usual window, and how many there are at most.
const MASKED: (usize, usize) = (64, 16);
/// How [`Calibration::describe`] says that every window begins with BOS.
const EACH_BEGUN: &str = "each begun by BOS";
/// Tokens kept apart from calibration to measure output errors on.
pub const HELDOUT_TOKENS: usize = 1024;

/// Windows to calibrate on.
#[derive(Clone)]
pub struct Calibration {
    /// What enters the statistics.
    pub windows: Windows,
    /// What output errors are measured on.
    pub heldout: Windows,
    /// Where the text came from.
    pub corpora: Vec<CorpusInfo>,
    /// How the windows were chosen.
    pub sampling: Sampling,
    /// What training has instead of the windows, if there are labels.
    pub labels: Option<Labels>,
    /// What training has instead of the windows, if it has text of its own or more to judge by.
    pub training: Option<TrainingText>,
}

/// Text to train on.
#[derive(Clone)]
pub struct TrainingText {
    /// What is shown.
    pub windows: Windows,
    /// What is judged by.
    pub heldout: Windows,
    /// Where the text came from; nothing if it is that of calibration.
    pub corpora: Vec<CorpusInfo>,
}

impl TrainingText {
    /// What the report says of it.
    pub fn report(&self) -> TrainingTextInfo {
        TrainingTextInfo {
            corpora: self.corpora.clone(),
            window: self.windows.window,
            windows: self.windows.len(),
            tokens: self.windows.tokens(),
            heldout_windows: self.heldout.len(),
        }
    }
}

impl Calibration {
    /// Of windows to calibrate on and windows to measure errors on; training is shown and judged by the same.
    pub fn new(windows: Windows, heldout: Windows, corpora: Vec<CorpusInfo>, sampling: Sampling) -> Self {
        Self { windows, heldout, corpora, sampling, labels: None, training: None }
    }

    /// Leaves about `tokens` of what was kept apart, spread over it, to measure errors on: they are kept for every input of a
    /// block. All of it is there for training, which is shown the same windows.
    pub(super) fn judged_by_all(&mut self, tokens: usize) -> TrainingText {
        let all = self.heldout.clone();
        let wanted = (tokens / all.window.max(1)).max(1);
        let every = (all.len() / wanted).max(1);
        self.heldout.rows = all.rows.iter().step_by(every).cloned().collect();
        TrainingText { windows: self.windows.clone(), heldout: all, corpora: Vec::new() }
    }

    /// Text to train on, and to judge by.
    pub fn trained_on(&self) -> (&Windows, &Windows) {
        self.training.as_ref().map_or((&self.windows, &self.heldout), |text| (&text.windows, &text.heldout))
    }

    /// Whether every window begins with BOS. Windows to calibrate on do not overlap, so one that begins with BOS moves on
    /// by one token less than it has; an encoder's, between two special tokens, by two less.
    pub fn begins_with_bos(&self) -> bool {
        self.windows.bos && self.windows.stride + 1 == self.windows.window
    }

    /// Refuses statistics of windows that begin in another way: BOS changes what every linear sees, so sums with and
    /// without it say nothing of each other. What the store's texts say of themselves is [`Calibration::describe`]'s.
    pub fn refuse_other_beginning(&self, store: &StatsStore) -> Result<()> {
        let bos = self.begins_with_bos();
        if let Some(other) = store.origin.texts.iter().find(|text| text.contains(EACH_BEGUN) != bos) {
            let (theirs, ours) = if bos { ("do not begin", "do") } else { ("begin", "do not") };
            user_bail!(
                "{} was made from {other}, whose windows {theirs} with BOS; those of this run {ours}", store.dir().display();
                "collect them again, or say the same in --bos"
            );
        }
        Ok(())
    }

    /// One line that says what was used; another text or choice of windows gives another line.
    pub fn describe(&self) -> String {
        let name = |c: &CorpusInfo| format!("{} (sha256 {:.12})", c.name, c.sha256);
        let names: Vec<String> = self.corpora.iter().map(name).collect();
        let choice = match self.sampling {
            Sampling::First => "first".to_string(),
            Sampling::Random { seed } => format!("random, seed {seed}"),
        };
        let (count, length) = (self.windows.len(), self.windows.window);
        let begun = if self.begins_with_bos() { format!(", {EACH_BEGUN}") } else { String::new() };
        format!("{count} windows of {length} tokens{begun} ({choice}) of {}", names.join(", "))
    }

    /// The same for the report.
    pub fn report(&self, recipe: &Recipe) -> CalibrationInfo {
        let name = |value: serde_json::Value| value.as_str().unwrap_or_default().to_string();
        CalibrationInfo {
            corpora: self.corpora.clone(),
            window: self.windows.window,
            windows: self.windows.len(),
            tokens: self.windows.tokens(),
            bos: self.begins_with_bos(),
            heldout_windows: self.heldout.len(),
            sampling: name(serde_json::json!(recipe.sampling)),
            seed: recipe.seed,
            inputs: name(serde_json::json!(recipe.inputs)),
        }
    }
}

/// What to take of the calibration corpora.
pub struct CalibrationWish<'a> {
    /// Corpus names.
    pub specs: &'a [String],
    /// Windows over all corpora.
    pub windows: usize,
    /// Tokens per window, or the default.
    pub window: Option<usize>,
    /// Which of them.
    pub sampling: Sampling,
    /// Whether each begins with BOS.
    pub bos: BosRule,
    /// Tokens to keep apart, about; usually [`HELDOUT_TOKENS`].
    pub heldout: usize,
}

/// Tokens of a window where nobody says, if the text is long enough.
pub(super) fn usual_window(model: &Model) -> usize {
    if model.is_encoder() { ENCODER_WINDOW } else { USUAL_WINDOW }
}

/// Reads, tokenises and cuts the calibration text. Several corpora give equal numbers of windows.
pub fn calibration(
    model: &Model,
    tokenizer: &Tokenizer,
    wish: &CalibrationWish,
    hub: &HubOptions,
) -> Result<Calibration> {
    if wish.windows == 0 {
        user_bail!("--calib-windows is 0"; "use at least 1");
    }
    let (windows, heldout, corpora) = read(model, tokenizer, wish, hub)?;
    Ok(Calibration::new(windows, heldout, corpora, wish.sampling))
}

/// Text to train on, cut in the same way.
pub fn training(
    model: &Model,
    tokenizer: &Tokenizer,
    wish: &CalibrationWish,
    hub: &HubOptions,
) -> Result<TrainingText> {
    let (windows, heldout, corpora) = read(model, tokenizer, wish, hub).context("reading the text to train on")?;
    Ok(TrainingText { windows, heldout, corpora })
}

/// What is wished for, what is kept apart, and where both came from.
fn read(
    model: &Model,
    tokenizer: &Tokenizer,
    wish: &CalibrationWish,
    hub: &HubOptions,
) -> Result<(Windows, Windows, Vec<CorpusInfo>)> {
    let bos = beginning(model, tokenizer, wish.bos)?;
    let mut parts: Vec<(Windows, Windows)> = Vec::new();
    let mut corpora = Vec::new();
    let usual = usual_window(model);
    let share = |index| wish.windows / wish.specs.len() + usize::from(index < wish.windows % wish.specs.len());
    let mut loaded: Vec<(CorpusInfo, Vec<u32>)> = Vec::new();
    for (i, spec) in wish.specs.iter().enumerate() {
        let corpus = text::load(spec, Split::Calibration, hub)?;
        let longest = window_length(model, &info(&corpus), usize::MAX, wish.window, usual)?;
        let first = share(i).saturating_mul(longest).saturating_add(wish.heldout.max(longest));
        loaded.push(tokenise(tokenizer, corpus, (wish.sampling == Sampling::First).then_some(first))?);
    }
    // One length for all windows: that of the corpus that allows the least.
    let lengths = loaded.iter().map(|(c, t)| window_length(model, c, t.len(), wish.window, usual));
    let length = lengths.collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or(USUAL_WINDOW);
    for (i, (corpus, tokens)) in loaded.into_iter().enumerate() {
        let all = cut(model, tokenizer, &tokens, length, length, bos)
            .with_context(|| format!("the corpus {} cannot be used", corpus.name))?;
        let heldout = (wish.heldout / length / wish.specs.len()).max(1);
        parts.push(text::split_heldout(&all, share(i), heldout, wish.sampling));
        corpora.push(corpus);
    }
    let mut parts = parts.into_iter();
    let Some((mut windows, mut heldout)) = parts.next() else {
        user_bail!("no calibration text"; "name one with --calib, for example --calib sample")
    };
    for (w, h) in parts {
        windows.rows.extend(w.rows);
        heldout.rows.extend(h.rows);
    }
    Ok((windows, heldout, corpora))
}

/// A corpus cut for evaluation.
pub struct EvalText {
    /// Where it came from.
    pub corpus: CorpusInfo,
    /// Its windows.
    pub windows: Windows,
    /// The id that stands in for a token to be guessed; only of encoders that guess.
    pub mask: Option<u32>,
    /// How an encoder's states become embeddings.
    pub modules: Modules,
}

impl EvalText {
    /// A text for a decoder.
    pub fn new(corpus: CorpusInfo, windows: Windows) -> Self {
        Self { corpus, windows, mask: None, modules: Modules::default() }
    }
}

/// How evaluation text is cut.
#[derive(Debug, Clone, Copy, Default)]
pub struct EvalProtocol {
    /// Tokens per window, or the default.
    pub window: Option<usize>,
    /// Tokens between window starts; the window itself if absent.
    pub stride: Option<usize>,
    /// At most this many windows, the first ones.
    pub max_windows: Option<usize>,
    /// Whether each window begins with the tokenizer's BOS.
    pub bos: BosRule,
}

/// The corpora that `recipe` evaluates on, cut as it says.
pub(super) fn of_recipe(
    recipe: &Recipe,
    model: &Model,
    tokenizer: &Tokenizer,
    hub: &HubOptions,
) -> Result<Vec<EvalText>> {
    let (window, max_windows, bos) = (recipe.eval_window, recipe.max_windows, recipe.bos);
    evaluation(model, tokenizer, &recipe.ppl, EvalProtocol { window, stride: None, max_windows, bos }, hub)
}

/// Reads, tokenises and cuts evaluation corpora.
pub fn evaluation(
    model: &Model,
    tokenizer: &Tokenizer,
    specs: &[String],
    protocol: EvalProtocol,
    hub: &HubOptions,
) -> Result<Vec<EvalText>> {
    if protocol.max_windows == Some(0) {
        user_bail!("--max-windows is 0"; "use at least 1, or leave it out for all");
    }
    let bos = beginning(model, tokenizer, protocol.bos)?;
    let masked = model.output() == Output::MaskedToken;
    let mask = if masked { Some(mask_of(model, tokenizer)?) } else { None };
    let usual = match (masked, model.is_encoder()) {
        (true, _) => MASKED.0,
        (false, true) => ENCODER_WINDOW,
        (false, false) => USUAL_WINDOW,
    };
    // Embeddings are compared where no token is predicted.
    let modules = if masked { Modules::default() } else { super::quality::modules(model)? };
    let read = |spec: &String| -> Result<EvalText> {
        let corpus = text::load(spec, Split::Evaluation, hub)?;
        let most = protocol.max_windows.or(masked.then_some(MASKED.1));
        let longest = window_length(model, &info(&corpus), usize::MAX, protocol.window, usual)?;
        let (corpus, tokens) = tokenise(tokenizer, corpus, most.map(|most| most.saturating_mul(longest)))?;
        let window = window_length(model, &corpus, tokens.len(), protocol.window, usual)?;
        let windows = cut(model, tokenizer, &tokens, window, protocol.stride.unwrap_or(window), bos)
            .with_context(|| format!("the corpus {} cannot be used", corpus.name))?;
        let windows = match most {
            Some(n) => text::choose(&windows, n, Sampling::First),
            None => windows,
        };
        Ok(EvalText { corpus, windows, mask, modules: modules.clone() })
    };
    specs.iter().map(read).collect()
}

/// What every window begins with, if with anything but text.
///
/// The field's protocol, which published perplexities are measured by, is without BOS, whatever a tokenizer does to a text
/// of its own. Only models that cannot do without get one unasked, and only where their tokenizer gives them one too.
///
/// # Errors
/// If BOS is asked for and the tokenizer has none, or anything is asked of an encoder, whose windows are framed by its
/// special tokens.
fn beginning(model: &Model, tokenizer: &Tokenizer, rule: BosRule) -> Result<Option<u32>> {
    let label = model.source().label();
    if model.is_encoder() && tokenizer.frame().is_some() && rule != BosRule::Auto {
        user_bail!("--bos is for decoders, but {label} is an encoder: special tokens frame its windows"; "leave --bos out");
    }
    match (rule, tokenizer.bos()) {
        (BosRule::Always, None) => user_bail!("--bos: the tokenizer of {label} has no BOS token"; "leave --bos out"),
        (BosRule::Always, bos) => Ok(bos),
        (BosRule::Auto, Some(bos)) if model.needs_bos() && tokenizer.encode_prompt("a")?.starts_with(&[bos]) => {
            Ok(Some(bos))
        }
        (BosRule::Auto | BosRule::Never, _) => Ok(None),
    }
}

fn mask_of(model: &Model, tokenizer: &Tokenizer) -> Result<u32> {
    match tokenizer.mask() {
        Some(mask) => Ok(mask),
        None => user_bail!(
            "the tokenizer of {} names no mask token", model.source().label();
            "its tokenizer_config.json should have a mask_token"
        ),
    }
}

/// Windows as the model takes texts: those of an encoder are framed by its special tokens.
fn cut(
    model: &Model,
    tokenizer: &Tokenizer,
    tokens: &[u32],
    window: usize,
    stride: usize,
    bos: Option<u32>,
) -> Result<Windows> {
    match tokenizer.frame().filter(|_| model.is_encoder()) {
        Some(frame) => text::cut_framed(tokens, window, stride, frame),
        None => text::cut(tokens, window, stride, bos),
    }
}

/// The window asked for, or the usual one where the model allows it. The built-in sample is short: it is cut into at
/// least four windows.
fn window_length(
    model: &Model,
    corpus: &CorpusInfo,
    tokens: usize,
    asked: Option<usize>,
    usual: usize,
) -> Result<usize> {
    if let Some(window) = asked {
        if window > model.context() {
            user_bail!(
                "a window of {window} tokens is longer than the model's context of {}", model.context();
                "use a window of {} or less", model.context()
            );
        }
        return Ok(window);
    }
    let usual = usual.min(model.context());
    if corpus.origin == text::BUILT_IN && tokens < 4 * usual {
        let quarter = (tokens / 4).max(2);
        return Ok(1 << quarter.ilog2());
    }
    Ok(usual)
}

/// The ids of a corpus, of which only the `first` are wanted, if that is known. The built-in one is short, and its length
/// decides on that of windows.
fn tokenise(tokenizer: &Tokenizer, corpus: Corpus, first: Option<usize>) -> Result<(CorpusInfo, Vec<u32>)> {
    let info = info(&corpus);
    let enough = first.filter(|_| corpus.origin != text::BUILT_IN).unwrap_or(usize::MAX);
    Ok((info, tokenizer.encode_some(&corpus.into_text(), enough)?))
}

fn info(corpus: &Corpus) -> CorpusInfo {
    CorpusInfo { name: corpus.name.clone(), origin: corpus.origin.clone(), sha256: corpus.sha256.clone() }
}
