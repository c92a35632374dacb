//! What the demo prints: steps, claims with their proof, commands, and the verdict.

use std::cell::Cell;
use std::io::{IsTerminal, Write};

/// Columns for a claim before its proof.
const CLAIM: usize = 50;

/// Columns of a table for what is compared, and for how it was.
const WHAT: usize = 40;
const BEFORE: usize = 20;

/// The screen, and the count of what was claimed on it.
pub(crate) struct Screen {
    colour: bool,
    step: Cell<u32>,
    claims: Cell<u32>,
    untrue: Cell<u32>,
}

#[derive(Clone, Copy)]
enum Style {
    Bold,
    Dim,
    Green,
    Red,
}

impl Screen {
    /// Coloured on a terminal, unless NO_COLOR is set (no-color.org).
    pub(crate) fn new() -> Screen {
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colour = std::io::stdout().is_terminal() && !forbidden;
        Screen { colour, step: Cell::new(0), claims: Cell::new(0), untrue: Cell::new(0) }
    }

    /// A reader that has gone (`| head`) doesn't end the demo: its exit code still counts.
    fn line(&self, text: std::fmt::Arguments<'_>) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    fn paint(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Bold => 1,
            Style::Dim => 2,
            Style::Green => 32,
            Style::Red => 31,
        };
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Begins the next step.
    pub(crate) fn step(&self, title: &str) {
        self.step.set(self.step.get() + 1);
        self.line(format_args!("\n{}", self.paint(Style::Bold, &format!("{}. {title}", self.step.get()))));
    }

    /// Something to know.
    pub(crate) fn say(&self, text: &str) {
        for line in text.trim_end().lines() {
            self.line(format_args!("   {}", self.paint(Style::Dim, line)));
        }
    }

    /// A command about to be run.
    pub(crate) fn command(&self, line: &str) {
        self.line(format_args!("   {} {line}", self.paint(Style::Dim, "$")));
    }

    /// What a command printed.
    pub(crate) fn output(&self, text: &str) {
        for line in text.trim_end().lines() {
            self.line(format_args!("     {line}"));
        }
    }

    /// A claim and what was seen; counted, and marked if it isn't true.
    pub(crate) fn claim(&self, claim: &str, seen: &str, is_true: bool) {
        let mark = self.mark(is_true);
        let seen = if is_true { self.paint(Style::Dim, seen) } else { self.paint(Style::Red, seen) };
        self.line(format_args!("   {mark} {claim:<CLAIM$} {seen}"));
    }

    /// The head of a table of [`Screen::row`]s.
    pub(crate) fn columns(&self, before: &str, after: &str) {
        self.line(format_args!("     {}", self.paint(Style::Dim, &format!("{:<WHAT$} {before:<BEFORE$} {after}", ""))));
    }

    /// A claim about what changed; counted, and marked if it isn't true.
    pub(crate) fn row(&self, what: &str, before: &str, after: &str, is_true: bool) {
        let before = self.paint(Style::Dim, &format!("{before:<BEFORE$}"));
        self.line(format_args!("   {} {what:<WHAT$} {before} {after}", self.mark(is_true)));
    }

    fn mark(&self, is_true: bool) -> String {
        self.claims.set(self.claims.get() + 1);
        if is_true {
            return self.paint(Style::Green, "✔");
        }
        self.untrue.set(self.untrue.get() + 1);
        self.paint(Style::Red, "✘")
    }

    /// The last line; whether every claim was true.
    pub(crate) fn verdict(&self, took: std::time::Duration) -> bool {
        let (claims, untrue) = (self.claims.get(), self.untrue.get());
        let all = untrue == 0 && claims > 0;
        let (style, text) = if all {
            (Style::Green, format!("All {claims} claims are true"))
        } else {
            (Style::Red, format!("{untrue} of {claims} claims are NOT true"))
        };
        self.line(format_args!("\n{} ({:.0} s)", self.paint(style, &text), took.as_secs_f64()));
        all
    }
}
