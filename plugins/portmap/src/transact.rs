//! Read, decide, send, and begin anew if somebody else was faster.

use std::ops::ControlFlow;
use std::time::Duration;

use common::nft::{CommitError, NftSocket};
use common::{Error, Result};
use nix::errno::Errno;

/// How often: each time somebody else's transaction has gone through, so all of them together make progress.
const TRIES: u64 = 200;

/// Repeats `attempt` with the number of the tables' present state until it breaks off.
///
/// A transaction that is sent with that number is refused (ERESTART) if anything has changed since, so whatever was read
/// in between is still true when it takes effect: nobody's element can be taken for one's own.
pub fn transact<T>(
    socket: &mut NftSocket,
    mut attempt: impl FnMut(&mut NftSocket, u32) -> Result<ControlFlow<T>>,
) -> Result<T> {
    for tries in 0..TRIES {
        let generation = socket.generation()?;
        if let ControlFlow::Break(done) = attempt(socket, generation)? {
            return Ok(done);
        }
        if tries > 10 {
            std::thread::sleep(Duration::from_millis(tries.min(20)));
        }
    }
    Err(Error::TryAgain { what: "the host's nftables rules keep changing".into() })
}

/// Whether a transaction came too late: something has changed since what it was made from was read.
pub fn came_too_late(error: &CommitError) -> bool {
    error.errno() == Some(Errno::ERESTART)
}
