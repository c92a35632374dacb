//! The `tuning` plugin: sysctls and link attributes inside a container's network namespace.

#![no_main]

common::program!(tuning::Tuning);
