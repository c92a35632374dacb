//! A client of the Container Runtime Interface: gRPC over a Unix socket, with the few messages that a test needs.
//!
//! The messages are excerpts of `runtime.v1` (k8s.io/cri-api, pkg/apis/runtime/v1/api.proto), written by hand so that no
//! protoc is needed: a field that isn't here is skipped when read and unset when written. A unary call of gRPC is one
//! HTTP/2 request whose body is a length-prefixed message and whose outcome is in the trailers (grpc,
//! doc/PROTOCOL-HTTP2.md).

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use h2::client::SendRequest;
use http::HeaderMap;
use prost::Message;
use prost::bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest call.
const LIMIT: Duration = Duration::from_secs(120);

/// `PodSandboxConfig`
#[derive(Clone, PartialEq, Message)]
pub struct PodConfig {
    /// Who it is.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodMetadata>,
    /// Where logs go; not used here, but must be set.
    #[prost(string, tag = "3")]
    pub log_directory: String,
    /// hostPort and the like.
    #[prost(message, repeated, tag = "5")]
    pub port_mappings: Vec<PortMapping>,
    /// As kubelet passes them on from the pod.
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
}

/// `PodSandboxMetadata`
#[derive(Clone, PartialEq, Message)]
pub struct PodMetadata {
    /// The pod's.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The pod's.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// The pod's.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// Counts the sandboxes of one pod.
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

/// `PortMapping`
#[derive(Clone, PartialEq, Message)]
pub struct PortMapping {
    /// `Protocol`: 0 tcp, 1 udp, 2 sctp.
    #[prost(int32, tag = "1")]
    pub protocol: i32,
    /// In the pod.
    #[prost(int32, tag = "2")]
    pub container_port: i32,
    /// On the host.
    #[prost(int32, tag = "3")]
    pub host_port: i32,
    /// Empty for every address.
    #[prost(string, tag = "4")]
    pub host_ip: String,
}

/// `RunPodSandboxRequest`
#[derive(Clone, PartialEq, Message)]
struct RunRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

/// What names a pod sandbox: the requests Stop-, Remove- and PodSandboxStatus, and the answer to RunPodSandbox.
#[derive(Clone, PartialEq, Message)]
struct PodId {
    #[prost(string, tag = "1")]
    id: String,
    /// Of `PodSandboxStatusRequest` only.
    #[prost(bool, tag = "2")]
    verbose: bool,
}

/// An answer without content.
#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// `PodSandboxStatusResponse`
#[derive(Clone, PartialEq, Message)]
pub struct PodStatusAnswer {
    /// What every runtime tells.
    #[prost(message, optional, tag = "1")]
    pub status: Option<PodStatus>,
    /// What this runtime tells besides, as JSON.
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

/// `PodSandboxStatus`, and the entries of `ListPodSandboxResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct PodStatus {
    /// The sandbox's.
    #[prost(string, tag = "1")]
    pub id: String,
    /// `PodSandboxState`: 0 ready, 1 not ready.
    #[prost(int32, tag = "3")]
    pub state: i32,
    /// Not in a list.
    #[prost(message, optional, tag = "5")]
    pub network: Option<PodNetwork>,
}

/// `PodSandboxNetworkStatus`
#[derive(Clone, PartialEq, Message)]
pub struct PodNetwork {
    /// The first address.
    #[prost(string, tag = "1")]
    pub ip: String,
    /// The others.
    #[prost(message, repeated, tag = "2")]
    pub additional_ips: Vec<PodIp>,
}

/// `PodIP`
#[derive(Clone, PartialEq, Message)]
pub struct PodIp {
    /// Without a prefix length.
    #[prost(string, tag = "1")]
    pub ip: String,
}

/// An entry of `ListPodSandboxResponse`: another field 5 than [`PodStatus`].
#[derive(Clone, PartialEq, Message)]
struct Listed {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Listed>,
}

/// `StatusResponse`
#[derive(Clone, PartialEq, Message)]
struct RuntimeStatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, Message)]
struct Condition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    status: bool,
}

/// A runtime that listens on a socket. Every call makes a connection of its own: the runtime may have been started anew.
#[derive(Clone, Debug)]
pub struct Cri {
    socket: PathBuf,
}

impl Cri {
    /// The runtime at this socket.
    pub fn at(socket: PathBuf) -> Cri {
        Cri { socket }
    }

