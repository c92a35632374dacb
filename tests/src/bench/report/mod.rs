//! What an item of a case hands back, as plain data, and the three forms it takes: on the terminal, stored, and drawn.

use serde::{Deserialize, Serialize};

use super::Case;

pub mod plot;
pub mod store;
pub mod text;

/// A case with what all its items that were measured say.
#[derive(Clone, Debug)]
pub struct Chapter {
    /// The case's name.
    pub case: String,
    /// One line.
    pub title: String,
    /// Of all items.
    pub report: Report,
}

impl Chapter {
    /// What these items of a case say, in their order.
    pub fn of<'a>(case: &dyn Case, items: impl IntoIterator<Item = &'a Report>) -> Chapter {
        let mut report = Report::default();
        items.into_iter().for_each(|item| report.extend(item.clone()));
        Chapter { case: case.name().into(), title: case.title(), report }
    }
}

/// The outcome of an item, or of several.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// What the figures need to be understood, as Markdown; may be empty.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Figures.
    pub tables: Vec<Table>,
    /// Pictures.
    pub charts: Vec<Chart>,
}

impl Report {
    /// Adds what another item says: to a table of the same title and head its rows, to bars of the same picture its groups.
    pub fn extend(&mut self, other: Report) {
        for note in other.notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        for table in other.tables {
            let is_same = |known: &&mut Table| known.title == table.title && known.columns == table.columns;
            match self.tables.iter_mut().find(is_same) {
                Some(known) => known.rows.extend(table.rows),
                None => self.tables.push(table),
            }
        }
        for chart in other.charts {
            match self.charts.iter_mut().find_map(|known| known.groups_beside(&chart)) {
                Some(groups) => groups.extend(chart.groups().unwrap_or_default()),
                None => self.charts.push(chart),
            }
        }
    }
}

/// Figures in rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// What it is about.
    pub title: String,
    /// From left to right.
    pub columns: Vec<Column>,
    /// As many cells as columns.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(title: &str, columns: Vec<Column>) -> Table {
        Table { title: title.into(), columns, rows: vec![] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        self.rows.push(cells.into());
    }
}

/// The head of a column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// What stands in it.
    pub name: String,
    /// The numbers' unit; empty for none.
    pub unit: String,
    /// Digits behind the point.
    pub decimals: usize,
    /// Whether it holds numbers: they stand to the right.
    pub numeric: bool,
}

impl Column {
    /// A column of texts.
    pub fn text(name: &str) -> Column {
        Column { name: name.into(), unit: String::new(), decimals: 0, numeric: false }
    }

    /// A column of numbers.
    pub fn number(name: &str, unit: &str, decimals: usize) -> Column {
        Column { name: name.into(), unit: unit.into(), decimals, numeric: true }
    }

    fn head(&self) -> String {
        if self.unit.is_empty() { self.name.clone() } else { format!("{} ({})", self.name, self.unit) }
    }
}

/// One cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    /// A figure, in the column's unit.
    Number(f64),
    /// Words.
    Text(String),
    /// Not measured.
    Nothing,
}

impl Cell {
    /// The figure, if there is one.
    pub fn figure(&self) -> Option<f64> {
        if let Cell::Number(value) = self { Some(*value) } else { None }
    }

    fn show(&self, column: &Column) -> String {
        match self {
            Cell::Number(value) => format!("{value:.*}", column.decimals),
            Cell::Text(text) => text.clone(),
            Cell::Nothing => "–".into(),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.into())
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Cell {
        if value.is_finite() { Cell::Number(value) } else { Cell::Nothing }
    }
}

/// Bars that stand together: what they are about, and their lengths, where there is a figure.
pub type Group = (String, Vec<Option<f64>>);

/// A picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Chart {
    /// The stem of its file.
    pub file: String,
    /// Above it.
    pub title: String,
    /// Along the bottom.
    pub x: Axis,
    /// Along the left side (of bars: along the bars).
    pub y: Axis,
    /// What it shows.
    pub shape: Shape,
}

/// How a chart is drawn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Shape {
    /// One horizontal bar a value, in groups, in the order of `names`.
    Bars {
        /// Of the bars within a group.
        names: Vec<String>,
        /// From top to bottom.
        groups: Vec<Group>,
    },
    /// One line a series.
    Lines {
        /// In the order of the legend.
        series: Vec<Series>,
    },
}

impl Chart {
    /// Lines over linear axes, each (name, unit).
    pub fn lines(file: &str, title: &str, x: (&str, &str), y: (&str, &str), series: Vec<Series>) -> Chart {
        Chart { file: file.into(), title: title.into(), x: x.into(), y: y.into(), shape: Shape::Lines { series } }
    }

    /// Groups of horizontal bars; `y` is their axis.
    pub fn bars(file: &str, title: &str, y: (&str, &str), names: Vec<String>, groups: Vec<Group>) -> Chart {
        let shape = Shape::Bars { names, groups };
        Chart { file: file.into(), title: title.into(), x: ("", "").into(), y: y.into(), shape }
    }

    /// The groups of bars.
    fn groups(self) -> Option<Vec<Group>> {
        if let Shape::Bars { groups, .. } = self.shape { Some(groups) } else { None }
    }

    /// The groups, if the bars of another belong into the same picture.
    fn groups_beside(&mut self, other: &Chart) -> Option<&mut Vec<Group>> {
        match (&mut self.shape, &other.shape) {
            (Shape::Bars { names, groups }, Shape::Bars { names: others, .. })
                if self.file == other.file && names == others =>
            {
                Some(groups)
            }
            _ => None,
        }
    }

    /// The same with both axes logarithmic (of bars: their axis).
    pub fn logarithmic(mut self) -> Chart {
        (self.x.logarithmic, self.y.logarithmic) = (true, true);
        self
    }
}

/// An axis.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Axis {
    /// What it measures.
    pub name: String,
    /// In what.
    pub unit: String,
    /// Whether equal ratios are equally far apart; 0 then stands at the smallest value's left.
    pub logarithmic: bool,
}

impl From<(&str, &str)> for Axis {
    fn from((name, unit): (&str, &str)) -> Axis {
        Axis { name: name.into(), unit: unit.into(), logarithmic: false }
    }
}

impl Axis {
    fn head(&self) -> String {
        if self.unit.is_empty() { self.name.clone() } else { format!("{} ({})", self.name, self.unit) }
    }
}

/// A line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// With x ascending.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// A line through these points.
    pub fn new(name: &str, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.into(), points }
    }
}
