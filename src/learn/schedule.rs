//! How the learning rate changes over a run: a pure function of the step, so a resumed run needs no memory of it.

use std::f64::consts::PI;

/// What happens after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// Nothing.
    Constant,
    /// A straight line down to the floor.
    Linear,
    /// Half a cosine down to the floor.
    Cosine,
}

/// A warm-up followed by a decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Steps in all.
    pub steps: usize,
    /// Steps over which the factor rises to 1: after w of them the first full step follows.
    pub warm_up: usize,
    /// How it falls from there.
    pub decay: Decay,
    /// What it falls to, 0..1.
    pub floor: f64,
}

impl Schedule {
    /// A warm-up over a twentieth of the steps, then half a cosine down to `floor`.
    pub fn cosine(steps: usize, floor: f64) -> Self {
        Self { steps, warm_up: steps / 20, decay: Decay::Cosine, floor }
    }

    /// What the learning rate is multiplied with at `step`, counted from 0. Above 0 at every step before the last one's
    /// end; the floor from `steps` on.
    pub fn factor(&self, step: usize) -> f64 {
        if step < self.warm_up {
            return (step + 1) as f64 / (self.warm_up + 1) as f64;
        }
        let length = self.steps.saturating_sub(self.warm_up).max(1);
        let done = ((step - self.warm_up) as f64 / length as f64).min(1.0);
        let left = match self.decay {
            Decay::Constant => return 1.0,
            Decay::Linear => 1.0 - done,
            Decay::Cosine => 0.5 * (1.0 + (PI * done).cos()),
        };
        self.floor + (1.0 - self.floor) * left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_rise_and_fall_as_they_should() {
        let schedule = |decay, floor| Schedule { steps: 12, warm_up: 2, decay, floor };
        let linear = schedule(Decay::Linear, 0.0);
        assert_eq!([0, 1, 2, 7, 12, 99].map(|s| linear.factor(s)), [1.0 / 3.0, 2.0 / 3.0, 1.0, 0.5, 0.0, 0.0]);
        let cosine = schedule(Decay::Cosine, 0.2);
        assert_eq!(cosine.factor(2), 1.0);
        assert!((cosine.factor(7) - 0.6).abs() < 1e-12 && (cosine.factor(12) - 0.2).abs() < 1e-12);
        assert!((2..12).all(|s| cosine.factor(s) > cosine.factor(s + 1)));
        assert!((2..40).all(|s| schedule(Decay::Constant, 0.0).factor(s) == 1.0));
        let all_warm_up = Schedule { steps: 1, warm_up: 1, decay: Decay::Linear, floor: 0.0 };
        assert_eq!((all_warm_up.factor(0), all_warm_up.factor(1)), (0.5, 1.0));
    }
}
