//! The configuration: what may be written, and what it means.
//!
//! `ingress` is towards the container, `egress` from it, as everywhere in CNI. Rates are bits per second, bursts bits.

use std::time::Duration;

use common::cni::decode::cidr;
#[cfg(feature = "schema")]
use common::cni::shape;
use common::cni::{Error, Result};
use common::tc::Hook;
use ipnet::IpNet;
use serde::Deserialize;

/// The keys of the plugin as they may stand in a configuration.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Written {
    /// Bits per second towards the container; the least is 8, and 0 is none.
    #[cfg_attr(feature = "schema", schemars(extend("anyOf" = [{"maximum": 0}, {"minimum": RATE_MIN}])))]
    pub ingress_rate: Option<u64>,
    /// Bits.
    #[cfg_attr(feature = "schema", schemars(range(max = BURST_MAX)))]
    pub ingress_burst: Option<u64>,
    /// Bits per second from the container; the least is 8, and 0 is none.
    #[cfg_attr(feature = "schema", schemars(extend("anyOf" = [{"maximum": 0}, {"minimum": RATE_MIN}])))]
    pub egress_rate: Option<u64>,
    /// Bits.
    #[cfg_attr(feature = "schema", schemars(range(max = BURST_MAX)))]
    pub egress_burst: Option<u64>,
    /// Remote subnets whose traffic alone is limited.
    #[cfg_attr(feature = "schema", schemars(length(max = SUBNETS_MAX), inner(regex(pattern = shape::cidr()))))]
    pub shaped_subnets: Option<Vec<String>>,
    /// Remote subnets whose traffic is not limited.
    #[cfg_attr(feature = "schema", schemars(length(max = SUBNETS_MAX), inner(regex(pattern = shape::cidr()))))]
    pub unshaped_subnets: Option<Vec<String>>,
    /// What is made of the bursts: `auto`, `given` or `chosen`.
    #[cfg_attr(feature = "schema", schemars(extend("enum" = ["", "auto", "given", "chosen", null])))]
    pub burst: Option<String>,
    /// Milliseconds that a packet may wait.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = LATENCY_MAX)))]
    pub latency: Option<u64>,
    /// Whether the container's own interface carries the limits.
    pub in_container: Option<bool>,
    /// What the runtime adds.
    pub runtime_config: RuntimeConfig,
}

/// The runtime's part of the configuration.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("additionalProperties" = true)))]
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RuntimeConfig {
    /// Of the capability `bandwidth`.
    pub bandwidth: Option<RuntimeBandwidth>,
}

/// CONVENTIONS.md, "Dynamic Plugin specific fields": `bandwidth`.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RuntimeBandwidth {
    /// Bits per second towards the container; the least is 8, and 0 is none.
    #[cfg_attr(feature = "schema", schemars(extend("anyOf" = [{"maximum": 0}, {"minimum": RATE_MIN}])))]
    pub ingress_rate: u64,
    /// Bits.
    #[cfg_attr(feature = "schema", schemars(range(max = BURST_MAX)))]
    pub ingress_burst: u64,
    /// Bits per second from the container; the least is 8, and 0 is none.
    #[cfg_attr(feature = "schema", schemars(extend("anyOf" = [{"maximum": 0}, {"minimum": RATE_MIN}])))]
    pub egress_rate: u64,
    /// Bits.
    #[cfg_attr(feature = "schema", schemars(range(max = BURST_MAX)))]
    pub egress_burst: u64,
    /// As at top level (the reference's releases 1.5 had them here, too).
    #[cfg_attr(feature = "schema", schemars(length(max = SUBNETS_MAX), inner(regex(pattern = shape::cidr()))))]
    pub shaped_subnets: Option<Vec<String>>,
    /// As at top level.
    #[cfg_attr(feature = "schema", schemars(length(max = SUBNETS_MAX), inner(regex(pattern = shape::cidr()))))]
    pub unshaped_subnets: Option<Vec<String>>,
}

/// What a configuration means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Towards the container.
    pub ingress: Option<Limit>,
    /// From the container.
    pub egress: Option<Limit>,
    /// Which traffic the limits are about.
    pub scope: Scope,
    /// Longest wait of a packet for tokens.
    pub latency: Duration,
    /// Whether the container's own interface carries the limits, instead of its peer on the host.
    pub in_container: bool,
}

