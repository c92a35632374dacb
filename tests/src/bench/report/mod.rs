//! What a case hands back, as plain data, and the three forms it takes: on the terminal, stored, and drawn.

use serde::{Deserialize, Serialize};

pub mod plot;
pub mod store;
pub mod text;

/// The outcome of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The case's name.
    pub case: String,
    /// One line.
    pub title: String,
    /// What the figures need to be understood, as Markdown; may be empty.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Figures.
    pub tables: Vec<Table>,
    /// Pictures.
    pub charts: Vec<Chart>,
}

impl Report {
    /// An empty report.
    pub fn new(case: &str, title: &str) -> Report {
        Report { case: case.into(), title: title.into(), notes: vec![], tables: vec![], charts: vec![] }
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
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// One horizontal bar a value, in groups: (group, values in the order of `names`).
    Bars {
        /// Of the bars within a group.
        names: Vec<String>,
        /// From top to bottom.
        groups: Vec<(String, Vec<f64>)>,
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
    pub fn bars(
        file: &str,
        title: &str,
        y: (&str, &str),
        names: Vec<String>,
        groups: Vec<(String, Vec<f64>)>,
    ) -> Chart {
        let shape = Shape::Bars { names, groups };
        Chart { file: file.into(), title: title.into(), x: ("", "").into(), y: y.into(), shape }
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
