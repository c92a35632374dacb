//! One netlink message: what `nftnl::Batch` collects, or a request on its own.
//!
//! # Safety
//!
//! `NlMsg::write` gets a buffer of `nft_nlmsg_maxsize()` bytes (64 KiB and a page) from the batch, aligned to four, and writes no
//! more than that: what were longer would be cut, and refused by the kernel. It is not, because of its attributes one is a list
//! of at most 64 KiB, and the others are names, a comment and some numbers.
#![allow(unsafe_code)]

use std::ffi::c_void;

use nftnl::{MsgType, NlMsg};
use nix::libc;

use super::attributes::Attributes;
use super::model::Family;

/// A message, all but its sequence number.
pub(super) struct Message {
    /// NFT_MSG_…
    pub(super) kind: i32,
    /// The family; `None` asks for all.
    pub(super) family: Option<Family>,
    /// NLM_F_…, beside NLM_F_REQUEST
    pub(super) flags: i32,
    /// What it is about.
    pub(super) attributes: Attributes,
}

/// Words of a message's head: `nlmsghdr` and `nfgenmsg` (include/uapi/linux/netlink.h, netfilter/nfnetlink.h).
const HEAD: usize = 5;

impl Message {
    fn head(&self, sequence: u32) -> [u32; HEAD] {
        let pair = |[a, b]: [u8; 2], [c, d]: [u8; 2]| u32::from_ne_bytes([a, b, c, d]);
        let len = HEAD * 4 + self.attributes.len();
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | self.kind) as u16;
        let flags = (libc::NLM_F_REQUEST | self.flags) as u16;
        let family = self.family.map_or(libc::NFPROTO_UNSPEC as u8, |family| family as u8);
        // The port of whoever sends it is the kernel's business.
        [len as u32, pair(kind.to_ne_bytes(), flags.to_ne_bytes()), sequence, 0, pair([family, 0], [0, 0])]
    }
}

/// Room for requests, used again and again.
#[derive(Default)]
pub(super) struct RequestBuffer(Vec<u32>);

impl RequestBuffer {
    /// The message as it goes to the socket.
    pub(super) fn write(&mut self, message: &Message, sequence: u32) -> &[u8] {
        self.0.clear();
        self.0.extend_from_slice(&message.head(sequence));
        self.0.extend_from_slice(message.attributes.words());
        let words = self.0.as_slice();
        // SAFETY: as many bytes as these words have, for as long as they are borrowed; any bytes are a `u8`.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
    }
}

// SAFETY: see the head of this module.
unsafe impl NlMsg for Message {
    /// `_kind` says add or delete, which `self.kind` says already.
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _kind: MsgType) {
        let (head, words) = (self.head(sequence), self.attributes.words());
        let room = nftnl::nft_nlmsg_maxsize() as usize / 4 - HEAD;
        // SAFETY: the buffer has room for the head and so many words by this function's contract; nobody else has it.
        unsafe {
            let buffer = buffer.cast::<u32>();
            std::ptr::copy_nonoverlapping(head.as_ptr(), buffer, HEAD);
            std::ptr::copy_nonoverlapping(words.as_ptr(), buffer.add(HEAD), words.len().min(room));
        }
    }
}
