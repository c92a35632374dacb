//! Runs a CNI conflist by hand, the way a container runtime does.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_chain::commands::run(std::env::args_os())
}
