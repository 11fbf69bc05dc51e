//! What each channel of an input explains of an output, one after the other: a pivoted Cholesky factorisation of the
//! inputs' Gram matrix C that carries the output error along.
//!
//! ```text
//! R = C − C[:,S] C[S,S]⁻¹ C[S,:]       what the channels S leave of the inputs        (N, N)
//! Q = R Wᵀ M W R                       what this leaves of the outputs, through R     (N, N)
//! error(S) = tr(M W R Wᵀ)              adding channel j lowers it by Q_jj / R_jj
//! ```
//!
//! With `l = R[:,j] / √R_jj` and `x = Q[:,j] / √R_jj − l Q_jj / (2 R_jj)`, adding j is R ← R − l lᵀ and Q ← Q − x lᵀ − l xᵀ. The
//! matrices are brought up to date in blocks of pivots; between them the columns that are asked for, and the diagonals, are.

use super::channels::Ordering;
use crate::linalg::Mat;

/// A channel of which the others leave no more than this share is a combination of them: nothing is lost without it.
const DEPENDENT: f64 = 1e-8;
/// Pairs of vectors that wait to be subtracted.
pub(super) const WAITING: usize = 64;

/// Adds channel after channel: in the order `given`, or the one that lowers the error most. `c` (N, N) is the Gram matrix of
/// the inputs, `q` (N, N) is C Wᵀ M W C. Channels that depend on others come last, in the order of `rank`, largest first.
pub(super) fn eliminate(c: Mat, q: Mat, given: Option<&[usize]>, rank: &[f64]) -> Ordering {
    let n = c.rows();
    let diagonal = |a: &Mat| (0..n).map(|j| a.get(j, j)).collect::<Vec<f64>>();
    let (mut left, mut gain) = (diagonal(&c), diagonal(&q));
    let floor: Vec<f64> = left.iter().map(|x| x * DEPENDENT).collect();
    let (mut r, mut q) = (Downdated::new(c), Downdated::new(q));
    let mut open = vec![true; n];
    let (mut order, mut drops) = (Vec::with_capacity(n), vec![0.0; n]);
    while order.len() < n {
        let next = match given {
            Some(given) => Some(given[order.len()]),
            None => (0..n)
                .filter(|&j| open[j] && left[j] > floor[j])
                // The first of equals.
                .min_by(|&i, &j| (gain[j] / left[j]).total_cmp(&(gain[i] / left[i]))),
        };
        let Some(j) = next else { break };
        open[j] = false;
        order.push(j);
        let mut l = r.column(j);
        let pivot = l[j];
        if pivot <= floor[j] {
            continue;
        }
        let mut x = q.column(j);
        let drop = x[j].max(0.0) / pivot;
        drops[order.len() - 1] = drop;
        let inverse = pivot.sqrt().recip();
        l.iter_mut().for_each(|l| *l *= inverse);
        x.iter_mut().zip(&l).for_each(|(x, l)| *x = *x * inverse - l * 0.5 * drop);
        for (((left, gain), l), x) in left.iter_mut().zip(&mut gain).zip(&l).zip(&x) {
            *left -= l * l;
            *gain -= 2.0 * x * l;
        }
        r.subtract(&l, &l);
        q.subtract(&x, &l);
        q.subtract(&l, &x);
    }
    let mut rest: Vec<usize> = (0..n).filter(|&j| open[j]).collect();
    rest.sort_by(|&i, &j| rank[j].total_cmp(&rank[i]));
    order.extend(rest);
    // From the end, so that small errors are not differences of large ones.
    let mut error = vec![0.0; n + 1];
    (0..n).rev().for_each(|k| error[k] = error[k + 1] + drops[k]);
    Ordering { order, error }
}

/// A symmetric matrix less products of vectors, some of which are not subtracted yet.
struct Downdated {
    matrix: Mat,
    left: Mat,
    right: Mat,
    waiting: usize,
}

impl Downdated {
    fn new(matrix: Mat) -> Self {
        let n = matrix.rows();
        Self { matrix, left: Mat::zeros(n, WAITING), right: Mat::zeros(n, WAITING), waiting: 0 }
    }

    fn column(&self, j: usize) -> Vec<f64> {
        let mut out = self.matrix.col(j).to_vec();
        for t in 0..self.waiting {
            let factor = self.right.get(j, t);
            out.iter_mut().zip(self.left.col(t)).for_each(|(x, left)| *x -= factor * left);
        }
        out
    }

    /// Subtracts left · rightᵀ.
    fn subtract(&mut self, left: &[f64], right: &[f64]) {
        self.left.col_mut(self.waiting).copy_from_slice(left);
        self.right.col_mut(self.waiting).copy_from_slice(right);
        self.waiting += 1;
        if self.waiting == WAITING {
            self.matrix.subtract_nt(&self.left, &self.right);
            self.waiting = 0;
        }
    }
}
