//! A chart as SVG: drawn by plotters without fonts of this machine, small enough to be kept in the repository.

use std::io::{Error, Result};

use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Axis, Chart, Group, Series, Shape};

/// Of one bar and of the lines' area, in pixels.
const WIDTH: u32 = 760;
const HEIGHT: u32 = 380;
/// Beside the lines, for their names.
const LEGEND: u32 = 170;
const BAR: i32 = 16;
/// Where the bars begin: beside their names.
const LEFT: i32 = 250;

/// Told apart by people who don't see red and green as well (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(120, 120, 120),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// The whole document.
pub fn svg(chart: &Chart) -> Result<String> {
    let mut out = String::new();
    match &chart.shape {
        Shape::Bars { names, groups } => bars(&mut out, chart, names, groups),
        Shape::Lines { series } => lines(&mut out, chart, series),
    }?;
    Ok(out)
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::other(error.to_string())
}

fn colour(index: usize) -> RGBColor {
    COLOURS.get(index % COLOURS.len()).copied().unwrap_or(BLACK)
}

fn text(size: u32) -> TextStyle<'static> {
    // plotters divides by 1.24 in SVG, whose font size is that of the em square.
    ("sans-serif", f64::from(size) * 1.24).into_font().color(&RGBColor(40, 40, 40))
}

/// From the smallest to the largest value, with a little room.
fn range(axis: &Axis, values: impl Iterator<Item = f64> + Clone) -> std::ops::Range<f64> {
    let largest = values.clone().fold(f64::MIN_POSITIVE, f64::max);
    if !axis.logarithmic {
        return 0.0..largest * 1.05;
    }
    let smallest = values.filter(|v| *v > 0.0).fold(largest, f64::min);
    smallest / 1.3..largest * 1.3
}

fn lines(out: &mut String, chart: &Chart, series: &[Series]) -> Result<()> {
    // 0 has no place on a logarithmic axis: it gets one a tenth before the first step.
    let zero = place_of_zero(chart, series);
    let on_axis = |p: &(f64, f64)| (if p.0 <= 0.0 { zero.unwrap_or(p.0) } else { p.0 }, p.1);
    let shown = |s: &Series| Series::new(&s.name, s.points.iter().map(on_axis).collect());
    let shown: Vec<Series> = series.iter().map(shown).collect();
    let x = range(&chart.x, shown.iter().flat_map(|s| s.points.iter().map(|p| p.0)));
    let y = range(&chart.y, shown.iter().flat_map(|s| s.points.iter().map(|p| p.1)));
    match (chart.x.logarithmic, chart.y.logarithmic) {
        (false, false) => lines_over(out, chart, &shown, zero, x, y),
        (true, false) => lines_over(out, chart, &shown, zero, x.log_scale(), y),
        (false, true) => lines_over(out, chart, &shown, zero, x, y.log_scale()),
        (true, true) => lines_over(out, chart, &shown, zero, x.log_scale(), y.log_scale()),
    }
}

/// Where 0 stands on a logarithmic axis, if any line has it.
fn place_of_zero(chart: &Chart, series: &[Series]) -> Option<f64> {
    let all = || series.iter().flat_map(|s| s.points.iter().map(|p| p.0));
    let least = all().filter(|x| *x > 0.0).fold(f64::MAX, f64::min);
    (chart.x.logarithmic && all().any(|x| x <= 0.0)).then_some(least / 10.0)
}

fn lines_over<X, Y>(out: &mut String, chart: &Chart, series: &[Series], zero: Option<f64>, x: X, y: Y) -> Result<()>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let root = SVGBackend::with_string(out, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let mut area = ChartBuilder::on(&root)
        .caption(&chart.title, text(18))
        .margin(12)
        .margin_right(LEGEND)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)
        .map_err(failed)?;
    let mut mesh = area.configure_mesh();
    mesh.disable_x_mesh().light_line_style(TRANSPARENT).bold_line_style(RGBColor(225, 225, 225));
    mesh.label_style(text(12)).axis_desc_style(text(13)).x_desc(chart.x.head()).y_desc(chart.y.head());
    let x_label =
        |v: &f64| if zero.is_some_and(|zero| (v / zero - 1.0).abs() < 1e-6) { "0".into() } else { number(*v) };
    mesh.x_label_formatter(&x_label).y_label_formatter(&|v| number(*v));
    mesh.draw().map_err(failed)?;
    for (index, line) in series.iter().enumerate() {
        let style = colour(index).stroke_width(2);
        area.draw_series(LineSeries::new(line.points.iter().copied(), style)).map_err(failed)?;
        let (x, y) = ((WIDTH - LEGEND) as i32 + 12, 52 + 20 * index as i32);
        root.draw(&PathElement::new([(x, y), (x + 18, y)], style)).map_err(failed)?;
        let left = text(12).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(line.name.clone(), (x + 24, y), left)).map_err(failed)?;
    }
    root.present().map_err(failed)
}

