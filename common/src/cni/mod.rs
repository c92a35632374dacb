//! The CNI protocol, spec 0.1.0 to 1.1.0: what comes in by environment and stdin, what goes out on stdout.

pub mod decode;
pub mod env;
pub mod error;
pub mod network;
pub mod result;
#[cfg(feature = "schema")]
pub mod shape;
pub mod version;

pub use decode::Json;
pub use env::{Environment, Verb};
pub use error::{Difference, Error, Result};
pub use network::Network;
pub use result::CniResult;
pub use version::Version;