/// A limit for one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes per second, at least 1.
    pub rate: u64,
    /// How much may pass at once.
    pub burst: Burst,
    /// The key that `burst` came from, and the value in bits that was written there, for a message.
    pub written: (String, u64),
}

/// How much may pass at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Burst {
    /// As many bytes as someone has asked for.
    Bytes(u32),
    /// Nobody has an opinion: it is chosen from the rate and the link.
    Chosen,
}

/// Which traffic the limits are about, by the address of the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// All but that with these subnets.
    Except(Vec<IpNet>),
    /// That with these subnets only.
    Only(Vec<IpNet>),
}

/// What runtimes fill in where nobody has set a burst, in bits: old kubelets (2³¹−1), containerd (2³²−1) and CRI-O
/// (2³⁵−9, the most that the reference takes).
pub const SENTINELS: [u64; 3] = [(1 << 31) - 1, (1 << 32) - 1, (1 << 35) - 9];

/// The reference's fixed latency.
const LATENCY: Duration = Duration::from_millis(25);

/// Longest latency in milliseconds; more is a queue that nobody waits for.
const LATENCY_MAX: u64 = 10_000;

/// Least rate in bits per second: one byte.
const RATE_MIN: u64 = 8;

/// Greatest burst in bits, as in the reference, which counts bytes with 32 bits.
const BURST_MAX: u64 = 8 * (u32::MAX as u64) - 1;

/// Most subnets in a list: each is a filter, and every packet is compared with one after the other.
const SUBNETS_MAX: usize = 256;

/// The values of the key `burst`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BurstPolicy {
    /// A burst that someone has set is honoured, a runtime's filler is not.
    Auto,
    /// Every burst is taken literally, as the reference does.
    Given,
    /// No burst is taken, each is chosen.
    Chosen,
}

impl Written {
    /// What is meant; an error names the key.
    pub fn validate(self) -> Result<Config> {
        let policy = burst_policy(self.burst.as_deref())?;
        let (prefix, runtime, values) = self.sources();
        let scope = match &runtime {
            Some(r) if r.shaped_subnets.is_some() || r.unshaped_subnets.is_some() => {
                scope("runtimeConfig.bandwidth.", r.shaped_subnets.as_deref(), r.unshaped_subnets.as_deref())?
            }
            _ => scope("", self.shaped_subnets.as_deref(), self.unshaped_subnets.as_deref())?,
        };
        let [ingress, egress] = values;
        Ok(Config {
            ingress: limit(&format!("{prefix}ingress"), ingress, policy)?,
            egress: limit(&format!("{prefix}egress"), egress, policy)?,
            scope,
            latency: latency(self.latency)?,
            in_container: self.in_container.unwrap_or(false),
        })
    }

    /// Where rates and bursts come from: any of the four at top level, even 0, hides the runtime's altogether
    /// (the reference's `getBandwidth`).
    fn sources(&self) -> (&'static str, Option<&RuntimeBandwidth>, [(u64, u64); 2]) {
        let top = [self.ingress_rate, self.ingress_burst, self.egress_rate, self.egress_burst];
        let runtime = self.runtime_config.bandwidth.as_ref();
        match runtime.filter(|_| top.iter().all(Option::is_none)) {
            Some(r) => {
                let values = [(r.ingress_rate, r.ingress_burst), (r.egress_rate, r.egress_burst)];
                ("runtimeConfig.bandwidth.", runtime, values)
            }
            None => {
                let [ir, ib, er, eb] = top.map(Option::unwrap_or_default);
                ("", runtime, [(ir, ib), (er, eb)])
            }
        }
    }
}

impl Config {
    /// Whether nothing is limited.
    pub fn is_idle(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }

    /// The limit of what a link transmits, or receives: on the host it transmits ingress, in the container egress.
    pub fn limit_at(&self, hook: Hook) -> Option<&Limit> {
        match (hook, self.in_container) {
            (Hook::Transmit, false) | (Hook::Receive, true) => self.ingress.as_ref(),
            (Hook::Transmit, true) | (Hook::Receive, false) => self.egress.as_ref(),
        }
    }

    /// Whether what a link transmits, or receives, is led through an ifb.
    pub fn needs_ifb(&self, hook: Hook) -> bool {
        self.limit_at(hook).is_some() && (hook == Hook::Receive || self.scope != Scope::All)
    }
}

