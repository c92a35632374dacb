//! The bandwidth plugin.
fn main() -> std::process::ExitCode {
    common::run::<bandwidth::Bandwidth>()
}
