//! What a user can get wrong.
//!
//! A [`UserError`] names the offending value and says what to do about it. Everything else that can fail is an
//! [`anyhow::Error`] with context. The command line prints both the same way: `error: …`, then `hint: …` if there is one.

/// A mistake in the input, the options or the environment: `what` carries the value, `hint` the way out.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct UserError {
    what: String,
    hint: Option<String>,
    not_finite: bool,
}

impl UserError {
    /// States what is wrong, with the value in it.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None, not_finite: false }
    }

    /// Adds what the user can do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// States what gave NaN or infinities where a number was wanted.
    pub fn not_finite(what: impl Into<String>) -> Self {
        Self { not_finite: true, ..Self::new(what) }
    }

    /// The hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// Whether the cause is that a model's output, or what leads to it, is NaN or infinite: a result of a kind, for those who
/// asked about quality.
pub fn is_not_finite(error: &anyhow::Error) -> bool {
    // As a context a UserError is found only by anyhow's own downcast, as a cause only by the chain.
    let mut all = error.downcast_ref::<UserError>().into_iter().chain(error.chain().filter_map(|e| e.downcast_ref()));
    all.any(|error| error.not_finite)
}

/// Returns early with a [`UserError`]: `user_bail!("what {x}")` or `user_bail!("what {x}"; "hint {y}")`.
#[macro_export]
macro_rules! user_bail {
    ($($what:expr),+ ; $($hint:expr),+) => {
        return Err(::anyhow::Error::new($crate::error::UserError::new(format!($($what),+)).hint(format!($($hint),+))))
    };
    ($($what:expr),+) => {
        return Err(::anyhow::Error::new($crate::error::UserError::new(format!($($what),+))))
    };
}
