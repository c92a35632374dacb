//! The portmap plugin: see the crate `portmap`.

#![no_main]

common::program!(portmap::Portmap);
