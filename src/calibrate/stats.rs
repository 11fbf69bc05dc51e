//! The raw sums that calibration collects: one [`SiteStats`] per site of a block.
//!
//! Sums over tokens, never averages, so that two runs can be added. With x the input of a linear (length n):
//! gram = Σ x xᵀ (n, n), sum = Σ x (n), and diag(gram) = Σ x² gives the squared input norms.

use crate::linalg::Mat;

/// How far rounding may take sums beyond the Cauchy-Schwarz inequality: equal numbers summed in f32 err all to one side.
const ROUNDING: f64 = 1e-5;

/// Raw sums over the calibration tokens that entered one site.
#[derive(Debug, Clone)]
pub struct SiteStats {
    /// Number of tokens summed.
    pub tokens: u64,
    /// Σ x xᵀ in f64, shape (n, n), symmetric. Unscaled.
    pub gram: Mat,
    /// Σ x in f64, length n.
    pub sum: Vec<f64>,
    /// Inputs of held-out tokens, row-major (tokens, n): never part of the sums, used to measure output errors.
    pub heldout: Vec<f32>,
}

impl SiteStats {
    /// Input width n.
    pub fn width(&self) -> usize {
        self.sum.len()
    }

    /// Number of held-out tokens.
    pub fn heldout_tokens(&self) -> usize {
        self.heldout.len() / self.width().max(1)
    }

    /// Σ x_j² for every input channel j: the diagonal of the Gram matrix.
    pub fn squares(&self) -> Vec<f64> {
        (0..self.width()).map(|j| self.gram.get(j, j)).collect()
    }

    /// Why these cannot be sums over tokens, if they cannot: numbers that are none, or that Cauchy-Schwarz rules out,
    /// (Σ x_i)² ≤ tokens · Σ x_i² and |Σ x_i x_j|² ≤ Σ x_i² · Σ x_j².
    pub(super) fn fault(&self) -> Option<String> {
        if self.tokens == 0 {
            return Some("it says that no token was seen".into());
        }
        if let Some(i) = self.sum.iter().position(|x| !x.is_finite()) {
            return Some(format!("Σ x of channel {i} is {}", self.sum[i]));
        }
        if let Some(i) = self.heldout.iter().position(|x| !x.is_finite()) {
            return Some(format!("{} among the held-out inputs", self.heldout[i]));
        }
        let squares = self.squares();
        if let Some(i) = squares.iter().position(|x| !(x.is_finite() && *x >= 0.0)) {
            return Some(format!("Σ x² of channel {i} is {}", squares[i]));
        }
        let norms: Vec<f64> = squares.iter().map(|x| x.sqrt() * (1.0 + ROUNDING)).collect();
        let tokens = (self.tokens as f64).sqrt();
        if let Some(i) = (0..self.width()).find(|&i| self.sum[i].abs() > tokens * norms[i]) {
            let (sum, square, tokens) = (self.sum[i], squares[i], self.tokens);
            return Some(format!("Σ x of channel {i} is {sum}, but Σ x² over {tokens} tokens {square}"));
        }
        (0..self.width()).find_map(|j| {
            // NaN is never within bounds.
            let bounded = |i: usize| self.gram.get(i, j).abs() <= norms[i] * norms[j];
            let i = (j + 1..self.width()).find(|&i| !bounded(i))?;
            let (x, a, b) = (self.gram.get(i, j), squares[i], squares[j]);
            Some(format!("Σ x_{i} x_{j} is {x}, but Σ x² of these channels {a} and {b}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::GramSums;

    fn sound() -> SiteStats {
        let rows = [1.0, -2.0, 0.5, 3.0, 0.0, -0.25f32];
        let mut stats = SiteStats::empty(3, true);
        stats.add(&rows, GramSums::F64);
        stats.gram.mirror_lower();
        stats.heldout = vec![1.0; 6];
        stats
    }

    #[test]
    fn what_cannot_be_sums_is_told_apart() {
        assert_eq!(sound().fault(), None);
        // Channels that are multiples of each other, or constant, touch the bounds.
        let mut flat = SiteStats::empty(2, true);
        (0..1000).for_each(|_| flat.add(&[0.1, -0.3], GramSums::F64));
        flat.gram.mirror_lower();
        assert_eq!(flat.fault(), None);
        // In f32 the products of the last two channels would be rounded up to the smallest number there is.
        let mut blocks = SiteStats::empty(4, true);
        blocks.add(&[0.1, -0.3, 3e-23, 3e-23].repeat(4000), GramSums::F32Blocks);
        blocks.gram.mirror_lower();
        assert_eq!(blocks.fault(), None);
        let faulty = |change: &dyn Fn(&mut SiteStats), says: &str| {
            let mut stats = sound();
            change(&mut stats);
            let fault = stats.fault().expect("a fault");
            assert!(fault.contains(says), "{fault}");
        };
        faulty(&|s| s.tokens = 0, "no token");
        faulty(&|s| s.sum[1] = f64::NAN, "channel 1 is NaN");
        faulty(&|s| s.sum[0] = -40.0, "channel 0 is -40");
        faulty(&|s| s.heldout[5] = f32::INFINITY, "inf among the held-out");
        faulty(&|s| s.gram.set(2, 2, -1e-9), "channel 2 is -0.000000001");
        faulty(&|s| s.gram.set(0, 0, f64::INFINITY), "channel 0 is inf");
        faulty(&|s| s.gram.set(2, 0, f64::NAN), "x_0 is NaN");
        faulty(&|s| s.gram.set(1, 0, 1e6), "x_1 x_0 is 1000000");
    }
}
