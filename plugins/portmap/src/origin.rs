//! Since when an attachment publishes, and how to tell later whether its container is still there.
//!
//! It stands in the second line of the record, as
//! `since 2026-10-02T12:00:00Z boot 1a2b3c4d link vethab12#7` or
//! `since 2026-10-02T12:00:00Z boot 1a2b3c4d netns 4026532288@25:1186 /run/netns/cni-1`; before the trace ` id 16DIGITS` where
//! the container's name is too long for a label.

use std::fmt;

use common::attachment::{LABEL_CONTAINER, LABEL_MAX, reference_hash_name};

/// Where an attachment comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Seconds since the epoch at its first ADD.
    pub since: u64,
    /// The first 8 digits of `/proc/sys/kernel/random/boot_id`: a container doesn't outlive the boot it was started in.
    pub boot: String,
    /// [`id_of`] the container.
    pub id: Option<String>,
    /// How to tell that it is gone.
    pub trace: Trace,
}

/// Digits by which a container whose name a label may not hold is told from those whose names are cut to the same.
pub fn id_of(container: &str) -> Option<String> {
    (container.len() > LABEL_CONTAINER).then(|| reference_hash_name(16, "", container))
}

/// What goes when the container goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trace {
    /// Nothing that could be seen later.
    #[default]
    None,
    /// The host's end of its veth pair, which the kernel removes with the container's namespace: name and index.
    /// A namespace never gives an index twice, and names of veths are random where indices start anew.
    Link(String, u32),
    /// The file that holds its namespace.
    Netns(NetnsFile),
}

/// A file that holds a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetnsFile {
    /// The namespace's inode in nsfs.
    pub inode: u64,
    /// Device and inode of the directory that the file is in: who sees another directory there is in another mount
    /// namespace, and can't see what has become of the file.
    pub directory: (u64, u64),
    /// Its path.
    pub path: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("since {} boot {}", Time(self.since), self.boot);
        if let Some(id) = &self.id {
            text.push_str(&format!(" id {id}"));
        }
        f.write_str(&text)?;
        match &self.trace {
            // The index tells. nft, which would have to read a quotation mark again, knows no way of writing one.
            Trace::Link(name, index) => write!(f, " link {}#{index}", name.replace('"', "?")),
            Trace::Netns(NetnsFile { inode, directory: (device, directory), path }) => {
                let trace = format!(" netns {inode}@{device}:{directory} {path}");
                // A path that doesn't fit can't prove anything later: then the owner counts as alive.
                let fits = text.len() + trace.len() <= LABEL_MAX && !path.contains('"');
                f.write_str(if fits { &trace } else { "" })
            }
            Trace::None => Ok(()),
        }
    }
}

impl Origin {
    /// Reads what [`Origin`] prints.
    pub fn read(comment: &str) -> Option<Origin> {
        let rest = comment.strip_prefix("since ")?;
        let (since, rest) = rest.split_once(" boot ")?;
        let (boot, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let (id, rest) = match rest.strip_prefix("id ").map(|rest| rest.split_once(' ').unwrap_or((rest, ""))) {
            Some((id, rest)) => (Some(id.to_owned()), rest),
            None => (None, rest),
        };
        let trace = match rest.split_once(' ') {
            Some(("link", link)) => {
                let (name, index) = link.rsplit_once('#')?;
                Trace::Link(name.to_owned(), index.parse().ok()?)
            }
            Some(("netns", netns)) => {
                let (numbers, path) = netns.split_once(' ')?;
                let (inode, directory) = numbers.split_once('@')?;
                let (device, directory) = directory.split_once(':')?;
                let directory = (device.parse().ok()?, directory.parse().ok()?);
                Trace::Netns(NetnsFile { inode: inode.parse().ok()?, directory, path: path.to_owned() })
            }
            _ => Trace::None,
        };
        Some(Origin { since: Time::read(since)?, boot: boot.to_owned(), id, trace })
    }

    /// When, as people write it.
    pub fn since(&self) -> String {
        Time(self.since).to_string()
    }
}

/// Seconds since the epoch, printed as RFC 3339 has it, in UTC.
struct Time(u64);

const DAY: u64 = 86400;

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date(self.0 / DAY);
        let second = self.0 % DAY;
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
    }
}

impl Time {
    fn read(text: &str) -> Option<u64> {
        let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
        let numbers = |text: &str, separator| {
            let all: Option<Vec<u64>> = text.split(separator).map(|n| n.parse().ok()).collect();
            <[u64; 3]>::try_from(all?).ok()
        };
        let [year, month, day] = numbers(date, '-')?;
        let [hour, minute, second] = numbers(time, ':')?;
        if !(1970..10000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        Some(days(year, month, day) * DAY + hour * 3600 + minute * 60 + second)
    }
}

/// Days since 1970-01-01 of a date of the Gregorian calendar, with years that begin in March, so that the leap day is
/// their last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year / 4 - year / 100 + year / 400 + day_of_year - EPOCH
}

/// 1970-01-01 in days since 0000-03-01.
const EPOCH: u64 = 719_468;

/// The inverse of [`days`].
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + EPOCH;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_again() {
        let containerd_s = "/var/run/netns/cni-5aa7dd0c-27ab-3d3b-8b4f-0d8a4a1f0a3e";
        let netns = |path: &str| {
            let (inode, directory) = (4_026_532_288, (25, 1_234_567));
            Trace::Netns(NetnsFile { inode, directory, path: path.into() })
        };
        let veth = Trace::Link("veth#1".into(), 7);
        let traces = [Trace::None, veth.clone(), netns("/run/netns/with space"), netns(containerd_s)];
        let of_long_names = [Trace::None, veth, netns("/run/netns/with space")];
        let long = id_of(&"f".repeat(65));
        let all = traces.map(|trace| (None, trace)).into_iter().chain(of_long_names.map(|trace| (long.clone(), trace)));
        for (id, trace) in all {
            let origin = Origin { since: 1_790_942_400, boot: "1a2b3c4d".into(), id, trace };
            assert_eq!(Origin::read(&origin.to_string()), Some(origin.clone()), "{origin}");
            assert!(origin.to_string().len() <= LABEL_MAX);
        }
    }

    #[test]
    fn a_name_with_a_quotation_mark_can_be_read_by_nft() {
        let trace = Trace::Link("b\"r".into(), 7);
        let origin = Origin { since: 0, boot: "1a2b3c4d".into(), id: None, trace };
        assert_eq!(origin.to_string(), "since 1970-01-01T00:00:00Z boot 1a2b3c4d link b?r#7");
    }

    #[test]
    fn a_path_that_does_not_fit_is_left_out() {
        let path = format!("/{}", "x".repeat(200));
        let trace = Trace::Netns(NetnsFile { inode: u64::MAX, directory: (1, 1), path });
        let origin = Origin { since: 0, boot: "1a2b3c4d".into(), id: None, trace };
        assert_eq!(origin.to_string(), "since 1970-01-01T00:00:00Z boot 1a2b3c4d");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_790_942_400, "2026-10-02T12:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Time(seconds).to_string(), text);
            assert_eq!(Time::read(text), Some(seconds));
        }
    }

    #[test]
    fn garbage_is_no_origin() {
        for text in
            ["", "since", "since x boot y", "since 2026-13-01T00:00:00Z boot a", "since 0-0-0T0:0:0Z boot a link"]
        {
            assert_eq!(Origin::read(text), None, "{text}");
        }
    }
}
