//! Integration tests: one module per concern.

mod data; // where real models and texts are
mod laws; // what every method must obey, over the explicit list
mod parity; // logits and perplexities of other implementations
mod second_parity; // logits of candle-transformers for every family it has
mod goldens; // compression as an independent fp64 implementation has it
mod forms; // the forms of a part of a block, as textbook formulas have them
mod synthetic;
mod table; // the methods against each other, as the fp64 reference has them
mod encoders; // encoders on padded batches, and what is measured of them
mod sentences; // folders of sentence-transformers
mod families; // every method on every family
mod auto; // the default method: its forms, what it reports, and that it beats the methods of one form
mod fisher; // second moments of gradients against measured divergences
mod gradients; // gradients against finite differences, the full graph and PyTorch; AdamW against PyTorch
mod generate; // what is written, remembered or computed again; greedy ids of transformers; the command
mod state_space; // what only state-space blocks have: small linears, infinite limits, pruning that does not apply
mod learn; // healing: better, deterministic, resumable
mod learned; // soft and soco: against PyTorch, budgets, phases, kills, mistakes
mod tasks; // encoders that learn, against PyTorch
mod zero_shot; // zero-shot tasks, against lm-evaluation-harness
mod gpu; // every method on a GPU, where there is one
mod checkpoint; // reading, writing and proving whole checkpoints
mod verify; // what makes a checkpoint whole
mod hostile_checkpoint; // damaged and malicious checkpoints are refused with a reason
mod reading; // checkpoints under every name and spelling; quantised ones, adapters and pointers
mod hostile_config; // a config.json that is wrong, incomplete or of another family
mod bos; // BOS in front of windows, wherever text is shown
mod text; // corpora, tokenizers and windows on real text
mod hostile_tokenizer; // tokenizer files that are cut, damaged, or made to break programs
mod tokenizer_cases; // the files of the tokenizers that the references are of
mod tokenizers; // tokenizer files of every kind against transformers
mod report; // the report's views
mod compare; // reports side by side
mod page; // reports as a page, in a browser where there is one
mod configs; // the recipes that come with the project
mod search; // the smallest model that is good enough
mod elastic; // one output for many sizes
mod plan; // what compressing would do
mod sweep; // several sizes at once
mod export; // outputs as plain checkpoints, to the last bit
mod narrower; // dense linears of other shapes than the base's, block by block
mod export_raw; // outputs as raw factors, and the schema of their description
mod memory; // one block at a time, whatever the depth
#[cfg(feature = "hub")]
mod hub; // fetching models and data sets, against a hub of our own that also misbehaves
mod program; // runs the program itself, for the modules below
mod cli; // streams, exit codes, JSON, gates, settings and corpora
mod bench; // how fast models read and write
mod packaging; // the GitHub action and the container file
mod doctor; // what the program says of the machine, and what shells and man read of the program
mod example_method; // the method that CONTRIBUTING.md shows
mod method_options; // what one method alone knows, by every way to set it; the help
mod cli_methods; // every method through the program, on models of every kind
mod cli_encoders; // encoders compressed, proven whole and measured as encoders
mod cli_hostile; // input that cannot work is refused with a reason
mod terminal; // what comes from files cannot drive a terminal
mod hostile_files; // links, devices and code in a model folder; what travels into an output
mod cli_export; // exports through the program
mod identity; // which model an output, its original and statistics belong to
mod soundness; // NaN where it matters and where it does not, tensors that nothing reads
mod statistics; // folders of statistics: damaged, hostile, half full, of something else; their sums
mod resume; // killed, interrupted and colliding runs
#[cfg(target_os = "linux")]
mod kills; // killed at random and at every system call, by hand
