//! Linears as the dense checkpoint has them.

use super::ids::{LinearId, Site};

/// How a linear's weight lies in the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// `<name>.weight` of shape (out, in).
    Plain,
    /// Rows of the matrix `<matrix>.weight` of shape (total, in), or of its transpose where it is stored as (in, total).
    /// The bias, if any, is the same slice of `<matrix>.bias`.
    Part {
        /// Base of the matrix's tensor names. A weight that fills its whole matrix has `matrix == name`.
        matrix: String,
        /// Which of its rows.
        rows: RowRuns,
        /// Whether it is stored as (in, total).
        transposed: bool,
    },
}

/// Some rows of a fused matrix: `run` from `start` on, `run` from `start + stride` on, and so forth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRuns {
    /// The first row.
    pub start: usize,
    /// Rows that lie together. Positive.
    pub run: usize,
    /// From the start of one run to that of the next.
    pub stride: usize,
}

impl RowRuns {
    /// All rows from `start` on.
    pub fn from(start: usize) -> Self {
        Self { start, run: usize::MAX, stride: 0 }
    }

    /// Where row `i` of the part lies in the whole.
    pub fn at(&self, i: usize) -> usize {
        self.start + i / self.run * self.stride + i % self.run
    }
}

/// One linear of the model as the dense checkpoint has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Block and role.
    pub id: LinearId,
    /// Where its input is observed.
    pub site: Site,
    /// Base of its tensor names: `<name>.weight`, or `<name>.factor_a.weight` and `<name>.factor_b.weight`.
    pub name: String,
    /// Output features (m).
    pub out: usize,
    /// Input features (n).
    pub input: usize,
    /// Whether the layer has a bias.
    pub bias: bool,
    /// Where the dense weight lies.
    pub stored: Stored,
}

impl LinearSpec {
    /// Number of weights, m·n. Biases are never counted in `--keep`.
    pub fn params(&self) -> usize {
        self.out * self.input
    }

    /// Name of the tensor that holds the dense weight.
    pub fn weight_name(&self) -> String {
        match &self.stored {
            Stored::Plain => format!("{}.weight", self.name),
            Stored::Part { matrix, .. } => format!("{matrix}.weight"),
        }
    }

    /// Base name of the larger matrix that the weight is a part of; `None` when it is stored alone.
    pub fn fused(&self) -> Option<&str> {
        match &self.stored {
            Stored::Part { matrix, .. } if *matrix != self.name => Some(matrix),
            _ => None,
        }
    }

    /// Whether the tensor that holds the dense weight is its transpose, (in, out or more).
    pub fn transposed(&self) -> bool {
        matches!(self.stored, Stored::Part { transposed: true, .. })
    }

    /// Where output `i` lies among the rows of the tensor that holds the dense weight.
    pub fn row(&self, i: usize) -> usize {
        match &self.stored {
            Stored::Plain => i,
            Stored::Part { rows, .. } => rows.at(i),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_part_are_found() {
        // Three heads of q, k, v with two rows each.
        let k = RowRuns { start: 2, run: 2, stride: 6 };
        assert_eq!((0..6).map(|i| k.at(i)).collect::<Vec<_>>(), [2, 3, 8, 9, 14, 15]);
        assert_eq!((0..3).map(|i| RowRuns::from(5).at(i)).collect::<Vec<_>>(), [5, 6, 7]);
    }
}
