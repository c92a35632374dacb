//! What ADD will write, and what CHECK finds, as pure functions of configuration and facts.
//!
//! The order of writing:
//!
//! 1. the MTU, because `net.ipv6.conf.IFNAME.mtu` can't be greater and follows it when it changes;
//! 2. the sysctls: those that change every interface's first, then those that change new interfaces', then the others;
//!    within each of these, in the order of the configuration (libcni sorts keys before a plugin sees them);
//! 3. the other link attributes, so that `arp_notify` and `ndisc_notify` announce the new hardware address.
//!
//! Without sysctls, 1 and 3 are one message.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use common::link::attributes::{LinkAttributes, LinkFacts};
use common::link::ipv6::Entry;
use common::sysctl::{Content, Name, same_value};
use common::{Difference, Error, Result};

use crate::allowlist::{self, Allowlist};
use crate::config::{Config, Setting};
use crate::record::Record;

/// What was found in the container's namespace and on the host.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The container's interface; looked up only if an attribute of it is configured.
    pub link: Option<LinkFacts>,
    /// One for each configured sysctl, in that order.
    pub sysctls: Vec<Found>,
    /// The administrator's list; `None` without the file.
    pub allowlist: Option<Allowlist>,
    /// What an ADD has written down; CHECK only.
    pub record: Option<Record>,
    /// The index of each interface whose sysctls are concerned.
    pub indexes: BTreeMap<String, u32>,
    /// What the kernel changes along with the interface's MTU, and what that holds.
    pub along_with_mtu: Vec<(Name, String)>,
    /// The interfaces that lose IPv6 on the way.
    pub loses_ipv6: BTreeSet<String>,
    /// The interfaces to which the kernel may give other addresses of its own making.
    pub readdressed: BTreeSet<String>,
    /// The IPv6 addresses and routes of the former, and the addresses of the latter that are the kernel's own.
    pub ipv6: Vec<Entry>,
    /// The static neighbours that the interface loses with its hardware address, or has lost with it in a call that was killed.
    pub neighbours: Vec<Entry>,
}

/// What a configured sysctl is in the container's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is there and can be written (CHECK: read).
    There {
        /// Its name.
        name: Name,
        /// What it holds.
        content: Content,
        /// What the kernel will write too when it is written, and what that holds.
        followers: Vec<(Name, String)>,
    },
    /// It is not one, but has others below it.
    Directory {
        /// Its name.
        name: Name,
    },
    /// It is there, but the namespace can't change it.
    Locked {
        /// Its name.
        name: Name,
        /// The kernel's word.
        reason: String,
        /// Whether the host can't change it either: it tells, and takes nothing.
        on_host_too: bool,
    },
    /// It will be there when the MTU has been raised.
    Awaited {
        /// Its name.
        name: Name,
    },
    /// It is not there.
    Missing {
        /// Its name on the host, if the host has it.
        on_host: Option<Name>,
    },
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Link attributes, with one message.
    Link {
        /// What they are.
        before: LinkAttributes,
        /// What they shall be.
        after: LinkAttributes,
        /// What the kernel will write too, and what that holds.
        followers: Vec<(Name, String)>,
    },
    /// One sysctl.
    Sysctl {
        /// Which.
        name: Name,
        /// What it holds; `None` if it holds nothing that could be put back.
        before: Option<String>,
        /// What it shall hold.
        after: String,
        /// What the kernel will write too, and what that holds.
        followers: Vec<(Name, String)>,
    },
}

impl Step {
    /// What the kernel will write too, and what that holds.
    pub fn followers(&self) -> &[(Name, String)] {
        match self {
            Step::Link { followers, .. } | Step::Sysctl { followers, .. } => followers,
        }
    }

    /// The sysctls that change, and what they hold.
    pub fn changed(&self) -> impl Iterator<Item = (&Name, Option<&String>)> {
        let own = match self {
            Step::Link { .. } => None,
            Step::Sysctl { name, before, .. } => Some((name, before.as_ref())),
        };
        self.followers().iter().map(|(name, before)| (name, Some(before))).chain(own)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Link { before, after, .. } => write!(f, "link: {after} (was {before})")?,
            Step::Sysctl { name, before, after, .. } => {
                let was = before.as_ref().map_or("can't be put back".to_owned(), |b| format!("was {b}"));
                write!(f, "sysctl {name}: {after} ({was})")?;
            }
        }
        self.followers().iter().try_for_each(|(name, before)| write!(f, "; changes {name} (was {before})"))
    }
}

