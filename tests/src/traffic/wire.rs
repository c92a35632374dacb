//! What came in by a link, frame by frame: what a limit is about.
//!
//! An application sees something else. A segment that is lost, as a limit makes TCP lose them, holds up those behind it, and
//! when it is there at last, all of them are read at once: in one second of an exact 1 Mbit/s that was 114 % of the rate.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeSpec;

use super::throughput::throughput;
use super::{POLL, Proto, parse, timeval};
use crate::namespace::{Netns, must};

/// What came in by a link, of one flow.
#[derive(Clone, Debug)]
pub struct Frames {
    /// When, since the first, and bytes with all headers.
    came: Vec<(Duration, u64)>,
    watched: Duration,
}

impl Frames {
    /// Bits per second over the whole time.
    pub fn bits_per_second(&self) -> f64 {
        bits(&self.came) / self.watched.as_secs_f64()
    }

    /// Bits in the first second.
    pub fn first_second(&self) -> f64 {
        bits(&self.came[..self.came.partition_point(|(at, _)| *at < SECOND)])
    }

    /// Bits in the second that has most of them, wherever it begins.
    pub fn fullest_second(&self) -> f64 {
        let (mut fullest, mut within, mut oldest) = (0, 0, 0);
        for (at, bytes) in &self.came {
            within += bytes;
            while self.came[oldest].0 + SECOND <= *at {
                within -= self.came[oldest].1;
                oldest += 1;
            }
            fullest = fullest.max(within);
        }
        fullest as f64 * 8.0
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn bits(frames: &[(Duration, u64)]) -> f64 {
    frames.iter().map(|(_, bytes)| bytes).sum::<u64>() as f64 * 8.0
}

/// Sends as [`throughput`] does; what came to `to` on the way, from the first frame on.
#[track_caller]
pub fn throughput_on_the_wire(from: &Netns, to: &Netns, proto: Proto, address: &str, seconds: u32) -> Frames {
    let port = parse(address).port();
    let ear = must(to.inside(listen).map_err(|e| format!("listening to the links of {}: {e}", to.name())));
    let (over, watched) = (AtomicBool::new(false), Duration::from_secs(seconds.into()));
    let came = std::thread::scope(|scope| {
        let listener = scope.spawn(|| hear(&ear, port, watched, &over));
        throughput(from, to, proto, address, seconds);
        over.store(true, Ordering::Relaxed);
        listener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    Frames { came, watched }
}

/// All links of the calling thread's namespace, with the kernel's time of each frame, and with room for what comes while
/// this machine has no time to listen.
fn listen() -> nix::Result<OwnedFd> {
    let ear = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&ear, sockopt::RcvBufForce, &(256 << 20))?;
    setsockopt(&ear, sockopt::ReceiveTimestampns, &true)?;
    setsockopt(&ear, sockopt::ReceiveTimeout, &timeval(POLL))?;
    Ok(ear)
}

fn hear(ear: &OwnedFd, port: u16, watched: Duration, over: &AtomicBool) -> Vec<(Duration, u64)> {
    let (mut head, mut control) = ([0; HEAD], nix::cmsg_space!(TimeSpec));
    let (mut came, mut start) = (Vec::new(), None);
    loop {
        let mut into = [IoSliceMut::new(&mut head)];
        let heard = match recvmsg::<LinkAddr>(ear.as_raw_fd(), &mut into, Some(&mut control), MsgFlags::empty()) {
            Ok(message) => message.cmsgs().ok().and_then(|mut all| all.find_map(time)).map(|at| (at, message.bytes)),
            Err(Errno::EAGAIN) if over.load(Ordering::Relaxed) => return came,
            Err(_) => None,
        };
        let Some((at, length)) = heard else { continue };
        let Some(bytes) = head.get(..length).and_then(|head| bytes_on_the_wire(head, port)) else { continue };
        let since = at.saturating_sub(*start.get_or_insert(at));
        if since < watched {
            came.push((since, bytes));
        } else if over.load(Ordering::Relaxed) {
            // A long queue may go on for minutes.
            return came;
        }
    }
}

fn time(message: ControlMessageOwned) -> Option<Duration> {
    match message {
        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
        _ => None,
    }
}

/// Longest headers: Ethernet, IPv6 or IPv4 with options, TCP with options.
const HEAD: usize = 14 + 60 + 60;

/// Bytes of an Ethernet frame of the harness's links, whose MTU is 1500.
const FRAME: usize = 1514;

/// Bytes of a frame to `port`, by its head. A packet that a network card would cut into segments (a veth does not) counts
/// as those segments, each with its headers.
fn bytes_on_the_wire(head: &[u8], port: u16) -> Option<u64> {
    let byte = |at: usize| head.get(at).map(|byte| usize::from(*byte));
    let word = |at: usize| Some(byte(at)? << 8 | byte(at + 1)?);
    let (transport, proto, length) = match word(12)? {
        0x0800 => (14 + (byte(14)? & 15) * 4, byte(23)?, 14 + word(16)?),
        0x86dd => (14 + 40, byte(20)?, 14 + 40 + word(18)?),
        _ => return None,
    };
    if word(transport + 2)? != usize::from(port) {
        return None;
    }
    let segments = match proto {
        6 => {
            let headers = transport + (byte(transport + 12)? >> 4) * 4;
            let count = length.checked_sub(headers)?.div_ceil(FRAME.checked_sub(headers)?).max(1);
            (count - 1) * headers
        }
        17 => 0,
        _ => return None,
    };
    u64::try_from(length + segments).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(came: &[(u64, u64)]) -> Frames {
        let came = came.iter().map(|(ms, bytes)| (Duration::from_millis(*ms), *bytes)).collect();
        Frames { came, watched: Duration::from_secs(4) }
    }

    #[test]
    fn the_fullest_second_may_begin_anywhere() {
        let frames = frames(&[(0, 1), (900, 10), (1100, 100), (1899, 1000), (1900, 10_000), (3000, 5)]);
        assert_eq!(frames.fullest_second(), 11_100.0 * 8.0, "the one at 900 ms is a second before that at 1900");
        assert_eq!(frames.first_second(), 11.0 * 8.0);
        assert_eq!(frames.bits_per_second(), 11_116.0 * 2.0);
    }

    #[test]
    fn a_packet_to_be_segmented_counts_with_the_headers_of_its_segments() {
        let mut head = [0; 14 + 20 + 32];
        (head[12], head[13], head[14], head[23], head[14 + 20 + 12]) = (8, 0, 0x45, 6, 8 << 4);
        head[14 + 20 + 2..14 + 20 + 4].copy_from_slice(&5001u16.to_be_bytes());
        let mut of = |payload: u16| {
            head[16..18].copy_from_slice(&(52 + payload).to_be_bytes());
            bytes_on_the_wire(&head, 5001)
        };
        assert_eq!(of(0), Some(66));
        assert_eq!(of(1448), Some(1514));
        assert_eq!(of(1449), Some(1514 + 67));
        assert_eq!(of(44 * 1448), Some(44 * 1514));
        assert_eq!(bytes_on_the_wire(&head, 5002), None);
        assert_eq!(bytes_on_the_wire(&head[..20], 5001), None);
    }
}
