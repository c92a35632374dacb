//! The `tuning` plugin: sysctls and link attributes inside a container's network namespace.

fn main() -> std::process::ExitCode {
    common::run::<tuning::Tuning>()
}
