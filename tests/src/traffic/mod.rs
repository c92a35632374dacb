//! Servers that answer with a token and the address they were asked from, and clients that wait for it, but not long.

pub mod throughput;
pub mod wire;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt,
};
use nix::sys::socket::{socket, sockopt};

use crate::namespace::{Netns, must};

/// How long an answer may take that is expected: long, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait for an answer that must not come.
pub const BRIEFLY: Duration = Duration::from_millis(700);

/// How often a server looks whether it is to stop.
const POLL: Duration = Duration::from_millis(20);

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proto {
    /// tcp(7)
    Tcp,
    /// udp(7)
    Udp,
}

impl Proto {
    /// Both.
    pub const ALL: [Proto; 2] = [Proto::Tcp, Proto::Udp];

    /// As configurations write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The server's token.
    pub token: String,
    /// The address the server saw the request come from.
    pub peer: SocketAddr,
    /// The address that the request arrived at, where the server can know it (TCP).
    pub local: Option<SocketAddr>,
}

impl Reply {
    fn parse(text: &str) -> Option<Reply> {
        let mut lines = text.lines();
        let (token, peer) = (lines.next()?.to_owned(), lines.next()?.parse().ok()?);
        Some(Reply { token, peer, local: lines.next().and_then(|l| l.parse().ok()) })
    }
}

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoReply {
    /// Somebody said no: a reset, or an ICMP error about the port.
    Refused,
    /// Nobody said anything.
    TimedOut,
    /// There is no way there, or it is forbidden; the errno.
    Unreachable(i32),
    /// Somebody else answered.
    Garbage(String),
}

impl fmt::Display for NoReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoReply::Refused => f.write_str("connection refused"),
            NoReply::TimedOut => f.write_str("no answer"),
            NoReply::Unreachable(errno) => write!(f, "unreachable: {}", io::Error::from_raw_os_error(*errno)),
            NoReply::Garbage(text) => write!(f, "an answer that no test server gives: {text:?}"),
        }
    }
}

impl From<io::Error> for NoReply {
    fn from(error: io::Error) -> NoReply {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                NoReply::Refused
            }
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => NoReply::TimedOut,
            _ => NoReply::Unreachable(error.raw_os_error().unwrap_or_default()),
        }
    }
}

/// A server inside a namespace; stops when dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A server's panic has been printed; a second one while dropping would abort the whole process.
            let _ = thread.join();
        }
    }
}

/// Answers with `token` on `port` of every address of `netns`: tcp and udp, both families.
#[track_caller]
pub fn serve(netns: &Netns, port: u16, token: &str) -> Server {
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    serve_at(netns, &any.map(|ip| SocketAddr::new(ip, port)), &Proto::ALL, token)
}

/// Answers with `token` on exactly these addresses and protocols. Port 0 isn't of use here.
#[track_caller]
pub fn serve_at(netns: &Netns, addresses: &[SocketAddr], protocols: &[Proto], token: &str) -> Server {
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for (&address, &proto) in addresses.iter().flat_map(|a| protocols.iter().map(move |p| (a, p))) {
        let (token, stop) = (token.to_owned(), stop.clone());
        let socket = netns.inside(|| listen_on(proto, address));
        let socket = must(socket.map_err(|e| format!("a server on {proto} {address} in {}: {e}", netns.name())));
        threads.push(netns.spawn(move || match socket {
            Listening::Tcp(listener) => answer_tcp(&listener, &token, &stop),
            Listening::Udp(socket) => answer_udp(&socket, &token, &stop),
        }));
    }
    Server { stop, threads }
}

enum Listening {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// A bound socket whose IPv6 wildcard leaves IPv4 alone, so that one server per family fits on one port.
fn listen_on(proto: Proto, address: SocketAddr) -> io::Result<Listening> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = if proto == Proto::Tcp { SockType::Stream } else { SockType::Datagram };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &timeval(POLL))?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(address))?;
    if proto == Proto::Udp {
        return Ok(Listening::Udp(fd.into()));
    }
    listen(&fd, Backlog::new(64)?)?;
    Ok(Listening::Tcp(fd.into()))
}

fn timeval(duration: Duration) -> nix::sys::time::TimeVal {
    nix::sys::time::TimeVal::new(duration.as_secs() as i64, i64::from(duration.subsec_micros()))
}

fn answer_tcp(listener: &TcpListener, token: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        // SO_RCVTIMEO bounds accept(2) too (socket(7)).
        let Ok((mut stream, peer)) = listener.accept() else { continue };
        let local = stream.local_addr().map(|a| a.to_string()).unwrap_or_default();
        let _ = stream.set_write_timeout(Some(PATIENCE));
        let _ = stream.write_all(format!("{token}\n{peer}\n{local}\n").as_bytes());
    }
}

