//! libnftnl's objects, owned.
//!
//! # Safety
//!
//! This module and `message.rs` are the only ones that call libnftnl. What makes that sound:
//!
//! * each object is allocated here, held by one owner, and freed once, by `Drop`, unless another object took it over
//!   (an expression by its rule, an element by its set), in which case the owner forgets it in the same call;
//! * every attribute is copied by libnftnl before the setter returns, so no borrow outlives its call;
//! * strings are `CStr`s; data attributes are passed with their length, and those that libnftnl copies into a fixed
//!   buffer (registers' contents: 64 bytes, `NFT_DATA_VALUE_MAXLEN`) are refused here when longer;
//! * attribute numbers are libnftnl's own constants, each used with the setter of its type.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::ptr::NonNull;

use nftnl::nftnl_sys as sys;

use crate::cni::error::{Error, Result};

/// `NFT_DATA_VALUE_MAXLEN`: what a comparison, a key or a map's value may have.
pub(super) const DATA_MAX: usize = 64;

/// An allocation of a few hundred bytes failed: as in the standard library, there is nothing left to do but to say so
/// (`crate::memory`).
fn allocated<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).unwrap_or_else(|| std::process::abort())
}

/// What a setter returns. It fails for want of memory only: the attributes are libnftnl's own, and their lengths bounded. What it
/// could not keep would be missing from the message.
fn kept(outcome: c_int) {
    if outcome < 0 {
        std::process::abort();
    }
}

/// Refuses what does not fit libnftnl's fixed buffers.
fn fitting(data: &[u8]) -> Result<(*const c_void, u32)> {
    match u32::try_from(data.len()) {
        Ok(len) if data.len() <= DATA_MAX => Ok((data.as_ptr().cast(), len)),
        _ => Err(Error::Internal { what: format!("{} bytes for an nft register, at most {DATA_MAX} fit", data.len()) }),
    }
}

