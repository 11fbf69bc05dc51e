//! Dense linear algebra: f64 matrices, and f32 kernels over slices. The only module that names faer.
//!
//! Every result has the same bytes whatever the number of threads: products are cut into tiles whose size never depends
//! on the machine, each tile is computed by one thread, and factorisations run on one thread. Callers gain more from
//! working on several matrices at once; see [`on_one_thread`]. Large matrices may be given to another machine: [`Solver`].

pub(crate) mod bf16;
mod factor;
mod few_rows;
mod mat;
mod positive;
mod product;
pub(crate) mod simd;
mod solver;
mod strided;

pub use factor::{Evd, Qr, Svd, evd_symmetric, fix_signs, thin_svd};
pub use few_rows::{Held, few_rows_product, widened};
pub use mat::Mat;
pub use positive::solve_positive;
pub use product::{GramSums, gram_add, on_one_thread};
pub use solver::{CheckedSolver, Operand, Side, Solver, solving_with};
pub use strided::{RowMajor, nn_product, nt_product, tn_product_add};