fn answer_udp(socket: &UdpSocket, token: &str, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{token}\n{peer}\n").as_bytes(), peer);
        }
    }
}

/// Asks a token server once, from inside `netns`. Waits [`PATIENCE`] at the most.
#[track_caller]
pub fn fetch(netns: &Netns, proto: Proto, address: &str) -> Result<Reply, NoReply> {
    Fetch::new(proto, address).from(netns)
}

/// One question to a token server.
#[derive(Clone, Debug)]
pub struct Fetch {
    proto: Proto,
    address: SocketAddr,
    source: Option<SocketAddr>,
    limit: Duration,
}

impl fmt::Display for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.proto, self.address)
    }
}

impl Fetch {
    /// A question to `address`, e.g. `192.0.2.1:80` or `[2001:db8::1]:80`.
    #[track_caller]
    pub fn new(proto: Proto, address: &str) -> Fetch {
        let address = parse(address);
        Fetch { proto, address, source: None, limit: PATIENCE }
    }

    /// From this address and port (0 for any port).
    #[track_caller]
    pub fn source(mut self, address: &str) -> Fetch {
        self.source = Some(parse(address));
        self
    }

    /// Waits no longer than this.
    pub fn within(mut self, limit: Duration) -> Fetch {
        self.limit = limit;
        self
    }

    /// Asks from inside `netns`.
    pub fn from(&self, netns: &Netns) -> Result<Reply, NoReply> {
        let text = netns.inside(|| match self.proto {
            Proto::Tcp => self.ask_tcp(),
            Proto::Udp => self.ask_udp(),
        })?;
        Reply::parse(&text).ok_or(NoReply::Garbage(text))
    }

    /// Asks from inside `netns` and fails the test unless `token` comes back.
    #[track_caller]
    pub fn expect(&self, netns: &Netns, token: &str) -> Reply {
        match self.from(netns) {
            Ok(reply) if reply.token == token => reply,
            Ok(reply) => panic!("{self} from {}: {token:?} expected, came {reply:?}", netns.name()),
            Err(error) => panic!("{self} from {}: {token:?} expected, but {error}", netns.name()),
        }
    }

    /// Asks from inside `netns` and fails the test if anybody answers within [`BRIEFLY`].
    #[track_caller]
    pub fn expect_nothing(&self, netns: &Netns) -> NoReply {
        match self.clone().within(BRIEFLY).from(netns) {
            Err(NoReply::Garbage(text)) => panic!("{self}: somebody answered {text:?}"),
            Err(error) => error,
            Ok(reply) => panic!("{self} from {} must not be answered, but was: {reply:?}", netns.name()),
        }
    }

    fn ask_tcp(&self) -> io::Result<String> {
        let deadline = Instant::now() + self.limit;
        let stream = self.connect_tcp()?;
        stream.set_read_timeout(Some(left(deadline)))?;
        let _ = stream.shutdown(Shutdown::Write);
        let mut text = String::new();
        stream.take(4096).read_to_string(&mut text)?;
        Ok(text)
    }

    fn connect_tcp(&self) -> io::Result<TcpStream> {
        let Some(source) = self.source else { return TcpStream::connect_timeout(&self.address, self.limit) };
        let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        // SO_SNDTIMEO bounds connect(2) too (socket(7)).
        setsockopt(&fd, sockopt::SendTimeout, &timeval(self.limit))?;
        let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
        bind(raw, &SockaddrStorage::from(source))?;
        match connect(raw, &SockaddrStorage::from(self.address)) {
            Err(nix::Error::EINPROGRESS) => Err(io::ErrorKind::TimedOut.into()),
            other => other.map(|()| fd.into()).map_err(io::Error::from),
        }
    }

    /// Datagrams may be lost, and the first ones are while a neighbour is being resolved: asks again every 200 ms.
    fn ask_udp(&self) -> io::Result<String> {
        let deadline = Instant::now() + self.limit;
        let any = if self.address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(self.source.unwrap_or(SocketAddr::new(any, 0)))?;
        socket.connect(self.address)?;
        let mut buffer = [0; 2048];
        loop {
            socket.send(b"?")?;
            socket.set_read_timeout(Some(left(deadline).min(Duration::from_millis(200))))?;
            match socket.recv(&mut buffer) {
                Ok(n) => return Ok(String::from_utf8_lossy(&buffer[..n]).into_owned()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// An address with its port, e.g. `[::1]:80`.
#[track_caller]
fn parse(address: &str) -> SocketAddr {
    must(address.parse().map_err(|e| format!("{address}: {e}")))
}

/// Time until `deadline`, never zero: a zero time-out means none to the kernel.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}
