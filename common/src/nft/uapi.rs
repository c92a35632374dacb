//! Numbers of include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h that libc doesn't have.

/// `NFT_META_IIFKIND` (since Linux 5.0).
pub(super) const META_IIFKIND: u32 = 26;

/// Attributes of a table.
pub(super) mod table {
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const FLAGS: u16 = 2;
    pub(in super::super) const USERDATA: u16 = 6;

    pub(in super::super) const F_DORMANT: u32 = 1;
}

/// Attributes of a chain and of its hook.
pub(super) mod chain {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const HANDLE: u16 = 2;
    pub(in super::super) const NAME: u16 = 3;
    pub(in super::super) const HOOK: u16 = 4;
    pub(in super::super) const POLICY: u16 = 5;
    pub(in super::super) const USE: u16 = 6;
    pub(in super::super) const TYPE: u16 = 7;
    pub(in super::super) const USERDATA: u16 = 12;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;
}

/// Attributes of a rule.
pub(super) mod rule {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const CHAIN: u16 = 2;
    pub(in super::super) const HANDLE: u16 = 3;
    pub(in super::super) const EXPRESSIONS: u16 = 4;
    pub(in super::super) const POSITION: u16 = 6;
    pub(in super::super) const USERDATA: u16 = 7;
}

/// Attributes of a set.
pub(super) mod set {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const NAME: u16 = 2;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const KEY_TYPE: u16 = 4;
    pub(in super::super) const KEY_LEN: u16 = 5;
    pub(in super::super) const DATA_TYPE: u16 = 6;
    pub(in super::super) const DATA_LEN: u16 = 7;
    pub(in super::super) const DESCRIPTION: u16 = 9;
    pub(in super::super) const DESCRIPTION_SIZE: u16 = 1;
    pub(in super::super) const ID: u16 = 10;
    pub(in super::super) const USERDATA: u16 = 13;

    pub(in super::super) const F_ANONYMOUS: u32 = 1;
    pub(in super::super) const F_CONSTANT: u32 = 2;
    pub(in super::super) const F_INTERVAL: u32 = 4;
    pub(in super::super) const F_MAP: u32 = 8;
    /// NFT_DATA_VERDICT
    pub(in super::super) const DATA_VERDICT: u32 = 0xffff_ff00;
}

/// Attributes of an element and of the list it comes in.
pub(super) mod element {
    pub(in super::super) const LIST_TABLE: u16 = 1;
    pub(in super::super) const LIST_SET: u16 = 2;
    pub(in super::super) const LIST_ELEMENTS: u16 = 3;
    pub(in super::super) const LIST_SET_ID: u16 = 4;
    pub(in super::super) const KEY: u16 = 1;
    pub(in super::super) const DATA: u16 = 2;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const USERDATA: u16 = 6;
    pub(in super::super) const F_INTERVAL_END: u32 = 1;
}

/// Data: a value or a verdict.
pub(super) mod data {
    pub(in super::super) const VALUE: u16 = 1;
    pub(in super::super) const VERDICT: u16 = 2;
    pub(in super::super) const VERDICT_CODE: u16 = 1;
    pub(in super::super) const VERDICT_CHAIN: u16 = 2;
}

/// The codes of verdicts: NF_DROP, NF_ACCEPT, and NFT_CONTINUE to NFT_RETURN.
pub(super) mod verdict {
    pub(in super::super) const DROP: u32 = 0;
    pub(in super::super) const ACCEPT: u32 = 1;
    pub(in super::super) const CONTINUE: u32 = -1i32 as u32;
    pub(in super::super) const JUMP: u32 = -3i32 as u32;
    pub(in super::super) const GOTO: u32 = -4i32 as u32;
    pub(in super::super) const RETURN: u32 = -5i32 as u32;
}

/// Parameters of each kind of expression.
pub(super) mod expression {
    pub(in super::super) const META_DREG: u16 = 1;
    pub(in super::super) const META_KEY: u16 = 2;
    pub(in super::super) const META_SREG: u16 = 3;
    pub(in super::super) const CT_DREG: u16 = 1;
    pub(in super::super) const CT_KEY: u16 = 2;
    pub(in super::super) const CT_DIRECTION: u16 = 3;
    pub(in super::super) const CT_SREG: u16 = 4;
    pub(in super::super) const PAYLOAD_DREG: u16 = 1;
    pub(in super::super) const PAYLOAD_BASE: u16 = 2;
    pub(in super::super) const PAYLOAD_OFFSET: u16 = 3;
    pub(in super::super) const PAYLOAD_LEN: u16 = 4;
    pub(in super::super) const FIB_DREG: u16 = 1;
    pub(in super::super) const FIB_RESULT: u16 = 2;
    pub(in super::super) const FIB_FLAGS: u16 = 3;
    pub(in super::super) const BITWISE_SREG: u16 = 1;
    pub(in super::super) const BITWISE_DREG: u16 = 2;
    pub(in super::super) const BITWISE_LEN: u16 = 3;
    pub(in super::super) const BITWISE_MASK: u16 = 4;
    pub(in super::super) const BITWISE_XOR: u16 = 5;
    pub(in super::super) const CMP_SREG: u16 = 1;
    pub(in super::super) const CMP_OP: u16 = 2;
    pub(in super::super) const CMP_DATA: u16 = 3;
    pub(in super::super) const RANGE_SREG: u16 = 1;
    pub(in super::super) const RANGE_OP: u16 = 2;
    pub(in super::super) const RANGE_FROM_DATA: u16 = 3;
    pub(in super::super) const RANGE_TO_DATA: u16 = 4;
    pub(in super::super) const LOOKUP_SET: u16 = 1;
    pub(in super::super) const LOOKUP_SREG: u16 = 2;
    pub(in super::super) const LOOKUP_DREG: u16 = 3;
    pub(in super::super) const LOOKUP_SET_ID: u16 = 4;
    pub(in super::super) const LOOKUP_FLAGS: u16 = 5;
    pub(in super::super) const IMMEDIATE_DREG: u16 = 1;
    pub(in super::super) const IMMEDIATE_DATA: u16 = 2;
    pub(in super::super) const NAT_TYPE: u16 = 1;
    pub(in super::super) const NAT_FAMILY: u16 = 2;
    pub(in super::super) const NAT_REG_ADDR_MIN: u16 = 3;
    pub(in super::super) const NAT_REG_PROTO_MIN: u16 = 5;
}

/// Attributes of the generation.
pub(super) const GEN_ID: u16 = 1;

/// NFTA_LIST_ELEM: one of a list.
pub(super) const LIST_ELEMENT: u16 = 1;

/// Attributes of NFTA_LIST_ELEM, name and data of an expression.
pub(super) const EXPR_NAME: u16 = 1;
/// See [`EXPR_NAME`].
pub(super) const EXPR_DATA: u16 = 2;

/// The comment among the userdata of each kind of object (libnftnl, include/libnftnl/udata.h).
pub(super) mod userdata {
    pub(in super::super) const COMMENT: u8 = 0;
    pub(in super::super) const SET_KEY_BYTE_ORDER: u8 = 0;
    pub(in super::super) const SET_DATA_BYTE_ORDER: u8 = 1;
    pub(in super::super) const SET_COMMENT: u8 = 7;
}
