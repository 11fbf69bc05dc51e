//! Calls into libraries that read files, such as tokenizers and parquet, which cannot take the program down.
//!
//! Some of what a file may say makes such a library panic, when it reads the file or only later. Here such a panic becomes
//! an error like others. All calls stay on the calling thread, so this is the thread whose panics are not printed.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use anyhow::Result;

use crate::error::UserError;

thread_local! {
    /// How many calls this thread is in.
    static INSIDE: Cell<usize> = const { Cell::new(0) };
}

/// Counts a call as long as it lives.
struct Call;

impl Call {
    fn begin() -> Self {
        INSIDE.set(INSIDE.get() + 1);
        Self
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        INSIDE.set(INSIDE.get() - 1);
    }
}

/// The result of `work`, and for a panic a [`UserError`] that begins with `what`, for example `cannot read FILE`.
pub(super) fn guarded<T>(what: &str, hint: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if INSIDE.try_with(Cell::get).unwrap_or(0) == 0 {
                others(panic);
            }
        }));
    });
    let call = Call::begin();
    // What `work` may have left half done is a value that its caller drops or only reads.
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    drop(call);
    result.unwrap_or_else(|_| {
        Err(UserError::new(format!("{what}: what is in it makes the library that reads it fail")).hint(hint).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_thread_goes_on() {
        for _ in 0..2 {
            let error =
                guarded("cannot count", "count again", || -> Result<()> { panic!("not to be seen") }).unwrap_err();
            let user = error.downcast_ref::<UserError>().expect("a user error");
            assert!(
                user.to_string().starts_with("cannot count: ") && user.hint_text() == Some("count again"),
                "{user}"
            );
            assert_eq!(INSIDE.get(), 0);
        }
        let nested = guarded("outer", "", || {
            let inner = guarded("inner", "", || -> Result<()> {
                Vec::<u8>::new()[INSIDE.get()..].to_vec();
                Ok(())
            });
            assert_eq!(INSIDE.get(), 1);
            inner
        });
        assert!(nested.unwrap_err().to_string().starts_with("inner: "));
        assert_eq!(guarded("outer", "", || Ok(7)).unwrap(), 7);
    }
}
