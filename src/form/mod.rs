//! The forms that a part of a block can take beside two factors, as functions of matrices in f64.
//!
//! Each says what it costs at every size before any size is chosen: an error curve in the units of its objective, so that a
//! budget can be shared out, and then the weights at one size. What is kept at a size is kept at every larger one.

pub mod channels;
mod elimination;
mod least_squares;
mod subspace;
pub mod value_output;

#[cfg(test)]
mod tests {
    use crate::linalg::Mat;

    /// Numbers between −1 and 1 without a pattern.
    pub fn noise(rows: usize, cols: usize, seed: usize) -> Mat {
        let mut state = seed as u64;
        Mat::from_fn(rows, cols, |_, _| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1u64 << 30) as f64 - 1.0
        })
    }

    /// X Xᵀ.
    pub fn gram(x: &Mat) -> Mat {
        x.nt_matmul_symmetric(x)
    }

    /// ‖M^½ E X‖² = tr(M E X Xᵀ Eᵀ).
    pub fn error(e: &Mat, x: &Mat, weight: Option<&Mat>) -> f64 {
        let y = e.matmul(x);
        let weighted = weight.map_or_else(|| y.clone(), |weight| weight.matmul(&y));
        (0..y.cols()).map(|t| y.col(t).iter().zip(weighted.col(t)).map(|(a, b)| a * b).sum::<f64>()).sum()
    }
}
