//! The firewall plugin.

#![no_main]

common::program!(firewall::Firewall);
