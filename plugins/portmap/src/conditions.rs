//! `conditionsV4` and `conditionsV6`: what else a packet must fulfil to be taken.
//!
//! They are written as nft expressions or as arguments of iptables; the first character tells which, as in the
//! reference. Both become statements of the model. What can't be translated is refused by name, before anything is
//! changed: a condition that were ignored would open what its author wanted closed.

mod iptables;
mod nft;
mod value;

use common::nft::{IpVersion, Statement};
use common::{Error, Result};

/// Conditions of one rule: the kernel takes 128 expressions (NFT_RULE_MAXEXPRS, net/netfilter/nf_tables_api.c), and a condition can
/// need three.
const MOST: usize = 40;

/// Tests that a packet passes all, or isn't taken. None at all: every packet passes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// In the order written.
    pub statements: Vec<Statement>,
}

impl Conditions {
    /// Reads the words under `key`, which are about packets of `version`.
    ///
    /// The words of one condition may stand in one string or in several: nft joins them, iptables wants them apart.
    pub fn parse(key: &str, version: IpVersion, words: &[String]) -> Result<Conditions> {
        let text = words.join(" ");
        let text = text.trim();
        let parsed = match text.chars().next() {
            None => Ok(Vec::new()),
            Some('-' | '!') => iptables::parse(&iptables::joined(words), version),
            Some(_) => nft::parse(text, version),
        };
        match parsed {
            Ok(statements) if statements.len() > MOST => {
                let reason = format!("{MOST} are the most: a rule of nftables has room for no more");
                Err(Error::invalid(key, format!("{} conditions", statements.len()), reason))
            }
            Ok(statements) => Ok(Conditions { statements }),
            Err(reason) => Err(Error::invalid(key, format!("{text:?}"), reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::nft::Rule;

    fn shown(version: IpVersion, words: &[&str]) -> Result<String> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        Conditions::parse("conditions", version, &words).map(|c| Rule::new(c.statements).to_string())
    }

    fn v4(text: &str) -> String {
        shown(IpVersion::V4, &[text]).unwrap()
    }

    fn v6(text: &str) -> String {
        shown(IpVersion::V6, &[text]).unwrap()
    }

    fn refused(text: &str) -> String {
        shown(IpVersion::V4, &[text]).unwrap_err().to_string()
    }

    #[test]
    fn nothing_is_no_condition() {
        assert_eq!(v4(""), "");
        assert_eq!(shown(IpVersion::V4, &[]).unwrap(), "");
        assert_eq!(shown(IpVersion::V4, &[""]).unwrap(), "");
    }

    #[test]
    fn words_may_stand_together_or_apart() {
        assert_eq!(shown(IpVersion::V4, &["ip", "saddr", "192.0.2.0/24"]).unwrap(), v4("ip saddr 192.0.2.0/24"));
        assert_eq!(shown(IpVersion::V4, &["-s", "192.0.2.0/24"]).unwrap(), v4("-s 192.0.2.0/24"));
    }

    #[test]
    fn nft_conditions_are_taken_as_they_are() {
        for same in [
            "ip saddr 192.0.2.1",
            "ip saddr 192.0.2.0/24 ip daddr != 192.0.2.7",
            "ip saddr 192.0.2.1-192.0.2.9",
            "ip saddr { 192.0.2.1, 198.51.100.0/24 }",
            "iifname \"eth0\"",
            "iifname != \"veth*\"",
            "iifname { \"eth0\", \"eth1\" }",
            "tcp dport 8080",
            "tcp dport 8000-8999",
            "udp sport != { 53, 123 }",
            "th dport 80",
            "meta l4proto { tcp, udp }",
            "meta mark 0x00000001",
            "meta mark & 0x000000ff == 0x00000001",
            "meta skuid 1000",
            "meta pkttype host",
            "ct state established,related",
            "ct mark 0x00000007",
            "fib daddr type local",
            "fib saddr type != local",
        ] {
            assert_eq!(v4(same), same);
        }
        assert_eq!(v6("ip6 saddr fd00::/8"), "ip6 saddr fd00::/8");
        assert_eq!(v4("ip saddr {192.0.2.1,192.0.2.2}"), "ip saddr { 192.0.2.1, 192.0.2.2 }");
        assert_eq!(v4("meta iifname eth0 mark 1"), "iifname \"eth0\" meta mark 0x00000001");
        assert_eq!(v4("iif eth0"), "iifname \"eth0\"");
        assert_eq!(v4("ip protocol tcp"), "meta l4proto tcp");
        assert_eq!(v4("ct state { new, related }"), "ct state new,related");
    }

    #[test]
    fn iptables_conditions_are_translated() {
        for (iptables, nft) in [
            ("-s 192.0.2.1", "ip saddr 192.0.2.1"),
            ("! -s 192.0.2.0/24", "ip saddr != 192.0.2.0/24"),
            ("--source 192.0.2.0/255.255.255.0", "ip saddr 192.0.2.0/24"),
            ("-s 192.0.2.1,198.51.100.0/24", "ip saddr { 192.0.2.1, 198.51.100.0/24 }"),
            ("-d 192.0.2.1 -i eth0", "ip daddr 192.0.2.1 iifname \"eth0\""),
            ("! -i veth+", "iifname != \"veth*\""),
            ("-o eth0", "oifname \"eth0\""),
            ("-p tcp --dport 80", "tcp dport 80"),
            ("-p TCP -m tcp --dport 8000:8999", "tcp dport 8000-8999"),
            ("-p udp --sport :1023", "udp sport 0-1023"),
            ("! -p 132", "meta l4proto != sctp"),
            ("-p tcp -m multiport --dports 80,443,8000:8999", "tcp dport { 80, 443, 8000-8999 }"),
            ("-p tcp -m multiport ! --sports 80,443", "tcp sport != { 80, 443 }"),
            ("-m mark --mark 0x1/0xff", "meta mark & 0x000000ff == 0x00000001"),
            ("-m mark ! --mark 7", "meta mark != 0x00000007"),
            ("-m connmark --mark 7", "ct mark 0x00000007"),
            ("-m conntrack --ctstate NEW,ESTABLISHED", "ct state new,established"),
            ("-m state --state NEW", "ct state new"),
            ("-m iprange --src-range 192.0.2.1-192.0.2.9", "ip saddr 192.0.2.1-192.0.2.9"),
            ("-m addrtype --dst-type LOCAL", "fib daddr type local"),
            ("-m addrtype ! --src-type local", "fib saddr type != local"),
            ("-m owner --uid-owner 1000", "meta skuid 1000"),
            ("-m comment --comment \"from the office\" -s 192.0.2.1", "ip saddr 192.0.2.1"),
            ("-m pkttype --pkt-type unicast", "meta pkttype host"),
            ("-p all -s 192.0.2.1", "ip saddr 192.0.2.1"),
            ("-m tcp --dport 80", "tcp dport 80"),
            ("-m udp --sport 1024: -s 192.0.2.1", "udp sport 1024-65535 ip saddr 192.0.2.1"),
            ("-m multiport --dports 80,443", "th dport { 80, 443 }"),
            ("-m multiport ! --sports 53", "th sport != 53"),
            ("-m udp -m multiport --sports 53,123", "udp sport { 53, 123 }"),
            (
                "-ieth0 ! -s192.0.2.0/24 -ptcp -mtcp --dport 80",
                "iifname \"eth0\" ip saddr != 192.0.2.0/24 tcp dport 80",
            ),
            ("-pall -d192.0.2.1", "ip daddr 192.0.2.1"),
            ("--source=192.0.2.1 -p tcp --dport=80", "ip saddr 192.0.2.1 tcp dport 80"),
        ] {
            assert_eq!(v4(iptables), nft, "{iptables}");
        }
        let comment = ["-m", "comment", "--comment", "from the \"office\"", " -s ", "192.0.2.1"];
        assert_eq!(shown(IpVersion::V4, &comment).unwrap(), "ip saddr 192.0.2.1");
        assert_eq!(v6("! -s fd00::/8"), "ip6 saddr != fd00::/8");
        assert_eq!(v6("-s fd00::1/ffff::"), "ip6 saddr fd00::/16");
    }

    #[test]
    fn lists_are_what_they_say_however_their_values_overlap() {
        for (list, shortest) in [
            ("-s 192.0.2.0/24,192.0.2.2", "ip saddr 192.0.2.0/24"),
            ("-s 0.0.0.0/0,10.0.0.0/8", "ip saddr 0.0.0.0/0"),
            ("-s 128.0.0.0/1,192.0.2.0/31", "ip saddr 128.0.0.0/1"),
            ("-s 10.0.0.2,10.0.0.0/31,10.0.0.9", "ip saddr { 10.0.0.0-10.0.0.2, 10.0.0.9 }"),
            ("-p tcp -m multiport ! --sports 1024:65535,40000", "tcp sport != 1024-65535"),
            ("-p tcp -m multiport --dports 80,80,81", "tcp dport { 80, 81 }"),
            ("tcp sport != { 1024-65535, 40000 }", "tcp sport != 1024-65535"),
            ("tcp sport { 10-19, 65000-65535, 20-29, 53 }", "tcp sport { 10-29, 53, 65000-65535 }"),
            ("meta l4proto { tcp, tcp }", "meta l4proto tcp"),
        ] {
            assert_eq!(v4(list), shortest, "{list}");
        }
        assert_eq!(v6("-s fd00::/8,fd00::1,2001:db8::/32"), "ip6 saddr { 2001:db8::/32, fd00::/8 }");
    }

    #[test]
    fn what_cannot_be_translated_is_refused_by_name() {
        for (text, named) in [
            ("-m set --match-set office src", "set"),
            ("-m limit --limit 5/s", "limit"),
            ("-s www.example.org", "www.example.org"),
            ("-s 192.0.2.1/255.0.255.0", "255.0.255.0"),
            ("--dport http", "http"),
            ("-p tcp --dport 70000", "70000"),
            ("-p tcp --dport 9:1", "9:1"),
            ("--dport 80", "-p"),
            ("--dports 80", "-m multiport"),
            ("-p udp -m tcp --dport 80", "\"tcp\""),
            ("-m tcp --syn", "--syn"),
            ("-j ACCEPT", "-j"),
            ("! -p all", "all"),
            ("-s", "-s"),
            ("! !", "!"),
            ("-s fd00::1", "fd00::1"),
            ("ip6 saddr fd00::1", "ip6"),
            ("ip saddr fd00::1", "fd00::1"),
            ("ip saddr", "ip saddr"),
            ("ip ttl 5", "ttl"),
            ("tcp flags syn", "flags"),
            ("ip saddr @office", "@office"),
            ("ip saddr 192.0.2.1 drop", "drop"),
            ("limit rate 5/second", "limit"),
            ("tcp dport {}", "{"),
            ("tcp dport { 80", "{"),
            ("meta skuid root", "root"),
            ("iifname \"a-name-that-is-too-long\"", "a-name-that-is-too-long"),
            ("aaa bbb", "aaa"),
        ] {
            let message = refused(text);
            assert!(message.contains(named) && message.contains("conditions"), "{text}: {message}");
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        for text in
            ["\"", "{", "}", "!", "-", "--", "ct", "meta", "fib daddr", "-s ''", "tcp dport -", "ip saddr 1-", "iif *"]
        {
            let _ = shown(IpVersion::V4, &[text]);
            let _ = shown(IpVersion::V6, &[text]);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_garbage_makes_the_parser_panic(text in "[-!a-z0-9 ./:{},\"*+&=@\u{e9}]{0,40}") {
            let _ = shown(IpVersion::V4, &[&text]);
            let _ = shown(IpVersion::V6, &[&text]);
        }
    }
}
