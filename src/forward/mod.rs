//! Hidden states on their way through a model: the one walk over its blocks.
//!
//! A block is loaded while the one before it computes, every batch goes through it once, and whoever wants to see what
//! enters its linears looks on in that same pass. Memory is two blocks (one, where two do not fit) and the states, and what
//! of the states does not fit waits on the disk.

mod blocks;
mod branches;
mod kept;
mod states;

pub use blocks::each_block;
pub use branches::{Grouped, Tree, TreeState, TreeStates, grouped};
pub use kept::KeptStates;
pub use states::{States, resident_states};