/// A struct that owns a libnftnl object, with the setters that its kind has.
macro_rules! owned {
    ($(#[$doc:meta])* $name:ident, $raw:ident, $alloc:ident, $free:ident, $set_str:ident, $set_data:ident) => {
        $(#[$doc])*
        pub(super) struct $name(NonNull<sys::$raw>);

        impl $name {
            pub(super) fn new() -> $name {
                // SAFETY: takes nothing, returns null or an object that is now ours.
                $name(allocated(unsafe { sys::$alloc() }))
            }

            pub(super) fn string(&self, attribute: u32, text: &CStr) -> &Self {
                // SAFETY: the object is live, the string ends with a NUL and is copied.
                kept(unsafe { sys::$set_str(self.0.as_ptr(), attribute as u16, text.as_ptr()) });
                self
            }

            /// Userdata: libnftnl allocates a copy of any length.
            pub(super) fn userdata(&self, attribute: u32, data: &[u8]) -> &Self {
                let len = u32::try_from(data.len()).unwrap_or(0);
                // SAFETY: the object is live; pointer and length are of one slice, which is copied.
                kept(unsafe { sys::$set_data(self.0.as_ptr(), attribute as u16, data.as_ptr().cast(), len) });
                self
            }

            pub(super) fn as_ptr(&self) -> *mut sys::$raw {
                self.0.as_ptr()
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: allocated by the function above, not freed before.
                unsafe { sys::$free(self.0.as_ptr()) };
            }
        }
    };
}

owned!(
    /// A table.
    TableObject, nftnl_table, nftnl_table_alloc, nftnl_table_free,
    nftnl_table_set_str, nftnl_table_set_data
);
owned!(
    /// A chain.
    ChainObject, nftnl_chain, nftnl_chain_alloc, nftnl_chain_free,
    nftnl_chain_set_str, nftnl_chain_set_data
);
owned!(
    /// A rule with its expressions.
    RuleObject, nftnl_rule, nftnl_rule_alloc, nftnl_rule_free,
    nftnl_rule_set_str, nftnl_rule_set_data
);
owned!(
    /// A set, and as many of its elements as go into one message.
    SetObject, nftnl_set, nftnl_set_alloc, nftnl_set_free,
    nftnl_set_set_str, nftnl_set_set_data
);
owned!(
    /// One element.
    ElementObject, nftnl_set_elem, nftnl_set_elem_alloc, nftnl_set_elem_free,
    nftnl_set_elem_set_str, nftnl_set_elem_set
);

/// Objects with numbers among their attributes.
macro_rules! numbered {
    ($name:ident, $set_u32:ident) => {
        impl $name {
            pub(super) fn number(&self, attribute: u32, number: u32) -> &Self {
                // SAFETY: the object is live; the attribute is a u32.
                unsafe { sys::$set_u32(self.as_ptr(), attribute as u16, number) };
                self
            }
        }
    };
}

numbered!(TableObject, nftnl_table_set_u32);
numbered!(ChainObject, nftnl_chain_set_u32);
numbered!(SetObject, nftnl_set_set_u32);
numbered!(ElementObject, nftnl_set_elem_set_u32);

impl ChainObject {
    /// The hook's priority, the only signed attribute.
    pub(super) fn priority(&self, priority: i32) -> &Self {
        // SAFETY: the object is live; the attribute is an s32.
        unsafe { sys::nftnl_chain_set_s32(self.as_ptr(), sys::NFTNL_CHAIN_PRIO as u16, priority) };
        self
    }
}

impl RuleObject {
    /// A rule's handle or position.
    pub(super) fn handle(&self, attribute: u32, handle: u64) -> &Self {
        // SAFETY: the object is live; the attribute is a u64.
        unsafe { sys::nftnl_rule_set_u64(self.as_ptr(), attribute as u16, handle) };
        self
    }

    /// Appends an expression, which becomes the rule's.
    pub(super) fn push(&self, expression: ExpressionObject) {
        let expression = std::mem::ManuallyDrop::new(expression);
        // SAFETY: both are live; the rule frees the expression from now on, and `expression` is not dropped.
        unsafe { sys::nftnl_rule_add_expr(self.as_ptr(), expression.0.as_ptr()) };
    }
}

impl SetObject {
    /// Appends an element, which becomes the set's.
    pub(super) fn push(&self, element: ElementObject) {
        let element = std::mem::ManuallyDrop::new(element);
        // SAFETY: both are live; the set frees the element from now on, and `element` is not dropped.
        unsafe { sys::nftnl_set_elem_add(self.as_ptr(), element.0.as_ptr()) };
    }
}

impl ElementObject {
    /// A key or a map's value.
    pub(super) fn data(&self, attribute: u32, data: &[u8]) -> Result<&Self> {
        let (pointer, len) = fitting(data)?;
        // SAFETY: the element is live; at most 64 bytes are copied into its 64-byte buffer.
        kept(unsafe { sys::nftnl_set_elem_set(self.as_ptr(), attribute as u16, pointer, len) });
        Ok(self)
    }
}

/// An expression; numbers and data are set by attribute, as libnftnl's `nftnl_expr_set_*` do.
pub(super) struct ExpressionObject(NonNull<sys::nftnl_expr>);

impl ExpressionObject {
    /// An expression of this kind, if libnftnl knows the kind.
    pub(super) fn new(kind: &CStr) -> ExpressionObject {
        // SAFETY: takes a string, returns null or an object that is now ours.
        ExpressionObject(allocated(unsafe { sys::nftnl_expr_alloc(kind.as_ptr()) }))
    }

    pub(super) fn number(self, attribute: u32, number: u32) -> Self {
        // SAFETY: the expression is live; the attribute is a u32.
        unsafe { sys::nftnl_expr_set_u32(self.0.as_ptr(), attribute as u16, number) };
        self
    }

    pub(super) fn byte(self, attribute: u32, number: u8) -> Self {
        // SAFETY: the expression is live; the attribute is a u8.
        unsafe { sys::nftnl_expr_set_u8(self.0.as_ptr(), attribute as u16, number) };
        self
    }

    pub(super) fn string(self, attribute: u32, text: &CStr) -> Self {
        // SAFETY: the expression is live, the string ends with a NUL and is copied.
        kept(unsafe { sys::nftnl_expr_set_str(self.0.as_ptr(), attribute as u16, text.as_ptr()) });
        self
    }

    /// A register's contents.
    pub(super) fn data(self, attribute: u32, data: &[u8]) -> Result<Self> {
        let (pointer, len) = fitting(data)?;
        // SAFETY: the expression is live; at most 64 bytes are copied into its 64-byte buffer.
        kept(unsafe { sys::nftnl_expr_set(self.0.as_ptr(), attribute as u16, pointer, len) });
        Ok(self)
    }
}

impl Drop for ExpressionObject {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, not freed before, and not taken over (`RuleObject::push` forgets it).
        unsafe { sys::nftnl_expr_free(self.0.as_ptr()) };
    }
}
