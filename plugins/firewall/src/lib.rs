//! The firewall plugin.

pub mod config;