    /// Whether it says that it could start pods with a network.
    pub fn is_ready(&self) -> bool {
        let answer: Result<RuntimeStatusAnswer, String> = self.call("Status", &Nothing {});
        let conditions = answer.ok().and_then(|answer| answer.status).map_or(Vec::new(), |status| status.conditions);
        let holds = |kind: &str| conditions.iter().any(|c| c.kind == kind && c.status);
        holds("RuntimeReady") && holds("NetworkReady")
    }

    /// RunPodSandbox; gives the sandbox's ID.
    pub fn run_pod(&self, config: &PodConfig) -> Result<String, String> {
        let answer: PodId = self.call("RunPodSandbox", &RunRequest { config: Some(config.clone()) })?;
        Ok(answer.id)
    }

    /// StopPodSandbox
    pub fn stop_pod(&self, id: &str) -> Result<(), String> {
        self.call("StopPodSandbox", &PodId { id: id.into(), verbose: false }).map(|Nothing {}| ())
    }

    /// RemovePodSandbox
    pub fn remove_pod(&self, id: &str) -> Result<(), String> {
        self.call("RemovePodSandbox", &PodId { id: id.into(), verbose: false }).map(|Nothing {}| ())
    }

    /// PodSandboxStatus, verbose.
    pub fn pod_status(&self, id: &str) -> Result<PodStatusAnswer, String> {
        self.call("PodSandboxStatus", &PodId { id: id.into(), verbose: true })
    }

    /// ListPodSandbox: their IDs.
    pub fn pods(&self) -> Result<Vec<String>, String> {
        let list: List = self.call("ListPodSandbox", &Nothing {})?;
        Ok(list.items.into_iter().map(|item| item.id).collect())
    }

    fn call<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        let failed = |e: &dyn std::fmt::Display| format!("{method}: {e}");
        let answer = runtime.block_on(async {
            let answer = tokio::time::timeout(LIMIT, unary(self.socket.clone(), method, request.encode_to_vec()));
            answer.await.map_err(|_| failed(&format!("no answer within {LIMIT:?}")))?.map_err(|e| failed(&e))
        })?;
        A::decode(answer).map_err(|e| failed(&e))
    }
}

async fn unary(socket: PathBuf, method: &str, message: Vec<u8>) -> Result<Bytes, String> {
    let stream = tokio::net::UnixStream::connect(&socket).await.map_err(|e| format!("{}: {e}", socket.display()))?;
    let (client, connection) = h2::client::handshake(stream).await.map_err(|e| e.to_string())?;
    // Its end is seen by the call that is under way.
    tokio::spawn(connection);
    exchange(client, method, message).await
}

async fn exchange(client: SendRequest<Bytes>, method: &str, message: Vec<u8>) -> Result<Bytes, String> {
    let request = http::Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|e| e.to_string())?;
    let mut client = client.ready().await.map_err(|e| e.to_string())?;
    let (answer, mut body) = client.send_request(request, false).map_err(|e| e.to_string())?;
    body.send_data(framed(&message), true).map_err(|e| e.to_string())?;
    let answer = answer.await.map_err(|e| e.to_string())?;
    // An error may come in the headers alone ("Trailers-Only").
    outcome(answer.headers())?;
    let mut body = answer.into_body();
    let mut content = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part.map_err(|e| e.to_string())?;
        body.flow_control().release_capacity(part.len()).map_err(|e| e.to_string())?;
        content.put(part);
    }
    let trailers = body.trailers().await.map_err(|e| e.to_string())?;
    outcome(&trailers.unwrap_or_default())?;
    unframed(content.freeze())
}

/// One byte for "not compressed", the length as 32 bits in network order, the message.
fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put(message);
    frame.freeze()
}

fn unframed(mut frame: Bytes) -> Result<Bytes, String> {
    if frame.len() < 5 || frame.get_u8() != 0 {
        return Err("the answer has no message, or a compressed one".into());
    }
    let length = frame.get_u32() as usize;
    if frame.len() == length { Ok(frame) } else { Err(format!("{} bytes came in place of {length}", frame.len())) }
}

fn outcome(headers: &HeaderMap) -> Result<(), String> {
    let text = |name: &str| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    match text("grpc-status") {
        Some(code) if code != "0" => Err(format!("gRPC {code}: {}", text("grpc-message").unwrap_or_default())),
        _ => Ok(()),
    }
}
