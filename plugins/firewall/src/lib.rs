//! The firewall plugin.

pub mod config;
pub mod firewalld;
pub mod plan;
pub mod rules;