/// What ADD writes, in order. Whatever can be known to fail fails here, before the first write.
pub fn steps(config: &Config, ifname: &str, facts: &Facts) -> Result<Vec<Step>> {
    if let Some(list) = &facts.allowlist {
        config.sysctls.iter().try_for_each(|s| admit(list, s))?;
    }
    let mut sysctls: Vec<Step> =
        config.sysctls.iter().zip(&facts.sysctls).map(|(s, found)| sysctl_step(s, found)).collect::<Result<_>>()?;
    sysctls.sort_by_key(|step| match step {
        Step::Sysctl { name, .. } => name.rank(),
        Step::Link { .. } => 0,
    });
    let missing = missing_attributes(config, ifname, facts)?;
    keep_ipv6(&missing, &sysctls, ifname)?;
    let before =
        |after: &LinkAttributes| facts.link.as_ref().map(|link| after.values_in(&link.attributes)).unwrap_or_default();
    let link_step = |after: LinkAttributes| {
        let followers = if after.mtu.is_some() { facts.along_with_mtu.clone() } else { Vec::new() };
        Some(after).filter(|a| !a.is_empty()).map(|after| Step::Link { before: before(&after), after, followers })
    };
    let (mtu, others) = if sysctls.is_empty() { (LinkAttributes::default(), missing) } else { missing.split_mtu() };
    Ok(link_step(mtu).into_iter().chain(sysctls).chain(link_step(others)).collect())
}

/// Fails if the administrator's list does not allow the setting.
pub fn admit(list: &Allowlist, setting: &Setting) -> Result<()> {
    if list.admits(setting.key.written()) {
        return Ok(());
    }
    Err(unsupported(
        setting,
        format!(
            "Sysctl {} is not allowed. Only the following sysctls are allowed: [{}]; the list is {}",
            setting.key,
            list.texts().join(" "),
            allowlist::PATH
        ),
    ))
}

fn sysctl_step(setting: &Setting, found: &Found) -> Result<Step> {
    match found {
        Found::There { name, content, followers } => Ok(Step::Sysctl {
            name: name.clone(),
            before: content.value().map(str::to_owned),
            after: setting.value.clone(),
            followers: followers.clone(),
        }),
        Found::Awaited { name } => {
            Ok(Step::Sysctl { name: name.clone(), before: None, after: setting.value.clone(), followers: Vec::new() })
        }
        Found::Directory { name } => {
            Err(unsupported(setting, format!("{name} is a directory of sysctls; one of those in it can be set")))
        }
        Found::Locked { name, reason, on_host_too: true } => Err(unsupported(
            setting,
            format!("{name} can only be read ({reason}): the kernel tells by it what there is"),
        )),
        Found::Locked { name, reason, on_host_too: false } => Err(unsupported(
            setting,
            format!(
                "{name} can't be written from the container's network namespace ({reason}): it belongs to the whole \
                 host, or /proc/sys is mounted read-only here"
            ),
        )),
        Found::Missing { on_host: Some(name) } => Err(unsupported(
            setting,
            format!("{name} is not namespaced: it exists once for the whole host, and no container has its own"),
        )),
        Found::Missing { on_host: None } => Err(unsupported(
            setting,
            "there is no such sysctl in the container's network namespace: the key is misspelt, its interface is not \
             there, or the kernel lacks the feature or hasn't loaded its module",
        )),
    }
}

fn unsupported(setting: &Setting, reason: impl Into<String>) -> Error {
    let value = format!("\"{}\"", setting.value);
    Error::UnsupportedField { key: format!("sysctl {}", setting.key), value, reason: reason.into() }
}

/// The attributes that the link doesn't have yet.
fn missing_attributes(config: &Config, ifname: &str, facts: &Facts) -> Result<LinkAttributes> {
    if config.link.is_empty() {
        return Ok(LinkAttributes::default());
    }
    let Some(link) = &facts.link else {
        return Err(Error::Link { link: ifname.to_owned(), reason: ABSENT.into() });
    };
    let refuse = |key: &str, value: String, reason: String| {
        Err(Error::UnsupportedField { key: key.to_owned(), value, reason: format!("{ifname} {reason}") })
    };
    if let Some(mac) = &config.link.mac {
        let own = link.attributes.mac.as_ref().map_or(0, Vec::len);
        if own != mac.len() {
            let text = common::link::attributes::mac_text(mac);
            return refuse("mac", text, format!("has a hardware address of {own} bytes, not {}", mac.len()));
        }
    }
    if let Some(mtu) = config.link.mtu {
        let (min, max) = (link.min_mtu.unwrap_or(0), link.max_mtu.unwrap_or(u32::MAX));
        if !(min..=max).contains(&mtu) {
            return refuse("mtu", mtu.to_string(), format!("takes {min} to {max} bytes"));
        }
        if mtu < IPV4_MIN_MTU && link.attributes.mtu.is_none_or(|now| now >= IPV4_MIN_MTU) {
            let reason = format!("{ifname} has IPv4, and would lose it with its addresses below {IPV4_MIN_MTU} bytes");
            return Err(Error::invalid("mtu", mtu, reason));
        }
    }
    Ok(config.link.missing_in(&link.attributes))
}

