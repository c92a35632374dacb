//! Who owns a thing: one interface of one container on one network.
//!
//! Everything a plugin leaves in the kernel or on disk is named after its attachment, so that DEL needs nothing but
//! the attachment to find it, and GC can tell the live from the dead without asking anybody.

use std::fmt;

use sha2::{Digest, Sha512};

/// One interface of one container on one network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attachment {
    /// The configuration's `name`.
    pub network: String,
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

/// Bytes of an nft comment, of a link alias and of every other place for a label (libnftnl's
/// `NFTNL_UDATA_COMMENT_MAXLEN` is 128 with two bytes of head and a NUL).
pub const LABEL_MAX: usize = 125;

/// Digits of the key in a label that was cut.
const LABEL_DIGITS: usize = 16;

/// Bytes of the network in a label that was cut.
const LABEL_NETWORK: usize = 27;

/// Bytes of the container in a label that was cut.
pub const LABEL_CONTAINER: usize = 64;

impl Attachment {
    /// An attachment by its three names.
    pub fn new(network: impl Into<String>, container: impl Into<String>, ifname: impl Into<String>) -> Self {
        Attachment { network: network.into(), container: container.into(), ifname: ifname.into() }
    }

    /// The readable label `network/container/ifname`.
    ///
    /// Where it has to be short, the longer names are cut in their middles, and digits of [`Attachment::key`] behind the
    /// network's tell it from all others that are cut to the same: whoever has the label is the owner. So they do where an
    /// interface's name has a quotation mark, which nft could not read again from what it lists: no other name can have one.
    pub fn label(&self) -> String {
        let whole = format!("{}/{}/{}", self.network, self.container, self.ifname);
        if whole.len() <= LABEL_MAX && !whole.contains('"') {
            return whole;
        }
        let digits = self.own_key(LABEL_DIGITS);
        let (network, container) = (shorten(&self.network, LABEL_NETWORK), shorten(&self.container, LABEL_CONTAINER));
        format!("{network}~{digits}/{container}/{}", self.ifname.replace('"', "?"))
    }

    /// Whether a label is that of an attachment of the network; no of one that was cut where it can't be known.
    pub fn is_label_on(label: &str, network: &str) -> bool {
        let Some(rest) = label.strip_prefix(network) else { return false };
        let is_cut = rest.strip_prefix('~').and_then(|rest| rest.as_bytes().get(LABEL_DIGITS)) == Some(&b'/');
        rest.starts_with('/') || is_cut && network.len() <= LABEL_NETWORK
    }

    /// Whether a label is that of an attachment of the container, or of another whose name is cut to the same.
    pub fn is_label_of(label: &str, container: &str) -> bool {
        let mut names = label.split('/');
        let named = names.nth(1).filter(|_| names.count() == 1);
        named.is_some_and(|named| named == container || named == shorten(container, LABEL_CONTAINER))
    }

    /// The key of the attachment within object names: 16 hex digits for the network, 24 for the attachment.
    ///
    /// Everything of one network shares [`Attachment::network_key`], so GC finds a network's objects by prefix and
    /// the dead among them by comparing with the live attachments' keys.
    pub fn key(&self) -> String {
        format!("{}-{}", Self::network_key(&self.network), self.own_key(24))
    }

    /// So many digits of the second half of the key.
    fn own_key(&self, digits: usize) -> String {
        hex(&self.own_digest(), digits)
    }

    /// What the second half of the key is of.
    pub(crate) fn own_digest(&self) -> [u8; 64] {
        digest(&[&self.network, &self.container, &self.ifname])
    }

    /// What the first half of the key is of.
    pub(crate) fn network_digest(network: &str) -> [u8; 64] {
        digest(&[network])
    }

    /// Whether this is the key of an attachment.
    pub fn is_key(text: &str) -> bool {
        let is_hex =
            |part: &str, len| part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        text.split_once('-').is_some_and(|(network, own)| is_hex(network, 16) && is_hex(own, 24))
    }

    /// The first half of the key of every attachment of `network`.
    pub fn network_key(network: &str) -> String {
        hex(&Self::network_digest(network), 16)
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.container, self.ifname)
    }
}

fn shorten(name: &str, most: usize) -> String {
    if name.len() <= most {
        return name.to_owned();
    }
    // Names are ASCII by the time they get here; `get` keeps anything else from panicking.
    let kept = most - 1;
    let head = name.get(..kept - kept / 3).unwrap_or_default();
    let tail = name.get(name.len() - kept / 3..).unwrap_or_default();
    format!("{head}~{tail}")
}

/// SHA-512 of the parts, NUL between them (a NUL is in no name, so no two lists of parts collide).
fn digest(parts: &[&str]) -> [u8; 64] {
    let mut hash = Sha512::new();
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            hash.update([0u8]);
        }
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

