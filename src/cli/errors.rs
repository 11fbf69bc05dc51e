//! How a command fails: what is said and the exit status.

use crate::error::UserError;
use crate::progress::Interrupted;
use crate::visible::visible;
use anyhow::Error;

/// Exit status: everything is fine.
pub const EXIT_OK: i32 = 0;
/// Exit status: a check that was asked for failed.
pub const EXIT_CHECK: i32 = 1;
/// Exit status: an error.
pub const EXIT_ERROR: i32 = 2;
/// Exit status: interrupted; the same command goes on.
pub const EXIT_INTERRUPTED: i32 = 130;

/// The exit status an error ends the program with.
pub fn exit_code(error: &Error) -> i32 {
    if interrupted(error) { EXIT_INTERRUPTED } else { EXIT_ERROR }
}

/// The error as people read it: what, the causes that say something new, and what to do.
pub fn render_error(error: &Error, color: bool) -> String {
    let bold = |word: &str, code: &str| if color { format!("\x1b[1;{code}m{word}\x1b[0m") } else { word.to_string() };
    if interrupted(error) {
        let what = bold("interrupted:", "33");
        return format!(
            "{what} stopped as asked\n{} the same command goes on where it was; what `eval` measured or `export` wrote so far is lost",
            bold("hint:", "36")
        );
    }
    let (message, causes) = messages(error);
    let mut out = format!("{} {}", bold("error:", "31"), visible(&message));
    for cause in causes {
        out.push_str(&format!("\n  caused by: {}", visible(&cause)));
    }
    if let Some(hint) = hint(error) {
        out.push_str(&format!("\n{} {}", bold("hint:", "36"), visible(&hint)));
    }
    out
}

/// Whether the user asked to stop.
pub(super) fn interrupted(error: &Error) -> bool {
    error.downcast_ref::<Interrupted>().is_some() || error.chain().any(|cause| cause.is::<Interrupted>())
}

/// The outermost message and the causes below it, without those that the message before already contains.
pub(super) fn messages(error: &Error) -> (String, Vec<String>) {
    let mut chain = error.chain().map(|cause| cause.to_string());
    let message = chain.next().unwrap_or_default();
    let mut causes: Vec<String> = Vec::new();
    for cause in chain {
        if !causes.last().unwrap_or(&message).contains(&cause) {
            causes.push(cause);
        }
    }
    (message, causes)
}

/// What the user can do, if any error of the chain knows.
pub(super) fn hint(error: &Error) -> Option<String> {
    // As a context a UserError is found only by anyhow's own downcast, as a cause only by the chain.
    let outer = error.downcast_ref::<UserError>().and_then(UserError::hint_text);
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<UserError>());
    outer.or_else(|| causes.find_map(UserError::hint_text)).map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, Result, anyhow};

    fn user_error() -> Error {
        UserError::new("--keep 1.2 is outside (0, 1]").hint("0.8 keeps 80 %").into()
    }

    #[test]
    fn the_hint_is_found_wherever_it_is() {
        let direct = render_error(&user_error(), false);
        assert_eq!(direct, "error: --keep 1.2 is outside (0, 1]\nhint: 0.8 keeps 80 %");
        let below = render_error(&user_error().context("reading the recipe").context("compressing"), false);
        assert_eq!(
            below,
            "error: compressing\n  caused by: reading the recipe\n  caused by: --keep 1.2 is outside (0, 1]\nhint: 0.8 keeps 80 %"
        );
        let above = anyhow!("low level").context(UserError::new("what").hint("way out")).context("outermost");
        assert!(render_error(&above, false).ends_with("caused by: what\n  caused by: low level\nhint: way out"));
    }

    #[test]
    fn a_cause_that_says_nothing_new_is_left_out() {
        let failed: Result<()> = Err(anyhow!("No such file")).context("cannot open a.txt: No such file");
        let error = failed.expect_err("made to fail");
        assert_eq!(render_error(&error, false), "error: cannot open a.txt: No such file");
    }

    #[test]
    fn interruption_is_not_an_error() {
        let error = Error::new(Interrupted).context("compressing block 3");
        assert_eq!((exit_code(&error), exit_code(&user_error())), (130, 2));
        assert!(!render_error(&error, false).contains("error"));
    }

    #[test]
    fn colour_is_only_there_when_asked_for() {
        assert!(!render_error(&user_error(), false).contains('\x1b'));
        assert!(render_error(&user_error(), true).contains("\x1b[1;31merror:\x1b[0m"));
    }
}
