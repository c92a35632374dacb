//! `make runtimes BIN=…`: what real runtimes achieve with our plugins and with others, as Markdown on stdout.
//!
//! Arguments: more directories of plugins. Environment: `CASE` (only scenarios whose name contains it),
//! `CNI_CHAIN_RECORD` (where to keep the calls; those of the last directory stay).

use std::io::Write as _;
use std::path::PathBuf;

use netns_tests::plugin::{banner, directory};
use netns_tests::runtime::claims::{Claim, Claims};
use netns_tests::runtime::scenarios;

fn main() {
    let case = std::env::var("CASE").unwrap_or_default();
    let mut directories: Vec<PathBuf> = vec![directory()];
    directories.extend(std::env::args_os().skip(1).map(PathBuf::from));
    // A broken claim is a result here, not a reason to be told where in the code it was seen.
    std::panic::set_hook(Box::new(|_| {}));
    let titles: Vec<String> = directories.iter().map(|dir| banner(dir)).collect();
    println!("| scenario: claims kept | {} |\n|---|{}|", titles.join(" | "), vec!["---:"; titles.len()].join("|"));
    let mut totals = vec![(0, 0); titles.len()];
    let mut broken = vec![Vec::new(); titles.len()];
    for scenario in scenarios::ALL.iter().filter(|scenario| scenario.name.contains(&case)) {
        let name = scenario.name.replace('_', " ");
        print!("| {name} |");
        for ((directory, total), broken) in directories.iter().zip(&mut totals).zip(&mut broken) {
            let claims = scenario.play(directory);
            let kept = claims.iter().filter(|claim| claim.fault.is_none()).count();
            let all = claims.iter().count();
            print!(" {kept} of {all} |");
            let _ = std::io::stdout().flush();
            *total = (total.0 + kept, total.1 + all);
            broken.extend(faults(&name, &claims));
        }
        println!();
    }
    let shown: Vec<String> = totals.iter().map(|(kept, all)| format!("**{kept} of {all}**")).collect();
    println!("| **together** | {} |", shown.join(" | "));
    for (title, faults) in titles.iter().zip(broken) {
        println!("\n{title}: {}\n", if faults.is_empty() { "every claim was kept." } else { "these were broken." });
        faults.iter().for_each(|fault| println!("* {fault}"));
    }
}

/// Scenario, promise and the first line of what was seen.
fn faults(scenario: &str, claims: &Claims) -> Vec<String> {
    let told = |claim: &Claim| {
        let seen = claim.fault.as_ref()?.lines().next().unwrap_or_default();
        let seen =
            if seen.len() > 160 { format!("{}…", seen.chars().take(160).collect::<String>()) } else { seen.into() };
        Some(format!("{scenario}: *{}*: `{seen}`", claim.promise))
    };
    claims.iter().filter_map(told).collect()
}
