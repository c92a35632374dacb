//! The versions of the CNI specification and the families whose results have one shape.

use std::fmt;

/// A version of the CNI specification that every plugin here speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1.0: `ip4` and `ip6` results. A configuration without `cniVersion` means this one.
    V0_1_0,
    /// 0.2.0: VERSION came.
    V0_2_0,
    /// 0.3.0: `interfaces` and `ips` came, and with prevResult the chain.
    V0_3_0,
    /// 0.3.1: conflists came.
    V0_3_1,
    /// 0.4.0: CHECK came, and prevResult on DEL.
    V0_4_0,
    /// 1.0.0: `ips[].version` went.
    V1_0_0,
    /// 1.1.0: GC and STATUS came.
    V1_1_0,
}

/// Versions whose results are converted into each other; between families a prevResult is refused, as libcni does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `{ip4, ip6, dns}`.
    Ip4Ip6,
    /// `{interfaces, ips[] with version, routes, dns}`.
    VersionedIps,
    /// `{interfaces, ips, routes, dns}`.
    Plain,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Version; 7] = [
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];
    /// The newest one.
    pub const LATEST: Version = Version::V1_1_0;

    /// The version as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// The version written exactly so, if it is one of ours.
    pub fn from_exact(text: &str) -> Option<Version> {
        Version::ALL.into_iter().find(|v| v.as_str() == text)
    }

    /// Whether `text` has the form of a version at all: up to three dot-separated numbers, as libcni reads it.
    pub fn is_well_formed(text: &str) -> bool {
        let parts: Vec<&str> = text.split('.').collect();
        parts.len() <= 3 && parts.iter().all(|p| p.parse::<u32>().is_ok() && !p.starts_with('+'))
    }

    /// The family whose result shape this version has.
    pub const fn family(self) -> Family {
        match self {
            Version::V0_1_0 | Version::V0_2_0 => Family::Ip4Ip6,
            Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => Family::VersionedIps,
            Version::V1_0_0 | Version::V1_1_0 => Family::Plain,
        }
    }

    /// The versions of one family, for an error message.
    pub fn of_family(family: Family) -> impl Iterator<Item = Version> {
        Version::ALL.into_iter().filter(move |v| v.family() == family)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_versions_are_ours() {
        assert_eq!(Version::from_exact("0.3.1"), Some(Version::V0_3_1));
        for no in ["", "0.3", "1.1.1", "v1.0.0", "1.0.0 ", "01.0.0"] {
            assert_eq!(Version::from_exact(no), None, "{no}");
        }
    }

    #[test]
    fn a_version_is_numbers_and_dots() {
        assert!(Version::is_well_formed("9.9.9"));
        assert!(Version::is_well_formed("1"));
        for no in ["", "a.b.c", "1.0.0.0", "1..0", "+1.0.0", "-1.0.0"] {
            assert!(!Version::is_well_formed(no), "{no}");
        }
    }
}
