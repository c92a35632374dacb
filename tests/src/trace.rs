//! What a plugin says to nf_tables, as strace(1) sees it.

/// One message or batch to nf_tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A transaction: it begins with NFNL_MSG_BATCH_BEGIN.
    Transaction,
    /// The question for the number of the present state (NFT_MSG_GETGEN).
    Generation,
    /// Another question.
    Question,
}

/// What was sent, from a trace of `sendmsg` (in the namespaces of the tests strace doesn't know that it is netlink, and
/// shows bytes).
pub fn sent(trace: &str) -> Vec<Sent> {
    let of_line = |line: &str| {
        let bytes = line.split_once("iov_base=\"")?.1;
        // struct nlmsghdr: four bytes of length, then the type, little-endian.
        let (_, kind) = bytes.split_once("\\0\\0\\0")?;
        Some(match kind {
            _ if kind.starts_with("\\20\\0") => Sent::Transaction,
            _ if kind.starts_with("\\20\\n") => Sent::Generation,
            _ => Sent::Question,
        })
    };
    trace.lines().filter(|line| line.contains("sendmsg(")).filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_transactions_are_told_apart() {
        let trace = r#"
7 sendmsg(3, {msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base="\24\0\0\0\20\n\1\0\1\0\0@\0\0\0\0"..., iov_len=20}], msg_iovlen=1}, 0) = 20
7 sendmsg(3, {msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base="d\0\0\0\4\n\1\0\2\0\0@\0\0\0\0"..., iov_len=100}], msg_iovlen=1}, 0) = 100
7 sendmsg(3, {msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base="\34\0\0\0\20\0\1\0\0\0\0\0\0\0\0\0"..., iov_len=28}], msg_iovlen=1}, 0) = 28
7 sendto(4, [{nlmsg_len=72, nlmsg_type=0x14 /* NLMSG_??? */}], 72, 0, NULL, 0) = 72"#;
        assert_eq!(sent(trace), [Sent::Generation, Sent::Question, Sent::Transaction]);
    }
}
