//! The portmap plugin: see the crate `portmap`.

fn main() -> std::process::ExitCode {
    common::run::<portmap::Portmap>()
}
