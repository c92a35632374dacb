//! The bandwidth plugin.

#![no_main]

common::program!(bandwidth::Bandwidth);
