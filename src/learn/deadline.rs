//! A limit on the time that a training may take, over all runs that worked on it.

use std::time::Instant;

/// Steps after which the pace is known well enough to plan with.
const MEASURED: usize = 5;
/// Share of the time that is planned with: looks at held-out text are not spread evenly.
const PLANNED: f64 = 0.9;

/// Seconds spent, and how many may be.
pub(super) struct Deadline {
    limit: Option<f64>,
    before: f64,
    since: Instant,
}

impl Deadline {
    /// Starts; earlier runs took `before` seconds.
    pub(super) fn start(limit: Option<f64>, before: f64) -> Self {
        Self { limit, before, since: Instant::now() }
    }

    /// Seconds spent so far.
    pub(super) fn elapsed(&self) -> f64 {
        self.before + self.since.elapsed().as_secs_f64()
    }

    /// Whether the time is up.
    pub(super) fn has_passed(&self) -> bool {
        self.limit.is_some_and(|limit| self.elapsed() >= limit)
    }

    /// How many of `steps` fit into the time, decided once: after the first few of them are `done`.
    pub(super) fn fitting(&self, done: usize, steps: usize) -> usize {
        match self.limit {
            Some(limit) if done == MEASURED.min(steps) => {
                fitting(limit, self.elapsed() / done.max(1) as f64, done, steps)
            }
            _ => steps,
        }
    }
}

fn fitting(limit: f64, per_step: f64, done: usize, steps: usize) -> usize {
    ((PLANNED * limit / per_step.max(1e-9)) as usize).clamp(done.min(steps), steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_what_fits() {
        assert_eq!(fitting(100.0, 1.0, 5, 1000), 90);
        assert_eq!(fitting(100.0, 0.01, 5, 1000), 1000);
        assert_eq!(fitting(1.0, 1.0, 5, 1000), 5, "what is done is done");
        assert!(Deadline::start(Some(10.0), 10.0).has_passed() && !Deadline::start(None, 1e9).has_passed());
        assert_eq!(Deadline::start(None, 0.0).fitting(5, 77), 77);
        assert_eq!(Deadline::start(Some(1e9), 0.0).fitting(4, 77), 77);
    }
}