/// The first digits in lower case.
fn hex(bytes: &[u8], digits: usize) -> String {
    let all = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    all.take(digits).filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

/// The name the Go reference plugins give an object: `(prefix + hex(sha512(text)))` cut to `length`
/// (`utils.MustFormatHashWithPrefix`).
pub fn reference_hash_name(length: usize, prefix: &str, text: &str) -> String {
    let mut name = format!("{prefix}{}", hex(&digest(&[text]), length.saturating_sub(prefix.len())));
    name.truncate(length);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_names_match_the_reference() {
        assert_eq!(reference_hash_name(28, "CNI-", "test1234"), "CNI-2bbe0c48b91a7d1b8a6753a8");
        assert_eq!(reference_hash_name(28, "CNI-PREFIX-", "test1234"), "CNI-PREFIX-2bbe0c48b91a7d1b8");
        assert_eq!(reference_hash_name(15, "bwp", "cni-plugin-bandwidth-testdummy"), "bwpa8eda89404b7");
    }

    #[test]
    fn keys_tell_attachments_apart_and_networks_together() {
        let a = Attachment::new("net", "c1", "eth0");
        let b = Attachment::new("net", "c1", "eth1");
        assert_ne!(a.key(), b.key());
        assert!(a.key().starts_with(&Attachment::network_key("net")));
        assert_ne!(Attachment::new("ab", "c", "e").key(), Attachment::new("a", "bc", "e").key());
        assert_eq!(a.key().len(), 41);
        assert!(Attachment::is_key(&a.key()));
        for other in ["", "-", "uplink", &a.key()[1..], &a.key().to_uppercase()] {
            assert!(!Attachment::is_key(other), "{other}");
        }
    }

    #[test]
    fn labels_that_are_cut_differ_all_the_same() {
        let id = "0123456789abcdef".repeat(4);
        let of_network = |c| Attachment::new(format!("project-{c}-default-network-{}", "x".repeat(60)), &id, "eth0");
        let of_container = |c| Attachment::new("n".repeat(60), format!("{0}{c}{0}", "x".repeat(60)), "eth0");
        for (a, b) in [(of_network("a"), of_network("b")), (of_container("a"), of_container("b"))] {
            assert_eq!(a.label().len(), b.label().len());
            assert_ne!(a.label(), b.label());
        }
    }

    #[test]
    fn a_label_says_its_network_where_that_was_not_cut() {
        let cut = Attachment::new("net", "c".repeat(200), "eth0").label();
        assert!(Attachment::is_label_on(&cut, "net") && Attachment::is_label_on("net/c/eth0", "net"));
        for other in ["ne", "net2", "n", ""] {
            assert!(!Attachment::is_label_on(&cut, other) && !Attachment::is_label_on("net/c/eth0", other), "{other}");
        }
        let long = "n".repeat(100);
        let label = Attachment::new(&long, "c".repeat(100), "eth0").label();
        assert!(!Attachment::is_label_on(&label, &long) && !Attachment::is_label_on(&label, &"n".repeat(27)));
    }

    #[test]
    fn a_label_can_stand_in_quotation_marks() {
        let (a, b) = (Attachment::new("net", "c", "e\"h0"), Attachment::new("net", "c", "e?h0"));
        assert!(!a.label().contains('"') && a.label() != b.label(), "{}", a.label());
        assert!(Attachment::is_label_on(&a.label(), "net") && Attachment::is_label_of(&a.label(), "c"));
    }

    #[test]
    fn a_label_says_its_container_whatever_was_cut() {
        for (network, id) in
            [("net", "c"), ("net", &*"0123456789abcdef".repeat(8)), (&*"n".repeat(100), &*"c".repeat(128))]
        {
            let label = Attachment::new(network, id, "eth0").label();
            assert!(Attachment::is_label_of(&label, id) && !Attachment::is_label_of(&label, "other"), "{label}");
        }
        assert!(!Attachment::is_label_of("net/c", "c") && !Attachment::is_label_of("a/c/b/d", "c"));
    }

    #[test]
    fn labels_are_readable_and_short_enough() {
        assert_eq!(Attachment::new("podman", "abc", "eth0").label(), "podman/abc/eth0");
        let long = Attachment::new("n".repeat(300), "c".repeat(300), "0123456789abcde");
        assert!(long.label().len() <= LABEL_MAX, "{}", long.label());
        assert!(long.label().ends_with("/0123456789abcde"));
        let id = "0123456789abcdef".repeat(4);
        let label = Attachment::new("n".repeat(60), &id, "eth0").label();
        assert!(label.len() <= LABEL_MAX && label.ends_with(&format!("/{id}/eth0")), "{label}");
    }
}
