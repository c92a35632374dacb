//! A report as text: aligned on the terminal, and as Markdown.

use std::fmt::Write;

use super::{Chapter, Table};

/// For the terminal.
pub fn plain(chapter: &Chapter) -> String {
    let (mut out, report) = (format!("{}: {}\n", chapter.case, chapter.title), &chapter.report);
    for note in &report.notes {
        let _ = writeln!(out, "  {note}");
    }
    for table in &report.tables {
        let _ = writeln!(out, "\n{}", table.title);
        let (head, rows) = shown(table);
        let widths: Vec<usize> = (0..head.len()).map(|n| width(&head, &rows, n)).collect();
        for row in std::iter::once(&head).chain(&rows) {
            let cells = row.iter().zip(&table.columns).zip(&widths);
            let cells = cells.map(|((cell, column), width)| match column.numeric {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            });
            let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }
    out
}

/// For a page.
pub fn markdown(chapter: &Chapter) -> String {
    let mut out = format!("## {}\n\n{}.\n", chapter.case, chapter.title.trim_end_matches('.'));
    let report = &chapter.report;
    for note in &report.notes {
        let _ = write!(out, "\n{note}\n");
    }
    for chart in &report.charts {
        let _ = write!(out, "\n![{}]({}.svg)\n", chart.title, chart.file);
    }
    for table in &report.tables {
        let (head, rows) = shown(table);
        let rule = table.columns.iter().map(|c| if c.numeric { "--:" } else { ":--" });
        let _ = write!(
            out,
            "\n**{}**\n\n| {} |\n|{}|\n",
            table.title,
            head.join(" | "),
            rule.collect::<Vec<_>>().join("|")
        );
        for row in rows {
            let _ = writeln!(out, "| {} |", row.join(" | "));
        }
    }
    out
}

fn shown(table: &Table) -> (Vec<String>, Vec<Vec<String>>) {
    let head = table.columns.iter().map(|c| c.head()).collect();
    let row = |row: &Vec<super::Cell>| row.iter().zip(&table.columns).map(|(cell, c)| cell.show(c)).collect();
    (head, table.rows.iter().map(row).collect())
}

fn width(head: &[String], rows: &[Vec<String>], column: usize) -> usize {
    let cells = std::iter::once(head).chain(rows.iter().map(Vec::as_slice)).filter_map(|row| row.get(column));
    cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
}
