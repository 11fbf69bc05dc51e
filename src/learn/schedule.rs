//! How the learning rate changes over a run: a pure function of the step, so a resumed run needs no memory of it.

use std::f64::consts::PI;

/// A warm-up over a twentieth of the steps, followed by half a cosine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Steps in all.
    pub steps: usize,
    /// What the factor falls to, 0..1.
    pub floor: f64,
}

impl Schedule {
    /// Steps over which the factor rises to 1: after w of them the first full step follows.
    pub fn warm_up(&self) -> usize {
        self.steps / 20
    }

    /// What the learning rate is multiplied with at `step`, counted from 0. Above 0 at every step before the last one's
    /// end; the floor from `steps` on.
    pub fn factor(&self, step: usize) -> f64 {
        let warm_up = self.warm_up();
        if step < warm_up {
            return (step + 1) as f64 / (warm_up + 1) as f64;
        }
        let length = self.steps.saturating_sub(warm_up).max(1);
        let done = ((step - warm_up) as f64 / length as f64).min(1.0);
        self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (PI * done).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_rise_and_fall_as_they_should() {
        let close = |schedule: Schedule, step, factor: f64| (schedule.factor(step) - factor).abs() < 1e-12;
        let long = Schedule { steps: 42, floor: 0.0 };
        assert_eq!([0, 1, 2].map(|step| long.factor(step)), [1.0 / 3.0, 2.0 / 3.0, 1.0]);
        assert!(close(long, 22, 0.5) && close(long, 42, 0.0) && close(long, 99, 0.0));
        let floored = Schedule { floor: 0.2, ..long };
        assert!(close(floored, 2, 1.0) && close(floored, 22, 0.6) && close(floored, 42, 0.2));
        assert!((2..42).all(|step| floored.factor(step) > floored.factor(step + 1)));
        let short = Schedule { steps: 1, floor: 0.0 };
        assert_eq!((short.factor(0), close(short, 1, 0.0)), (1.0, true));
        assert!(Schedule { steps: 0, floor: 0.1 }.factor(0).is_finite());
    }
}
