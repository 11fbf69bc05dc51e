//! Text becomes windows of token ids.
//!
//! [`load`] finds a [`Corpus`] by the name a user gave it, a [`Tokenizer`] turns its text into ids, [`cut`] cuts the ids
//! into [`Windows`], [`choose`] and [`split_heldout`] pick some of them. Every step is deterministic, so a corpus hash, a
//! tokenizer, a window length and a seed say exactly what a model was shown.
//!
//! Labelled examples for encoders are loaded by [`examples()`] and become [`Sequence`]s by an [`Encoder`]; the items of
//! zero-shot tasks for decoders by [`items()`].

mod boundary;
mod names;
mod file;
mod thrift;
mod parquet;
mod corpus;
mod records;
mod examples;
mod hubset;
mod padded;
mod stream;
mod tokenizer;
mod zero_shot;
mod windows;

pub use corpus::{BUILT_IN, Corpus, Split, load};
pub use examples::{Example, Examples, Task, examples};
pub use file::prompt;
pub use names::split_names;
pub use padded::{Padded, batches};
pub use stream::TextStream;
pub use tokenizer::{Encoder, Sequence, SideFile, Tokenizer};
pub use windows::{Sampling, Window, Windows, choose, cut, cut_framed, shuffle, split_heldout};
pub use zero_shot::{Item, Items, Request, ZeroShot, is_space, items};
