//! The tuning plugin.
