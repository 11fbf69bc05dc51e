//! The `softlm` binary: sets up the process, runs a command, turns its outcome into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    softlm::cli::main()
}
