//! Throughput as the receiver sees it, in buckets of 100 ms from the first byte on.

use std::io::{IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};

use super::{PATIENCE, Proto};
use crate::namespace::{Netns, must};

/// Width of a bucket.
pub const BUCKET: Duration = Duration::from_millis(100);

/// Longest measurement in seconds.
const LONGEST: u32 = 30;

/// Bytes in a datagram: fits an Ethernet frame with room for any header.
const DATAGRAM: usize = 1400;

/// Datagrams in one system call: one by one, a sender on a small machine doesn't reach 1 Gbit/s beside its receiver.
const AT_ONCE: usize = 16;

/// What a receiver got.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Bytes of payload per [`BUCKET`], from the first byte on.
    pub buckets: Vec<u64>,
}

impl Measured {
    /// Payload bits per second over the whole time, first second included.
    pub fn bits_per_second(&self) -> f64 {
        rate(&self.buckets)
    }

    /// Payload bits in the first second: where a burst shows.
    pub fn first_second(&self) -> f64 {
        rate(&self.buckets[..self.buckets.len().min(per_second())])
    }

    /// Payload bits per second after the first second: where the rate shows. Of a shorter measurement, the whole.
    pub fn after_first_second(&self) -> f64 {
        rate(self.buckets.get(per_second()..).filter(|rest| !rest.is_empty()).unwrap_or(&self.buckets))
    }

    /// Fails the test unless the flow was held to `rate` bit/s from its first byte on, but for `burst` bits, and made use
    /// of it.
    ///
    /// Above, one part in twenty is allowed for; below, a half, because the machine may be busy. Over TCP a lost segment
    /// holds up those behind it, so that a single second may well show more than the rate, but never the whole.
    #[track_caller]
    pub fn assert_limited(&self, rate: f64, burst: f64) {
        must(self.limited(rate, burst));
    }

    /// As [`Measured::assert_limited`]; says what was seen.
    pub fn limited(&self, rate: f64, burst: f64) -> Result<(), String> {
        let seconds = self.buckets.len() as f64 * BUCKET.as_secs_f64();
        let (bits, most, least) = (self.bytes() as f64 * 8.0, (rate * seconds + burst) * 1.05, rate * seconds * 0.5);
        let came = || format!("{bits} bits came in {seconds} s");
        if bits > most {
            return Err(format!("{}, more than {rate} bit/s and {burst} bits: {self:?}", came()));
        }
        if bits < least { Err(format!("{}, far below {rate} bit/s: {self:?}", came())) } else { Ok(()) }
    }

    /// All payload bytes.
    pub fn bytes(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

fn per_second() -> usize {
    (1000 / BUCKET.as_millis()) as usize
}

fn rate(buckets: &[u64]) -> f64 {
    let seconds = buckets.len().max(1) as f64 * BUCKET.as_secs_f64();
    buckets.iter().sum::<u64>() as f64 * 8.0 / seconds
}

/// Sends from `from` to `address` of `to` as fast as it goes, for `seconds` (30 at the most), one flow.
///
/// The receiver listens on every address of `to` on `address`'s port; `via` names another destination for the sender
/// where the traffic is to go through a published port.
#[track_caller]
pub fn throughput(from: &Netns, to: &Netns, proto: Proto, address: &str, seconds: u32) -> Measured {
    let address = super::parse(address);
    throughput_via(from, to, proto, address, address, seconds)
}

/// Like [`throughput`], sending to `via` what the receiver at `address` is to get.
#[track_caller]
pub fn throughput_via(
    from: &Netns,
    to: &Netns,
    proto: Proto,
    address: SocketAddr,
    via: SocketAddr,
    seconds: u32,
) -> Measured {
    assert!(seconds <= LONGEST, "a measurement of {seconds} s: {LONGEST} s is the most");
    let duration = Duration::from_secs(seconds.into());
    let measured = match proto {
        Proto::Tcp => tcp(from, to, address, via, duration),
        Proto::Udp => udp(from, to, address, via, duration),
    };
    must(measured.map_err(|e| format!("throughput over {proto} from {} to {via}: {e}", from.name())))
}

fn tcp(from: &Netns, to: &Netns, at: SocketAddr, via: SocketAddr, duration: Duration) -> std::io::Result<Measured> {
    let listener = to.inside(|| TcpListener::bind(wildcard(at)))?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, _) = accept(&listener)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut buffer = vec![0; 256 << 10];
            receive(duration, || stream.read(&mut buffer).ok().filter(|n| *n > 0))
        });
        let sent = from.inside(|| -> std::io::Result<()> {
            let mut stream = TcpStream::connect_timeout(&via, PATIENCE)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let (block, deadline) = (vec![b'x'; 128 << 10], Instant::now() + duration + BUCKET * 2);
            // The receiver ends the measurement, by closing.
            while Instant::now() < deadline && stream.write(&block).is_ok() {}
            Ok(())
        });
        let received = receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        sent.and(received)
    })
}

fn accept(listener: &TcpListener) -> std::io::Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false)?;
                return Ok((stream, peer));
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e),
        }
    }
}

fn udp(from: &Netns, to: &Netns, at: SocketAddr, via: SocketAddr, duration: Duration) -> std::io::Result<Measured> {
    let receiving = to.inside(|| UdpSocket::bind(wildcard(at)))?;
    receiving.set_read_timeout(Some(PATIENCE))?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let mut buffer = [0; 2 * DATAGRAM];
            receive(duration, || receiving.recv(&mut buffer).ok())
        });
        let sent = from.inside(|| -> std::io::Result<()> {
            let any = if via.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(via)?;
            let deadline = Instant::now() + duration + BUCKET * 2;
            let datagram = [b'x'; DATAGRAM];
            let messages = [[IoSlice::new(&datagram)]; AT_ONCE];
            let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(AT_ONCE, None);
            while Instant::now() < deadline {
                // ENOBUFS is a full queue and ECONNREFUSED a receiver that has finished: neither ends the flow.
                let to = [None; AT_ONCE];
                let _ = sendmmsg(socket.as_raw_fd(), &mut headers, &messages, to, [], MsgFlags::empty());
            }
            Ok(())
        });
        let received = receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        sent.and(received)
    })
}

/// Counts what `next` yields, from its first yield for `duration`; `None` ends the flow early and counts as silence.
fn receive(duration: Duration, mut next: impl FnMut() -> Option<usize>) -> std::io::Result<Measured> {
    let mut buckets = vec![0; (duration.as_millis() / BUCKET.as_millis()).max(1) as usize];
    let first = next().ok_or(std::io::ErrorKind::TimedOut)?;
    let start = Instant::now();
    buckets[0] += first as u64;
    while let Some(n) = next() {
        let bucket = (start.elapsed().as_millis() / BUCKET.as_millis()) as usize;
        match buckets.get_mut(bucket) {
            Some(bytes) => *bytes += n as u64,
            None => break,
        }
    }
    Ok(Measured { buckets })
}

fn wildcard(address: SocketAddr) -> SocketAddr {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    SocketAddr::new(any, address.port())
}
