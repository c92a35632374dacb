//! One netlink message: what `nftnl::Batch` collects, or a request on its own.
//!
//! # Safety
//!
//! `NlMsg::write` gets a buffer of `nft_nlmsg_maxsize()` bytes (64 KiB and a page) from the batch, or from
//! a [`RequestBuffer`]. libnftnl does not check the end of it, so what goes into a message is bounded before: names are
//! at most [`super::encode::NAME_MAX`] bytes, a rule at most 128 expressions of at most 64 bytes of data each, and a
//! message's elements together at most [`super::encode::ELEMENTS_MAX_BYTES`].
#![allow(unsafe_code)]

use std::ffi::c_void;

use nftnl::nftnl_sys as sys;
use nftnl::{MsgType, NlMsg};
use nix::libc;

use super::model::Family;
use super::object::{ChainObject, RuleObject, SetObject, TableObject};

/// What a message is about.
pub(super) enum Body {
    /// Nothing but its head (the generation, all tables).
    None,
    Table(TableObject),
    Chain(ChainObject),
    Rule(RuleObject),
    Set(SetObject),
    Elements(SetObject),
}

/// A message, all but its sequence number.
pub(super) struct Message {
    /// NFT_MSG_…
    pub(super) kind: i32,
    /// The family; `None` asks for all.
    pub(super) family: Option<Family>,
    /// NLM_F_…, beside NLM_F_REQUEST
    pub(super) flags: i32,
    pub(super) body: Body,
}

/// More than malloc(3) takes from its heap (M_MMAP_THRESHOLD, 128 KiB): the kernel clears this memory, page by page as it is
/// written to, and mostly that is one page of it.
const CLEARED_BY_THE_KERNEL: usize = 160 << 10;

/// Room for one request, used again and again.
#[derive(Default)]
pub(super) struct RequestBuffer(Vec<u64>);

impl RequestBuffer {
    /// The message as it goes to the socket.
    pub(super) fn write(&mut self, message: &Message, sequence: u32) -> &[u8] {
        let room = (nftnl::nft_nlmsg_maxsize() as usize).max(CLEARED_BY_THE_KERNEL).div_ceil(8);
        if self.0.is_empty() {
            self.0 = vec![0; room];
        }
        let start = self.0.as_mut_ptr();
        // SAFETY: the buffer has the size that `write` asks for, aligned to 8 bytes; libnftnl writes the length of what it
        // has written into the head, and all of that is initialised.
        unsafe {
            message.write(start.cast(), sequence, MsgType::Add);
            let len = (*start.cast::<libc::nlmsghdr>()).nlmsg_len as usize;
            std::slice::from_raw_parts(start.cast::<u8>(), len)
        }
    }
}

// SAFETY: see the head of this module.
unsafe impl NlMsg for Message {
    /// `_kind` says add or delete, which `self.kind` says already.
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _kind: MsgType) {
        let family = self.family.map_or(libc::NFPROTO_UNSPEC as u16, |family| family as u16);
        // SAFETY: the buffer is large enough by this function's contract and this module's bounds; the objects are live.
        unsafe {
            let head = sys::nftnl_nlmsg_build_hdr(buffer.cast(), self.kind as u16, family, self.flags as u16, sequence);
            match &self.body {
                Body::None => {}
                Body::Table(table) => sys::nftnl_table_nlmsg_build_payload(head, table.as_ptr()),
                Body::Chain(chain) => sys::nftnl_chain_nlmsg_build_payload(head, chain.as_ptr()),
                Body::Rule(rule) => sys::nftnl_rule_nlmsg_build_payload(head, rule.as_ptr()),
                Body::Set(set) => sys::nftnl_set_nlmsg_build_payload(head, set.as_ptr()),
                Body::Elements(set) => sys::nftnl_set_elems_nlmsg_build_payload(head, set.as_ptr()),
            }
        }
    }
}