fn burst_policy(written: Option<&str>) -> Result<BurstPolicy> {
    match written {
        None | Some("" | "auto") => Ok(BurstPolicy::Auto),
        Some("given") => Ok(BurstPolicy::Given),
        Some("chosen") => Ok(BurstPolicy::Chosen),
        Some(other) => Err(Error::invalid(
            "burst",
            format!("\"{other}\""),
            "it must be \"auto\" (bursts are honoured but for the runtimes' fillers), \"given\" (every burst is taken \
             literally) or \"chosen\" (no burst is taken)",
        )),
    }
}

fn latency(written: Option<u64>) -> Result<Duration> {
    match written {
        None => Ok(LATENCY),
        Some(ms) if (1..=LATENCY_MAX).contains(&ms) => Ok(Duration::from_millis(ms)),
        Some(ms) => Err(Error::invalid("latency", ms, format!("it must be 1 to {LATENCY_MAX} milliseconds"))),
    }
}

fn limit(key: &str, (rate, burst): (u64, u64), policy: BurstPolicy) -> Result<Option<Limit>> {
    let burst_key = format!("{key}Burst");
    let refuse = |key: &str, value: u64, reason: &str| Err(Error::invalid(key, value, reason));
    if burst == 0 && rate != 0 && policy != BurstPolicy::Chosen {
        return refuse(
            &burst_key,
            burst,
            "if rate is set, burst must also be set; with \"burst\": \"chosen\" it need not be",
        );
    }
    if rate == 0 && burst != 0 {
        return refuse(&format!("{key}Rate"), rate, "if burst is set, rate must also be set");
    }
    let bytes = match u32::try_from(burst / 8) {
        Ok(bytes) if burst <= BURST_MAX => bytes,
        _ => return refuse(&burst_key, burst, "burst cannot be more than 4GB (34359738359 bits)"),
    };
    if rate == 0 {
        return Ok(None);
    }
    if rate < RATE_MIN {
        return refuse(&format!("{key}Rate"), rate, "the least rate is 8 bits a second, which is one byte");
    }
    let honoured = match policy {
        BurstPolicy::Auto => !SENTINELS.contains(&burst),
        BurstPolicy::Given => true,
        BurstPolicy::Chosen => false,
    };
    let written = (burst_key, burst);
    let burst = if honoured { Burst::Bytes(bytes) } else { Burst::Chosen };
    Ok(Some(Limit { rate: rate / 8, burst, written }))
}

fn scope(prefix: &str, shaped: Option<&[String]>, unshaped: Option<&[String]>) -> Result<Scope> {
    match (shaped.unwrap_or_default(), unshaped.unwrap_or_default()) {
        ([], []) => Ok(Scope::All),
        (only, []) => subnets(&format!("{prefix}shapedSubnets"), only).map(Scope::Only),
        ([], except) => subnets(&format!("{prefix}unshapedSubnets"), except).map(Scope::Except),
        (_, except) => Err(Error::invalid(
            format!("{prefix}unshapedSubnets"),
            format!("{except:?}"),
            "unshapedSubnets and shapedSubnets cannot be both specified, one of them should be discarded",
        )),
    }
}