/// Short: three digits that count.
fn number(value: f64) -> String {
    let places = if value == 0.0 || value.fract() == 0.0 {
        0
    } else {
        (2.0 - value.abs().log10().floor()).clamp(0.0, 4.0) as usize
    };
    let shown = format!("{value:.places$}");
    if shown.contains('.') { shown.trim_end_matches('0').trim_end_matches('.').to_owned() } else { shown }
}

fn bars(out: &mut String, chart: &Chart, names: &[String], groups: &[Group]) -> Result<()> {
    let rows: usize = groups.iter().map(|(_, values)| values.len()).sum();
    let keys = keys(names);
    let top = keys.last().map_or(38, |(_, y)| *y) + 22;
    let height = top + rows as i32 * BAR + groups.len() as i32 * 12 + 12;
    let root = SVGBackend::with_string(out, (WIDTH, height.unsigned_abs())).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let centred = text(18).pos(Pos::new(HPos::Center, VPos::Top));
    root.draw(&Text::new(chart.title.clone(), (WIDTH as i32 / 2, 8), centred)).map_err(failed)?;
    for (index, (name, (x, y))) in names.iter().zip(keys).enumerate() {
        root.draw(&Rectangle::new([(x, y), (x + 10, y + 10)], colour(index).filled())).map_err(failed)?;
        root.draw(&Text::new(name.clone(), (x + 15, y - 1), text(12))).map_err(failed)?;
    }
    let scale = Scale::of(&chart.y, groups);
    let mut y = top;
    for (group, values) in groups {
        let middle = y + values.len() as i32 * BAR / 2;
        let right = text(13).pos(Pos::new(HPos::Right, VPos::Center));
        root.draw(&Text::new(group.clone(), (LEFT - 10, middle), right)).map_err(failed)?;
        for (index, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let (from, to) = (y + index as i32 * BAR + 1, y + (index as i32 + 1) * BAR - 1);
            let end = LEFT + scale.pixels(*value);
            root.draw(&Rectangle::new([(LEFT, from), (end, to)], colour(index).filled())).map_err(failed)?;
            let label = format!("{} {}", number(*value), chart.y.unit);
            let left = text(12).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(label, (end + 5, (from + to) / 2), left)).map_err(failed)?;
        }
        y += values.len() as i32 * BAR + 12;
    }
    root.present().map_err(failed)
}

/// Where the names of the bars stand, one line below the other.
fn keys(names: &[String]) -> Vec<(i32, i32)> {
    let (mut x, mut y) = (LEFT, 38);
    let place = |name: &String| {
        let width = 40 + 8 * name.chars().count() as i32;
        if x > LEFT && x + width > WIDTH as i32 {
            (x, y) = (LEFT, y + 18);
        }
        let place = (x, y);
        x += width;
        place
    };
    names.iter().map(place).collect()
}

/// From a value to the length of its bar.
struct Scale {
    least: f64,
    largest: f64,
    logarithmic: bool,
}

impl Scale {
    fn of(axis: &Axis, groups: &[Group]) -> Scale {
        let values = groups.iter().flat_map(|(_, values)| values.iter().copied().flatten());
        let range = range(axis, values);
        Scale { least: range.start, largest: range.end, logarithmic: axis.logarithmic }
    }

    fn pixels(&self, value: f64) -> i32 {
        let part = match self.logarithmic {
            true => (value / self.least).ln() / (self.largest / self.least).ln(),
            false => value / self.largest,
        };
        ((WIDTH as i32 - LEFT - 90) as f64 * part.clamp(0.0, 1.0)) as i32
    }
}
