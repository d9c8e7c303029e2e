//! Curves over a logarithmic axis as SVG, in colours that can be read on a light and on a dark
//! ground. One panel beside the other, each with its own vertical axis.

use std::fmt::Write as _;

const PANEL_WIDTH: f64 = 330.0;
const PANEL_HEIGHT: f64 = 190.0;
const LEFT: f64 = 66.0;
const TOP: f64 = 78.0;
const BETWEEN: f64 = 74.0;
const INK: &str = "#7d8794";
const COLOURS: [&str; 5] = ["#e5484d", "#3b82f6", "#2f9e6b", "#c17d10", "#8b5cf6"];

/// One curve: its name, and its points.
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// One panel. The vertical axis begins at 0, or is logarithmic.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    pub(crate) logarithmic: bool,
    pub(crate) curves: Vec<Curve>,
}

/// The panels under a title; the curves of all panels have the names of the first one's.
pub(crate) fn draw(title: &str, horizontal: &str, panels: &[Panel]) -> String {
    let count = panels.len() as f64;
    let width = LEFT + count * PANEL_WIDTH + (count - 1.0) * BETWEEN + 20.0;
    let height = TOP + PANEL_HEIGHT + 48.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\" role=\"img\">\n\
         <title>{title}</title>\n\
         <text x=\"{LEFT}\" y=\"18\" font-size=\"14\" font-weight=\"bold\">{title}</text>\n"
    );
    let mut at = LEFT;
    for (curve, colour) in panels.iter().flat_map(|panel| &panel.curves).zip(COLOURS) {
        if panels[0].curves.iter().all(|known| known.name != curve.name) {
            break;
        }
        let _ = writeln!(
            svg,
            "<rect x=\"{at:.0}\" y=\"31\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{:.0}\" y=\"37\">{}</text>",
            at + 19.0,
            curve.name
        );
        at += 40.0 + curve.name.len() as f64 * 6.5;
        if curve.name == panels[0].curves[panels[0].curves.len() - 1].name {
            break;
        }
    }
    for (place, panel) in panels.iter().enumerate() {
        let left = LEFT + place as f64 * (PANEL_WIDTH + BETWEEN);
        draw_panel(&mut svg, left, horizontal, panel);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_panel(svg: &mut String, left: f64, horizontal: &str, panel: &Panel) {
    let all = || panel.curves.iter().flat_map(|curve| &curve.points);
    let (x_min, x_max) = bounds(all().map(|point| point.0));
    let (y_min, y_max) = bounds(all().map(|point| point.1));
    let bottom = TOP + PANEL_HEIGHT;
    let x_of = |x: f64| left + PANEL_WIDTH * (x / x_min).ln() / (x_max / x_min).ln();
    let step = step_of(y_max);
    let top = (y_max / step).ceil() * step;
    let (low, high) = (y_min.log10().floor(), y_max.log10().ceil());
    let y_of = |y: f64| {
        let share =
            if panel.logarithmic { (y.log10() - low) / (high - low).max(1.0) } else { y / top };
        bottom - PANEL_HEIGHT * share
    };
    let _ = writeln!(
        svg,
        "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>\
         <text transform=\"translate({:.0} {:.0}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        TOP - 12.0,
        panel.title,
        left - 50.0,
        TOP + PANEL_HEIGHT / 2.0,
        panel.unit
    );
    let ticks: Vec<f64> = if panel.logarithmic {
        (low as i32..=high as i32).map(|power| 10_f64.powi(power)).collect()
    } else {
        (0..=(top / step).round() as u32).map(|tick| f64::from(tick) * step).collect()
    };
    for tick in ticks {
        let y = y_of(tick);
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {y:.1}h{PANEL_WIDTH}\" stroke=\"{INK}\" stroke-opacity=\"0.3\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            y + 4.0,
            short(tick)
        );
    }
    let mut marks: Vec<f64> = all().map(|point| point.0).collect();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    let every = marks.len().div_ceil(7);
    for x in marks.iter().step_by(every) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            x_of(*x),
            bottom + 16.0,
            short(*x)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{horizontal}</text>",
        left + PANEL_WIDTH / 2.0,
        bottom + 34.0
    );
    for (curve, colour) in panel.curves.iter().zip(COLOURS) {
        let mut path = String::new();
        let drawn = curve.points.iter().filter(|(_, y)| !panel.logarithmic || *y > 0.0);
        for (at, (x, y)) in drawn.enumerate() {
            let way = if at == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{way}{:.1} {:.1}", x_of(*x), y_of(*y));
        }
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
             stroke-linejoin=\"round\"/>"
        );
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    // A logarithmic axis has no place for 0.
    values
        .filter(|value| *value > 0.0)
        .fold((f64::INFINITY, 0.0), |(min, max), value| (min.min(value), max.max(value)))
}

/// A figure with at most a letter for its thousands.
fn short(value: f64) -> String {
    let (value, letter) = match value {
        value if value >= 1e6 => (value / 1e6, "M"),
        value if value >= 1e4 => (value / 1e3, "k"),
        value => (value, ""),
    };
    format!("{}{letter}", (value * 1e3).round() / 1e3)
}

/// A round step that makes at most six ticks.
fn step_of(most: f64) -> f64 {
    let mut step = 10_f64.powf(most.log10().floor() - 1.0);
    loop {
        for factor in [1.0, 2.0, 5.0] {
            if most / (step * factor) <= 6.0 {
                return step * factor;
            }
        }
        step *= 10.0;
    }
}
