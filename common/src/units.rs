//! Rates, sizes and times as tc(8) and the kernel's packet schedulers count them.
//!
//! Everything is 64 bits wide; where the kernel's own fields are narrower, the conversion saturates and says so.

use std::fmt;

/// Bits per second, printed as tc(8) prints a rate: `10Mbit`, `12500Kbit`, `1001bit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BitRate(pub u64);

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_scaled(self.0, &[("T", 1_000_000_000_000), ("G", 1_000_000_000), ("M", 1_000_000), ("K", 1000)], "bit", f)
    }
}

/// A number of bytes, printed as tc(8) prints a size: `16Kb`, `12500b` (its `b` is a byte).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_scaled(self.0, &[("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)], "b", f)
    }
}

/// Never rounds: a larger unit is used only where the value is a whole number of it.
fn print_scaled(value: u64, units: &[(&str, u64)], base: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let whole = units.iter().find(|(_, size)| value >= *size && value.is_multiple_of(*size));
    match whole {
        Some((prefix, size)) => write!(f, "{}{prefix}{base}", value / size),
        None => write!(f, "{value}{base}"),
    }
}

/// Nanoseconds in one tick of the packet schedulers (`PSCHED_SHIFT` is 6, include/net/pkt_sched.h).
pub const TICK_NS: u64 = 64;

/// Nanoseconds that `bytes` take at `rate` bytes per second, computed as the kernel does (`psched_ratecfg_precompute`
/// and `psched_l2t_ns`, net/sched/sch_generic.c): a 31 bit multiplier and a shift, so it may be short by one part in
/// 2³⁰. 0 where the rate is 0.
pub fn transmission_time(rate: u64, bytes: u32) -> u64 {
    let (mut factor, mut shift) = (1_000_000_000u64, 0u32);
    let multiplier = loop {
        let Some(multiplier) = factor.checked_div(rate) else { return 0 };
        if multiplier & (1 << 31) != 0 || factor & (1 << 63) != 0 {
            break multiplier;
        }
        factor <<= 1;
        shift += 1;
    };
    let time = (u128::from(bytes) * u128::from(multiplier)) >> shift;
    u64::try_from(time).unwrap_or(u64::MAX)
}

/// Bytes that pass in `time` nanoseconds at `rate` bytes per second; saturates.
pub fn bytes_in(rate: u64, time: u64) -> u64 {
    u64::try_from(u128::from(rate) * u128::from(time) / 1_000_000_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_and_sizes_print_without_rounding() {
        let printed = [10_000_000, 12_500_000, 1001, 100_000_000_000, 0].map(|r| BitRate(r).to_string());
        assert_eq!(printed, ["10Mbit", "12500Kbit", "1001bit", "100Gbit", "0bit"]);
        assert_eq!(Bytes(12_500).to_string(), "12500b");
        assert_eq!(Bytes(16 << 10).to_string(), "16Kb");
    }

    proptest! {
        #[test]
        fn transmission_time_is_the_exact_quotient_to_one_part_in_a_thousand_million(
            rate in 1u64..20_000_000_000_000, bytes in 0u32..,
        ) {
            let exact = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
            let computed = u128::from(transmission_time(rate, bytes));
            prop_assert!(computed <= exact, "{computed} > {exact}");
            prop_assert!(exact - computed <= 1 + (exact >> 29), "{computed} is short of {exact}");
        }

        #[test]
        fn bytes_in_a_time_match_the_wide_model(rate: u64, time: u64) {
            let exact = u128::from(rate) * u128::from(time) / 1_000_000_000;
            prop_assert_eq!(u128::from(bytes_in(rate, time)), exact.min(u128::from(u64::MAX)));
        }
    }
}
