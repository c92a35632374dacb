//! Room for a datagram that nobody clears before it comes.
//!
//! Clearing 32 KiB of fresh memory costs a page fault for each of its eight pages, and mostly one page is used: that is
//! more than the system call that fills it.
//!
//! # Safety
//!
//! recv(2) gets the spare capacity of a vector and its size; what it says it has written is initialised, and no more than
//! that is counted in.
#![allow(unsafe_code)]

use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::libc;

/// Bytes of a datagram of a dump: the kernel makes none larger (netlink_dump, net/netlink/af_netlink.c).
const DATAGRAM: usize = 32 << 10;

/// Room for one datagram.
#[derive(Default)]
pub(crate) struct Room(Vec<u8>);

impl Room {
    /// Receives one datagram, in the place of the one before; the call is repeated if a signal interrupts it.
    pub(crate) fn receive(&mut self, socket: RawFd) -> Result<&[u8], Errno> {
        self.0.clear();
        self.0.reserve_exact(DATAGRAM);
        let room = self.0.spare_capacity_mut();
        let len = loop {
            // SAFETY: the pointer and the length are of the vector's spare capacity.
            match Errno::result(unsafe { libc::recv(socket, room.as_mut_ptr().cast(), room.len(), 0) }) {
                Err(Errno::EINTR) => {}
                outcome => break outcome?.cast_unsigned().min(room.len()),
            }
        };
        // SAFETY: recv(2) has written so many bytes, and they are within the capacity.
        unsafe { self.0.set_len(len) };
        Ok(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn datagrams_come_one_in_the_place_of_the_other() {
        let (here, there) = UnixDatagram::pair().unwrap();
        let mut room = Room::default();
        for sent in [&[7u8; 100][..], &[8; 3], &[], &[9; DATAGRAM]] {
            there.send(sent).unwrap();
            assert_eq!(room.receive(here.as_raw_fd()).unwrap(), sent);
        }
        there.send(&[1; DATAGRAM + 1]).unwrap();
        assert_eq!(room.receive(here.as_raw_fd()).unwrap(), [1; DATAGRAM], "what is too long is cut");
        here.set_nonblocking(true).unwrap();
        assert_eq!(room.receive(here.as_raw_fd()), Err(Errno::EAGAIN));
    }
}
