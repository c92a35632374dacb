//! `make budget`: whether each verb of each plugin keeps to its budget of instructions in user space.
//!
//! The budgets are in `tests/instructions.json`. With `REASON` they become what is counted now, and the reason is kept
//! beside each one that has changed.

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;

use netns_tests::bench::instructions::{Budget, Budgets, TOLERANCE, count};
use netns_tests::plugin::directory;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.json");

/// Changes smaller than this, in per cent, are no reason to write a budget anew.
const NOISE: f64 = 1.0;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let budgets: Budgets = match std::fs::read(FILE) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| format!("tests/instructions.json: {error}"))?,
        Err(_) => Budgets::new(),
    };
    let counted = count(&directory())?;
    let exceeded = compare(&counted, &budgets);
    if let Some(reason) = std::env::var("REASON").ok().filter(|reason| !reason.trim().is_empty()) {
        let renewed = renew(&counted, &budgets, reason.trim());
        std::fs::write(FILE, serde_json::to_string_pretty(&renewed)? + "\n")?;
        println!("budget: written to tests/instructions.json");
        return Ok(ExitCode::SUCCESS);
    }
    if exceeded == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let per_cent = (TOLERANCE - 1.0) * 100.0;
    eprintln!(
        "budget: {exceeded} beyond {per_cent:.0} % more than the budget, or without one, or with one and not there."
    );
    eprintln!("budget: if that is the price of something, say so: make budget REASON='what it is the price of'");
    Ok(ExitCode::FAILURE)
}

/// Prints both; gives the number of calls beyond their budget.
fn compare(counted: &BTreeMap<String, u64>, budgets: &Budgets) -> usize {
    println!("{:<20} {:>12} {:>12} {:>8}", "instructions", "budget", "now", "");
    let mut exceeded = 0;
    for (call, &now) in counted {
        let budget = budgets.get(call).map(|budget| budget.instructions);
        let beyond = budget.is_none_or(|budget| now as f64 > budget as f64 * TOLERANCE);
        exceeded += usize::from(beyond);
        let shown = budget.map_or_else(|| "none".into(), |budget| budget.to_string());
        let change = budget.map_or_else(String::new, |budget| format!("{:+.1}%", change(budget, now)));
        println!("{call:<20} {shown:>12} {now:>12} {change:>8}{}", if beyond { "  too many" } else { "" });
    }
    let forgotten: Vec<&str> = budgets.keys().filter(|call| !counted.contains_key(*call)).map(String::as_str).collect();
    if !forgotten.is_empty() {
        eprintln!("budget: there are no such calls any more: {}", forgotten.join(", "));
    }
    exceeded + forgotten.len()
}

/// In per cent.
fn change(before: u64, now: u64) -> f64 {
    (now as f64 / before as f64 - 1.0) * 100.0
}

fn renew(counted: &BTreeMap<String, u64>, budgets: &Budgets, reason: &str) -> Budgets {
    let renewed = |(call, &now): (&String, &u64)| {
        let budget = match budgets.get(call) {
            Some(budget) if change(budget.instructions, now).abs() < NOISE => budget.clone(),
            _ => Budget { instructions: now, reason: reason.to_owned() },
        };
        (call.clone(), budget)
    };
    counted.iter().map(renewed).collect()
}
