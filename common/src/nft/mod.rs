//! nf_tables: a model that prints as nft syntax, and the only door to the kernel's tables.
