//! The firewall plugin.
