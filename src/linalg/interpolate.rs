//! Rows of a matrix that all others are combinations of.

use super::{Mat, Qr};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::lu::partial_pivoting::factor::{PartialPivLuParams, lu_in_place, lu_in_place_scratch};
use faer::linalg::triangular_solve::solve_unit_upper_triangular_in_place;
use faer::{Par, Spec};

/// Largest entry of the combinations, as a rank-revealing factorisation has it.
const LARGEST: f64 = 2.0;

/// `A[rest] = K A[pivots]`.
#[derive(Debug, Clone)]
pub struct RowInterpolation {
    /// r rows, upwards.
    pub pivots: Vec<usize>,
    /// The others, upwards.
    pub rest: Vec<usize>,
    /// K (m − r, r), no entry of which is larger than 2.
    pub k: Mat,
}

/// Rows for `a` (m, r), m ≥ r, of any rank.
///
/// Gaussian elimination with row pivoting on an orthonormal basis Q of the columns, P Q = L U, so that K = L_rest L_P⁻¹;
/// then rows i and j change places as long as |K_ij| > 2 (Goreinov, Oseledets, Savostyanov, Tyrtyshnikov and Zamarashkin,
/// *How to find a good submatrix*, 2010). Each change at least doubles the determinant of `Q[pivots]`, so that they come to an end.
pub fn interpolate_rows(a: &Mat) -> RowInterpolation {
    let (m, r) = (a.rows(), a.cols());
    assert!(m >= r, "more columns than rows");
    let mut lu = Qr::new(a).q_times(&Mat::identity(r)).0;
    let (mut order, mut inverse) = (vec![0usize; m], vec![0usize; m]);
    let params: Spec<PartialPivLuParams, f64> = Spec::default();
    let mut memory = MemBuffer::new(lu_in_place_scratch::<usize, f64>(m, r, Par::Seq, params));
    lu_in_place(lu.as_mut(), &mut order, &mut inverse, Par::Seq, MemStack::new(&mut memory), params);
    // L_Pᵀ Kᵀ = L_restᵀ
    let mut k = Mat(lu.as_ref().subrows(r, m - r).to_owned()).transpose();
    solve_unit_upper_triangular_in_place(lu.as_ref().subrows(0, r).transpose(), k.0.as_mut(), Par::Seq);
    let mut rest = order.split_off(r);
    // Here and below `k` is Kᵀ (r, m − r): a row of K is a column.
    while let Some((i, j)) = largest(&k).filter(|&(i, j)| k.get(j, i).abs() > LARGEST) {
        let pivot = k.get(j, i);
        let mut change: Vec<f64> = k.col(i).iter().map(|x| x / pivot).collect();
        change[j] -= pivot.recip();
        for row in 0..m - r {
            let factor = if row == i { 1.0 } else { k.get(j, row) };
            let column = k.col_mut(row);
            if row == i {
                // What was the pivot: a unit vector.
                column.fill(0.0);
                column[j] = 1.0;
            }
            column.iter_mut().zip(&change).for_each(|(x, change)| *x -= factor * change);
        }
        std::mem::swap(&mut order[j], &mut rest[i]);
    }
    let sorted = |of: &[usize]| {
        let mut places: Vec<usize> = (0..of.len()).collect();
        places.sort_by_key(|&i| of[i]);
        places
    };
    let (columns, rows) = (sorted(&order), sorted(&rest));
    RowInterpolation {
        k: Mat::from_fn(m - r, r, |i, j| k.get(columns[j], rows[i])),
        pivots: columns.iter().map(|&j| order[j]).collect(),
        rest: rows.iter().map(|&i| rest[i]).collect(),
    }
}

/// Row and column of the largest entry of K, given Kᵀ.
fn largest(transposed: &Mat) -> Option<(usize, usize)> {
    let entries = (0..transposed.cols()).flat_map(|i| (0..transposed.rows()).map(move |j| (i, j)));
    entries.max_by(|&(i, j), &(g, h)| transposed.get(j, i).abs().total_cmp(&transposed.get(h, g).abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(a: &Mat, of: &[usize]) -> Mat {
        Mat::from_fn(of.len(), a.cols(), |i, j| a.get(of[i], j))
    }

    #[test]
    fn rows_are_combinations_of_the_pivots_with_small_numbers() {
        let noise = |m, n| Mat::from_fn(m, n, |i, j| ((i * 7919 + j * 104_729 + i * j) as f64).sin());
        // On a curve, where elimination alone gives large combinations; of rank 2; zero.
        let curve = Mat::from_fn(40, 7, |i, j| (i as f64 / 40.0).powi(j as i32));
        let worst = Mat::from_fn(20, 10, |i, j| match i.cmp(&j) {
            std::cmp::Ordering::Less => 0.0,
            std::cmp::Ordering::Equal => 1.0,
            std::cmp::Ordering::Greater => -0.99,
        });
        let singular = noise(12, 2).nt_matmul(&noise(5, 2));
        for a in [noise(30, 8), noise(5, 5), noise(6, 0), noise(9, 1), curve, worst, singular, Mat::zeros(6, 3)] {
            let found = interpolate_rows(&a);
            let mut all = [found.pivots.clone(), found.rest.clone()].concat();
            assert!(found.pivots.is_sorted() && found.rest.is_sorted() && found.pivots.len() == a.cols());
            all.sort_unstable();
            assert_eq!(all, (0..a.rows()).collect::<Vec<_>>());
            assert!(found.k.max_abs() <= LARGEST);
            let rest = found.k.matmul(&rows(&a, &found.pivots));
            assert!(rest.sub(&rows(&a, &found.rest)).frobenius() <= 1e-12 * a.frobenius(), "{a:?}");
        }
    }
}
