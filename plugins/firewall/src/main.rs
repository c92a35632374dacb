//! The firewall plugin.

fn main() -> std::process::ExitCode {
    common::run::<firewall::Firewall>()
}