/// Bytes that a link must carry for IPv4: with less the kernel takes it away, addresses, routes and settings
/// (`inetdev_event` in net/ipv4/devinet.c; `IPV4_MIN_MTU`, include/net/ip.h).
const IPV4_MIN_MTU: u32 = 68;

/// Bytes that a link must carry for IPv6 (RFC 8200, section 5).
pub const IPV6_MIN_MTU: u32 = 1280;

/// The interfaces that lose IPv6, with their addresses and routes, when this is written: whose MTU falls below 1280, and on
/// which it is switched off, if only for a moment.
pub fn losing_ipv6(config: &Config, ifname: &str, link: Option<&LinkFacts>, sysctls: &[Found]) -> BTreeSet<String> {
    let below = |mtu: Option<u32>| mtu.is_some_and(|mtu| mtu < IPV6_MIN_MTU);
    let by_mtu = below(config.link.mtu) && !below(link.and_then(|l| l.attributes.mtu));
    let mut losing: BTreeSet<String> = by_mtu.then(|| ifname.to_owned()).into_iter().collect();
    for (setting, found) in config.sysctls.iter().zip(sysctls) {
        let Found::There { name, content, followers } = found else { continue };
        if !name.as_str().ends_with("/disable_ipv6") || same_value(&setting.value, "0") {
            continue;
        }
        let own = content.value().map(|value| (name, value));
        let switches = followers.iter().filter(|(name, _)| name.as_str().ends_with("/disable_ipv6"));
        let on = own.into_iter().chain(switches.map(|(n, v)| (n, v.as_str()))).filter(|(_, v)| *v == "0");
        losing.extend(on.filter_map(|(name, _)| name.interface().map(str::to_owned)));
    }
    losing
}

/// The links that these steps give IPv6, which they had not.
pub fn regaining_ipv6(steps: &[Step], facts: &Facts) -> BTreeSet<u32> {
    let by_mtu = steps.iter().filter_map(|step| match step {
        Step::Link { before, after, .. } => {
            let raised = before.mtu? < IPV6_MIN_MTU && after.mtu? >= IPV6_MIN_MTU;
            facts.link.as_ref().filter(|_| raised).map(|link| link.index)
        }
        Step::Sysctl { .. } => None,
    });
    let switched = switched_on(steps).filter(|(_, before)| before.is_some_and(|value| !same_value(value, "0")));
    by_mtu.chain(switched.filter_map(|(name, _)| facts.indexes.get(name.interface()?).copied())).collect()
}

/// The links that have IPv6 before and behind these steps, and lose it on the way.
pub fn interrupting_ipv6(steps: &[Step], facts: &Facts) -> BTreeSet<u32> {
    let interfaces = switched_on(steps).filter_map(|(name, _)| name.interface());
    interfaces
        .filter(|name| facts.loses_ipv6.contains(*name))
        .filter_map(|name| facts.indexes.get(name))
        .copied()
        .collect()
}

/// The switches of IPv6 that are set to on, and what they hold.
fn switched_on(steps: &[Step]) -> impl Iterator<Item = (&Name, Option<&String>)> {
    let on = |step: &&Step| match step {
        Step::Sysctl { name, after, .. } => name.as_str().ends_with("/disable_ipv6") && same_value(after, "0"),
        Step::Link { .. } => false,
    };
    steps.iter().filter(on).flat_map(Step::changed).filter(|(name, _)| name.as_str().ends_with("/disable_ipv6"))
}

/// Whether it is a sysctl with which the kernel gives its interface addresses of another making, beside those that it has
/// (`addrconf_sysctl_addr_gen_mode`, `addrconf_sysctl_stable_secret`, net/ipv6/addrconf.c).
pub fn is_about_addresses(name: &str) -> bool {
    name.starts_with("net/ipv6/conf/") && ["/addr_gen_mode", "/stable_secret"].iter().any(|leaf| name.ends_with(leaf))
}

/// Whether this is an interface's `addr_gen_mode` with which the kernel makes no addresses for it (`IN6_ADDR_GEN_MODE_NONE`,
/// linux/if_link.h): none that it has made are to be there, then, but those that are known.
pub fn makes_no_addresses(name: &str, value: &str) -> bool {
    name.starts_with("net/ipv6/conf/") && name.ends_with("/addr_gen_mode") && value == "1"
}