fn subnets(key: &str, written: &[String]) -> Result<Vec<IpNet>> {
    if written.len() > SUBNETS_MAX {
        let reason = format!("{SUBNETS_MAX} is the most: every packet is compared with one after the other");
        return Err(Error::invalid(key, format!("{} subnets", written.len()), reason));
    }
    let parse = |text: &String| {
        cidr(text).map(|net| net.trunc()).ok_or_else(|| {
            let reason =
                format!("bad subnet \"{text}\" provided, details CIDR notation is due, as 10.0.0.0/8 or fd00::/8");
            Error::invalid(key, format!("\"{text}\""), reason)
        })
    };
    let mut nets = written.iter().map(parse).collect::<Result<Vec<IpNet>>>()?;
    nets.sort_unstable();
    nets.dedup();
    Ok(nets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::cni::Json;

    fn read(text: &str) -> Result<Config> {
        let json: Json = serde_json::from_str(text).unwrap();
        json.read::<Written>(&mut Vec::new()).unwrap().validate()
    }

    fn rates(text: &str) -> (Option<u64>, Option<u64>) {
        let config = read(text).unwrap();
        (config.ingress.map(|l| l.rate), config.egress.map(|l| l.rate))
    }

    fn burst(bits: u64, more: &str) -> Burst {
        let config = read(&format!(r#"{{"egressRate":8000000,"egressBurst":{bits}{more}}}"#)).unwrap();
        config.egress.unwrap().burst
    }

    #[test]
    fn keys_come_from_the_top_level_or_from_the_runtime() {
        assert_eq!(rates(r#"{"ingressRate":8000,"ingressBurst":80000}"#), (Some(1000), None));
        let runtime = r#""runtimeConfig":{"bandwidth":{"EgressRate":16000,"EgressBurst":4294967295,"IngressRate":0}}"#;
        assert_eq!(rates(&format!("{{{runtime}}}")), (None, Some(2000)));
        assert_eq!(rates(&format!(r#"{{"ingressRate":0,{runtime}}}"#)), (None, None), "even 0 hides the runtime's");
        assert!(read("{}").unwrap().is_idle());
    }

    #[test]
    fn fillers_of_runtimes_are_no_opinion_and_real_bursts_are_honoured() {
        for sentinel in SENTINELS {
            assert_eq!(burst(sentinel, ""), Burst::Chosen);
            assert_eq!(burst(sentinel, r#","burst":"given""#), Burst::Bytes((sentinel / 8) as u32));
            assert_eq!(burst(sentinel - 1, ""), Burst::Bytes((sentinel / 8) as u32));
        }
        assert_eq!(burst(400_000, ""), Burst::Bytes(50_000));
        assert_eq!(burst(400_000, r#","burst":"chosen""#), Burst::Chosen);
        assert_eq!(burst(0, r#","burst":"chosen""#), Burst::Chosen);
    }

    #[test]
    fn what_the_reference_refuses_is_refused_in_its_words() {
        let cases = [
            (r#"{"ingressRate":1}"#, "ingressBurst", "if rate is set, burst must also be set"),
            (r#"{"egressBurst":1}"#, "egressRate", "if burst is set, rate must also be set"),
            (r#"{"egressRate":8,"egressBurst":34359738360}"#, "egressBurst", "burst cannot be more than 4GB"),
            (
                r#"{"runtimeConfig":{"bandwidth":{"ingressRate":8}}}"#,
                "runtimeConfig.bandwidth.ingressBurst",
                "if rate is set",
            ),
            (
                r#"{"shapedSubnets":["10.0.0.0/8"],"unshapedSubnets":["10.0.0.0/8"]}"#,
                "unshapedSubnets",
                "unshapedSubnets and shapedSubnets cannot be both specified, one of them should be discarded",
            ),
            (r#"{"shapedSubnets":["10.0.0.0"]}"#, "shapedSubnets", "bad subnet \"10.0.0.0\" provided, details "),
        ];
        for (text, key, words) in cases {
            let error = read(text).unwrap_err();
            assert_eq!(error.code(), 7);
            assert!(error.to_string().contains(&format!(": {key} = ")), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn values_that_could_only_surprise_are_refused() {
        for text in [
            r#"{"ingressRate":7,"ingressBurst":80000}"#,
            r#"{"latency":0}"#,
            r#"{"latency":10001}"#,
            r#"{"burst":"none"}"#,
        ] {
            assert_eq!(read(text).unwrap_err().code(), 7, "{text}");
        }
        let many: Vec<String> = (0..=SUBNETS_MAX).map(|i| format!("\"10.{}.{}.0/24\"", i / 256, i % 256)).collect();
        assert_eq!(read(&format!(r#"{{"shapedSubnets":[{}]}}"#, many.join(","))).unwrap_err().code(), 7);
    }

    #[test]
    fn subnets_are_normalised_and_empty_lists_restrict_nothing() {
        let scope = |text: &str| read(text).unwrap().scope;
        let nets = |text: &[&str]| text.iter().map(|t| t.parse().unwrap()).collect::<Vec<IpNet>>();
        assert_eq!(
            scope(r#"{"unshapedSubnets":["fd00::1/8","10.1.2.3/8","10.0.0.0/8"]}"#),
            Scope::Except(nets(&["10.0.0.0/8", "fd00::/8"]))
        );
        assert_eq!(scope(r#"{"shapedSubnets":[],"unshapedSubnets":[]}"#), Scope::All);
        assert_eq!(
            scope(r#"{"unshapedSubnets":["::/0"],"runtimeConfig":{"bandwidth":{"shapedSubnets":["192.0.2.0/24"]}}}"#),
            Scope::Only(nets(&["192.0.2.0/24"]))
        );
    }
}
