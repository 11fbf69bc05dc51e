//! A product of two factors in fewer numbers, without loss.
//!
//! Zhao et al., *PIFA: Pivoting Factorization*, ICML 2025, arXiv 2501.19090: a matrix of rank r has r rows that all others
//! are combinations of.
//!
//! ```text
//! W' = B A        W'[P,:] = R        W'[rest,:] = K R        r n + (m − r) r = r (m + n) − r² numbers and r row numbers
//! y[P] = R x        y[rest] = K y[P]
//! ```
//!
//! | symbol | meaning | shape |
//! |---|---|---|
//! | B, A | the factors | (m, r), (r, n) |
//! | P, rest | pivot rows and the others, both upwards | r, m − r |
//! | R, K | the pivot rows, what the others are made of | (r, n), (m − r, r) |
//!
//! Fewer numbers than the dense W' for every r < min(m, n), and than the factors for every r > 0.
//!
//! Departures:
//! - Pivots are chosen in B, which has the row dependencies of W', and so that no entry of K is larger than 2: what rounding
//!   R to 16 bits does to a row of K R stays of the size of what it does to R. The paper's pivoted QR of W'ᵀ has no bound.
//! - Ranks are what they are; none is rounded up.

use crate::linalg::{Mat, RowInterpolation, interpolate_rows};

/// W' (m, n) of rank r in r (m + n) − r² numbers.
#[derive(Debug, Clone)]
pub struct Packed {
    /// P, length r.
    pub pivots: Vec<usize>,
    /// The rows that are not in P, length m − r.
    pub rest: Vec<usize>,
    /// R (r, n).
    pub rows: Mat,
    /// K (m − r, r).
    pub combinations: Mat,
}

/// Packs B A for `b` (m, r) and `a` (r, n), m ≥ r.
pub fn pack(b: &Mat, a: &Mat) -> Packed {
    let RowInterpolation { pivots, rest, k } = interpolate_rows(b);
    let chosen = Mat::from_fn(pivots.len(), b.cols(), |i, j| b.get(pivots[i], j));
    Packed { rows: chosen.matmul(a), pivots, rest, combinations: k }
}

/// Numbers stored for W' (m, n) of rank r, row numbers not counted.
pub fn packed_numbers(m: usize, n: usize, r: usize) -> usize {
    r * (m + n) - r * r
}

impl Packed {
    /// W' (m, n).
    pub fn unpacked(&self) -> Mat {
        let others = self.combinations.matmul(&self.rows);
        let mut out = Mat::zeros(self.pivots.len() + self.rest.len(), self.rows.cols());
        for j in 0..out.cols() {
            let column = out.col_mut(j);
            self.pivots.iter().zip(self.rows.col(j)).for_each(|(&i, x)| column[i] = *x);
            self.rest.iter().zip(others.col(j)).for_each(|(&i, x)| column[i] = *x);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::noise;
    use super::*;

    #[test]
    fn packing_loses_nothing_and_takes_fewer_numbers() {
        for (m, n, r) in [(12, 9, 4), (9, 12, 9), (7, 7, 1), (20, 5, 5), (4, 3, 0)] {
            let (b, a) = (noise(m, r, 1), noise(r, n, 2));
            let packed = pack(&b, &a);
            assert!(packed.unpacked().sub(&b.matmul(&a)).frobenius() <= 1e-12 * b.matmul(&a).frobenius());
            let numbers =
                packed.rows.rows() * packed.rows.cols() + packed.combinations.rows() * packed.combinations.cols();
            assert_eq!(numbers, packed_numbers(m, n, r));
            assert!(numbers <= m * n && numbers + r * r == r * (m + n));
            assert!(packed.combinations.max_abs() <= 2.0);
        }
    }

    /// Factors that do not have the rank they have room for.
    #[test]
    fn dependent_factors_are_packed_too() {
        let (mut b, a) = (noise(10, 4, 1), noise(4, 6, 2));
        b.col_mut(2).fill(0.0);
        let packed = pack(&b, &a);
        assert!(packed.unpacked().sub(&b.matmul(&a)).frobenius() <= 1e-12 * b.matmul(&a).frobenius());
    }
}
