//! The raw sums that calibration collects: one [`SiteStats`] per site of a block.
//!
//! Sums over tokens, never averages, so that two runs can be added. With x the input of a linear (length n):
//! gram = Σ x xᵀ (n, n), sum = Σ x (n), and diag(gram) = Σ x² gives the squared input norms.

use crate::linalg::Mat;

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

    /// Σ x_j² for every input channel j: the diagonal of the Gram matrix.
    pub fn squares(&self) -> Vec<f64> {
        (0..self.width()).map(|j| self.gram.get(j, j)).collect()
    }
}