/// Whether the kernel changes an interface's sysctl of this name along with such an MTU: that of IPv6 follows, and below 1280 bytes
/// all that IPv6 has there go (`addrconf_notify`, net/ipv6/addrconf.c).
pub fn changes_with_mtu(name: &str, mtu: u32) -> bool {
    match name.split('/').collect::<Vec<_>>().as_slice() {
        ["net", "ipv6", "conf", _, "mtu"] => true,
        ["net", "ipv6", "conf" | "neigh", _, _] => mtu < IPV6_MIN_MTU,
        _ => false,
    }
}

/// The interfaces whose way of making addresses changes.
pub fn readdressed(sysctls: &[Found]) -> BTreeSet<String> {
    let mut readdressed = BTreeSet::new();
    for found in sysctls {
        let (name, followers) = match found {
            Found::There { name, followers, .. } => (name, followers.as_slice()),
            Found::Awaited { name } => (name, [].as_slice()),
            Found::Directory { .. } | Found::Locked { .. } | Found::Missing { .. } => continue,
        };
        let changed = std::iter::once(name).chain(followers.iter().map(|(name, _)| name));
        let concerned = changed.filter(|name| is_about_addresses(name.as_str()));
        readdressed.extend(concerned.filter_map(Name::interface).map(str::to_owned));
    }
    readdressed
}

/// Whether the interface gets IPv6, and with it sysctls, from the MTU that is asked for.
pub fn gains_ipv6(config: &Config, link: Option<&LinkFacts>) -> bool {
    let now = link.and_then(|l| l.attributes.mtu);
    config.link.mtu.is_some_and(|mtu| mtu >= IPV6_MIN_MTU) && now.is_some_and(|mtu| mtu < IPV6_MIN_MTU)
}

/// Below 1280 bytes the kernel takes IPv6 from a link, with its addresses and its sysctls (`addrconf_notify` in
/// net/ipv6/addrconf.c), so those can't be set as well.
fn keep_ipv6(missing: &LinkAttributes, sysctls: &[Step], ifname: &str) -> Result<()> {
    let Some(mtu) = missing.mtu.filter(|mtu| *mtu < IPV6_MIN_MTU) else { return Ok(()) };
    let own =
        |name: &Name| ["conf", "neigh"].iter().any(|d| name.as_str().starts_with(&format!("net/ipv6/{d}/{ifname}/")));
    let lost = sysctls.iter().find_map(|step| match step {
        Step::Sysctl { name, .. } if own(name) => Some(name),
        _ => None,
    });
    let Some(name) = lost else { return Ok(()) };
    let reason = format!("with less than {IPV6_MIN_MTU} bytes {ifname} has no IPv6, and {name} would not exist");
    Err(Error::UnsupportedField { key: "mtu".into(), value: mtu.to_string(), reason })
}

const ABSENT: &str = "there is no such interface in the container's network namespace";

/// Where the container's namespace holds something else than the configuration says.
pub fn differences(config: &Config, ifname: &str, facts: &Facts) -> Vec<Difference> {
    let sysctls = config.sysctls.iter().zip(&facts.sysctls);
    let mut all: Vec<Difference> = sysctls.filter_map(|(s, found)| sysctl_difference(s, found, facts)).collect();
    if !config.link.is_empty() {
        let object = format!("link {ifname}");
        match &facts.link {
            None => all.push(Difference::missing(object, config.link.to_string())),
            Some(link) => {
                let wrong = config.link.missing_in(&link.attributes);
                let found = wrong.values_in(&link.attributes).to_string();
                all.extend((!wrong.is_empty()).then(|| Difference::other(object, wrong.to_string(), found)));
            }
        }
    }
    all
}

fn sysctl_difference(setting: &Setting, found: &Found, facts: &Facts) -> Option<Difference> {
    let expected = format!("\"{}\"", setting.value);
    let other = |name: &Name, is: String| Some(Difference::other(format!("sysctl {name}"), expected.clone(), is));
    match found {
        Found::There { name, content: Content::Value(value), .. } => {
            let same = same_value(&setting.value, value);
            let as_kept = || facts.record.as_ref().is_some_and(|r| r.kept_as(name, &setting.value, value));
            if same || as_kept() { None } else { other(name, format!("\"{value}\"")) }
        }
        Found::There { name, content: Content::Unset, .. } => other(name, "no value".into()),
        Found::There { name, content: Content::Directory, .. } | Found::Directory { name } => {
            other(name, "a directory".into())
        }
        // It did what it does when it was written; there is nothing to compare.
        Found::There { content: Content::WriteOnly, .. } => None,
        Found::Locked { name, reason, .. } => other(name, reason.clone()),
        Found::Missing { .. } | Found::Awaited { .. } => {
            Some(Difference::missing(format!("sysctl {}", setting.key), expected))
        }
    }
}
