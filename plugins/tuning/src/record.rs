//! What was there before ADD, as it stands in a state file.
//!
//! The file is the reference's, `<dataDir>/<containerID>_<ifname>.json`, with its keys `mac`, `promisc`, `mtu`,
//! `allmulti` and `txQLen`, so either plugin restores what the other saved; ours adds keys that the reference ignores:
//! whose file it is, which interface was meant, and the sysctls.
//!
//! What was saved first stays: a repeated ADD and a second tuning in the same chain find values that are ours already.
//! Whichever of them is deleted first puts back the original, and the others find nothing left to do.

use common::cni::Json;
use common::link::attributes::{LinkAttributes, mac_text};
use common::sysctl::{Name, same_value};
use common::{Attachment, store};
use serde::{Deserialize, Serialize};

use crate::config::parse_mac;
use crate::plan::Step;

/// The content of a state file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Record {
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    tx_queue_len: Option<u32>,
    /// Whose it is; the reference does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<Owner>,
    /// Where the values were found; the reference does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<Place>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sysctls: Vec<Saved>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct Owner {
    network: String,
    container: String,
    ifname: String,
}

/// The namespace and the interface in which values were found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Place {
    /// Device and inode of the namespace's file in nsfs, as `4:4026532001`.
    pub netns: String,
    /// The interface's index; absent while no attribute of it has been changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ifindex: Option<u32>,
}

/// One sysctl.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct Saved {
    name: String,
    /// What it held; absent if it held nothing that could be put back.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    /// What was written last; absent if the kernel wrote it along with another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<String>,
    /// What the kernel made of it, where that is another value (it rounds times, joins ranges, …).
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
}

/// The values to put back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Original {
    /// Of the link.
    pub link: LinkAttributes,
    /// Of the sysctls, in the order in which they were changed.
    pub sysctls: Vec<(Name, String)>,
}

impl Original {
    /// What these steps would change.
    pub fn of(steps: &[Step]) -> Original {
        let mut original = Original::default();
        for step in steps {
            match step {
                Step::Link { before, .. } => original.link = original.link.or(before.clone()),
                Step::Sysctl { name, before, followers, .. } => {
                    let own = before.as_ref().map(|b| (name, b));
                    for (name, before) in own.into_iter().chain(followers.iter().map(|(n, b)| (n, b))) {
                        if original.sysctls.iter().all(|(known, _)| known != name) {
                            original.sysctls.push((name.clone(), before.clone()));
                        }
                    }
                }
            }
        }
        original
    }
}

impl Record {
    /// The record of the first ADD of an attachment.
    pub fn new(owner: &Attachment, place: Place) -> Record {
        let Attachment { network, container, ifname } = owner.clone();
        Record { owner: Some(Owner { network, container, ifname }), place: Some(place), ..Record::default() }
    }

    /// Reads a file; keys match in any case and unknown ones are ignored, as the reference would.
    pub fn parse(bytes: &[u8]) -> Result<Record, String> {
        let json: Json = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        json.read(&mut Vec::new()).map_err(|e| e.to_string())
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
        // Strings, numbers and booleans into memory: nothing of this can fail.
        let _ = self.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter));
        out
    }

    /// Whether it is `attachment`'s; a file of the reference has no owner and is taken at its name.
    pub fn belongs_to(&self, attachment: &Attachment) -> bool {
        self.owner().is_none_or(|owner| owner == *attachment)
    }

    /// Whose it is, if it says so.
    pub fn owner(&self) -> Option<Attachment> {
        self.owner.as_ref().map(|o| Attachment::new(o.network.clone(), o.container.clone(), o.ifname.clone()))
    }

    /// Whether the values were found in this namespace; the reference does not say.
    pub fn is_of_netns(&self, netns: &str) -> bool {
        self.place.as_ref().is_none_or(|place| place.netns == netns)
    }

    /// The index of the interface whose attributes were changed, if it is known.
    pub fn ifindex(&self) -> Option<u32> {
        self.place.as_ref().and_then(|place| place.ifindex)
    }

    /// Adds what `steps` will change; what was saved before stays.
    pub fn remember(&mut self, steps: &[Step], ifindex: Option<u32>) {
        let original = Original::of(steps);
        let link = self.original().link.or(original.link);
        self.mac = link.mac.as_deref().map(mac_text);
        self.promisc = link.promisc;
        self.mtu = link.mtu;
        self.allmulti = link.allmulti;
        self.tx_queue_len = link.tx_queue_len;
        if let Some(place) = &mut self.place {
            place.ifindex = place.ifindex.or(ifindex);
        }
        for step in steps {
            let Step::Sysctl { name, before, after, followers } = step else { continue };
            self.save(name, before.as_ref(), Some(after));
            followers.iter().for_each(|(name, before)| self.save(name, Some(before), None));
        }
    }

    /// What a sysctl held first, and what was written last.
    fn save(&mut self, name: &Name, before: Option<&String>, written: Option<&String>) {
        match self.sysctls.iter_mut().find(|s| s.name == name.as_str()) {
            Some(saved) => saved.written = written.cloned().or(saved.written.take()),
            None => self.sysctls.push(Saved {
                name: name.as_str().to_owned(),
                before: before.cloned(),
                written: written.cloned(),
                kept: None,
            }),
        }
    }

    /// Notes what the kernel made of what was written; says whether that is another value.
    pub fn note_kept(&mut self, name: &Name, kernels: &str) -> bool {
        let Some(saved) = self.sysctls.iter_mut().find(|s| s.name == name.as_str()) else { return false };
        let written = saved.written.as_deref().unwrap_or_default();
        let new = (!same_value(written, kernels)).then(|| kernels.to_owned());
        let changed = saved.kept != new;
        saved.kept = new;
        changed
    }

    /// Whether `value` is what the kernel made of `written`.
    pub fn kept_as(&self, name: &Name, written: &str, value: &str) -> bool {
        let saved = self.sysctls.iter().find(|s| s.name == name.as_str());
        saved.is_some_and(|s| s.written.as_deref() == Some(written) && s.kept.as_deref() == Some(value))
    }

    /// What there is to put back; values that can't be ones are left out.
    pub fn original(&self) -> Original {
        let sysctl = |s: &Saved| Name::new(&s.name).zip(s.before.clone());
        Original {
            link: LinkAttributes {
                mac: self.mac.as_deref().and_then(|text| parse_mac(text).ok()),
                mtu: self.mtu.filter(|mtu| *mtu != 0),
                promisc: self.promisc,
                allmulti: self.allmulti,
                tx_queue_len: self.tx_queue_len,
            },
            sysctls: self.sysctls.iter().filter_map(sysctl).collect(),
        }
    }
}

