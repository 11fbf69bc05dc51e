//! How much memory a run will take, from headers, configuration and numbers of tokens alone, and which limits on its parts
//! keep it within what the user allows.
//!
//! The peak is what the process holds before it begins (program, tokenizer, text), what of the program is still to be read,
//! and the largest of its stages:
//!
//! | term | bytes |
//! |---|---|
//! | walk | the largest block in f32, twice where the next one is read ahead, and what a batch of tokens has at once in it |
//! | states | 4 · tokens · hidden of calibration and held-out windows, as far as they are not spilled |
//! | statistics | of every site 8 n² for the Gram matrix, 4 n for every held-out token |
//! | decompositions | of the largest linears that are worked on side by side what the method declares ([`Workspace`]), or what measuring the held-out error takes, whichever is more; for each the largest scratch once more, for the holes it leaves |
//! | forms | of the parts of a block that are surveyed or cut side by side the same; 4 n² for every part whose inputs are kept; second moments 8 m² of every part and the graph of a batch of windows, whose states in front of all blocks are kept; the states of all parts changed alone |
//! | factors | in f32 those of a block, twice where one is written while the next is made |
//! | heads | 4 · vocab · hidden of every model that is compared, and a chunk of logits of each |
//! | training | every block, if they are kept, parameters, their two moments, the best ones and gradients; one block's graph; what entered every block |
//!
//! Everything but training and evaluation's heads is a property of the largest block. On a GPU tensors count there.

mod compression;
mod evaluation;
mod fit;
mod forms;
mod terms;
mod time;

pub(super) use compression::Compression;
pub use evaluation::{Sequences, fit_calibration, fit_evaluation, sequences};
pub use fit::announce;
pub(super) use time::{Rates, evaluated, stages};