/// The names under which an attachment's file may stand: the reference's, and one of its own in case another attachment
/// has the first (two networks with one interface name, or `a_b` + `c` and `a` + `b_c`) or it would be too long.
pub fn file_names(attachment: &Attachment) -> Vec<String> {
    let shared = format!("{}_{}.json", attachment.container, attachment.ifname);
    let own = format!("{}.json", attachment.key());
    [shared, own].into_iter().filter(|name| name.len() <= store::NAME_MAX && !name.starts_with('.')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn sysctl(key: &str, before: &str, after: &str) -> Step {
        Step::Sysctl { name: name(key), before: Some(before.into()), after: after.into(), followers: Vec::new() }
    }

    fn mtu(before: u32, after: u32) -> Step {
        let mtu = |mtu| LinkAttributes { mtu: Some(mtu), ..LinkAttributes::default() };
        Step::Link { before: mtu(before), after: mtu(after) }
    }

    fn record() -> Record {
        let place = Place { netns: "4:1".into(), ifindex: None };
        Record::new(&Attachment::new("net", "c1", "eth0"), place)
    }

    #[test]
    fn a_file_of_the_reference_is_read() {
        let theirs = r#"{"mac":"02:00:00:00:00:01","promisc":true,"mtu":1500,"allmulti":false,"txQLen":0}"#;
        let record = Record::parse(theirs.as_bytes()).unwrap();
        let link = LinkAttributes {
            mac: Some(vec![2, 0, 0, 0, 0, 1]),
            mtu: Some(1500),
            promisc: Some(true),
            allmulti: Some(false),
            tx_queue_len: Some(0),
        };
        assert_eq!(record.original(), Original { link, sysctls: Vec::new() });
        assert!(record.belongs_to(&Attachment::new("any", "c", "e")) && record.is_of_netns("4:1"));
    }

    #[test]
    fn a_file_of_ours_comes_back() {
        let mut record = record();
        record.remember(&[mtu(1500, 1400), sysctl("net/core/somaxconn", "4096", "1")], Some(3));
        assert!(record.note_kept(&name("net/core/somaxconn"), "01x"));
        assert_eq!(Record::parse(&record.to_bytes()), Ok(record.clone()));
        assert!(!record.belongs_to(&Attachment::new("other", "c1", "eth0")));
        assert!(!record.is_of_netns("4:2"));
        assert_eq!(record.ifindex(), Some(3));
    }

    #[test]
    fn what_was_saved_first_stays() {
        let mut record = record();
        record.remember(&[mtu(1500, 1400), sysctl("net/core/somaxconn", "4096", "1")], Some(3));
        let first = record.original();
        record.remember(&[mtu(1400, 1300), sysctl("net/core/somaxconn", "1", "2")], Some(3));
        assert_eq!(record.original(), first);
    }

    #[test]
    fn a_sysctl_that_is_written_and_follows_another_is_put_back_once() {
        let followers = vec![(name("net/ipv4/conf/eth0/forwarding"), "1".to_owned())];
        let all = Step::Sysctl {
            name: name("net/ipv4/conf/all/forwarding"),
            before: Some("0".into()),
            after: "1".into(),
            followers,
        };
        let steps = [all, sysctl("net/ipv4/conf/eth0/forwarding", "1", "0")];
        let mut record = record();
        record.remember(&steps, None);
        assert_eq!(record.original(), Original::of(&steps));
        assert_eq!(record.original().sysctls.len(), 2);
    }

    #[test]
    fn what_the_kernel_made_of_a_value_is_known_for_that_value_only() {
        let mut record = record();
        let ports = name("net/ipv4/ip_local_reserved_ports");
        record.remember(&[sysctl(ports.as_str(), "", "8080,8081")], None);
        assert!(record.note_kept(&ports, "8080-8081"));
        assert!(record.kept_as(&ports, "8080,8081", "8080-8081"));
        assert!(!record.kept_as(&ports, "8080,8082", "8080-8081"));
        assert!(!record.kept_as(&ports, "8080,8081", "8080"));
        record.remember(&[sysctl(ports.as_str(), "8080-8081", "9000")], None);
        assert!(record.note_kept(&ports, "9000"), "what was kept of the old value is forgotten");
        assert!(!record.kept_as(&ports, "9000", "8080-8081"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Record::parse(&bytes).map(|record| record.original());
        }
    }
}
