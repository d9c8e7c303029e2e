//! Plots as SVG, in colours that can be read on a light and on a dark ground.

use std::fmt::Write as _;

use crate::load::{Outcome, SAMPLE};

const PANEL_WIDTH: f64 = 350.0;
const PANEL_HEIGHT: f64 = 190.0;
const LEFT: f64 = 62.0;
const TOP: f64 = 74.0;
const BETWEEN: f64 = 28.0;
const INK: &str = "#7d8794";
const COLOURS: [&str; 3] = ["#e5484d", "#3b82f6", "#2f9e6b"];

/// One panel: whose it is, and how it went.
pub(crate) struct Panel<'a> {
    pub(crate) title: String,
    pub(crate) outcome: &'a Outcome,
}

/// Requests a second at each backend over time, a panel beside the other. `marks` are moments in
/// seconds with words for them.
pub(crate) fn requests(
    title: &str,
    names: [&str; 3],
    marks: &[(f64, &str)],
    panels: &[Panel<'_>],
) -> String {
    let count = panels.len() as f64;
    let width = LEFT + count * PANEL_WIDTH + (count - 1.0) * BETWEEN + 16.0;
    let height = TOP + PANEL_HEIGHT + 48.0;
    let most = panels
        .iter()
        .flat_map(|panel| panel.outcome.samples.iter().flatten())
        .map(|taken| *taken as f64 / SAMPLE.as_secs_f64())
        .fold(1.0, f64::max);
    let step = step_of(most);
    let top = (most / step).ceil() * step;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\" role=\"img\">\n\
         <title>{title}</title>\n\
         <text x=\"{LEFT}\" y=\"18\" font-size=\"14\" font-weight=\"bold\">{title}</text>\n"
    );
    let mut at = LEFT;
    for (name, colour) in names.iter().zip(COLOURS) {
        let _ = writeln!(
            svg,
            "<rect x=\"{at}\" y=\"31\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"37\">{name}</text>",
            at + 19.0
        );
        at += 36.0 + name.len() as f64 * 6.5;
    }
    for (place, panel) in panels.iter().enumerate() {
        let left = LEFT + place as f64 * (PANEL_WIDTH + BETWEEN);
        frame(&mut svg, left, (top, step), panel, place == 0);
        let seconds = panel.outcome.samples.len() as f64 * SAMPLE.as_secs_f64();
        for (moment, word) in marks {
            let x = left + PANEL_WIDTH * moment / seconds;
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {TOP}v{PANEL_HEIGHT}\" stroke=\"{INK}\" \
                 stroke-dasharray=\"3 3\"/><text x=\"{:.1}\" y=\"{}\" font-size=\"11\">{word}</text>",
                x + 4.0,
                TOP + 11.0
            );
        }
        for (backend, colour) in COLOURS.iter().enumerate() {
            line(&mut svg, left, top, panel.outcome, backend, colour);
        }
    }
    let _ = writeln!(
        svg,
        "<text transform=\"translate(13 {}) rotate(-90)\" text-anchor=\"middle\">requests per \
         second</text>",
        TOP + PANEL_HEIGHT / 2.0
    );
    svg.push_str("</svg>\n");
    svg
}

/// The title, the axes and their words.
fn frame(svg: &mut String, left: f64, (top, step): (f64, f64), panel: &Panel<'_>, is_first: bool) {
    let bottom = TOP + PANEL_HEIGHT;
    let _ = writeln!(
        svg,
        "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>",
        TOP - 12.0,
        panel.title
    );
    for tick in 0..=(top / step).round() as u32 {
        let value = f64::from(tick) * step;
        let y = bottom - PANEL_HEIGHT * value / top;
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {y:.1}h{PANEL_WIDTH}\" stroke=\"{INK}\" stroke-opacity=\"0.3\"/>"
        );
        if is_first {
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
                left - 6.0,
                y + 4.0
            );
        }
    }
    let seconds = panel.outcome.samples.len() as f64 * SAMPLE.as_secs_f64();
    let every = if seconds > 10.0 { 2 } else { 1 };
    for second in (0..=seconds as u32).step_by(every) {
        let x = left + PANEL_WIDTH * f64::from(second) / seconds;
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{second}</text>",
            bottom + 16.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">seconds</text>",
        left + PANEL_WIDTH / 2.0,
        bottom + 34.0
    );
}

fn line(svg: &mut String, left: f64, top: f64, outcome: &Outcome, backend: usize, colour: &str) {
    let samples = &outcome.samples;
    let mut path = String::new();
    for (at, sample) in samples.iter().enumerate() {
        let x = left + PANEL_WIDTH * (at as f64 + 0.5) / samples.len() as f64;
        let rate = sample[backend] as f64 / SAMPLE.as_secs_f64();
        let y = TOP + PANEL_HEIGHT * (1.0 - rate / top);
        let _ = write!(path, "{}{x:.1} {y:.1}", if at == 0 { 'M' } else { 'L' });
    }
    let _ = writeln!(
        svg,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" \
         stroke-linejoin=\"round\"/>"
    );
}

/// A round step that makes at most six ticks.
fn step_of(most: f64) -> f64 {
    let mut step = 1.0;
    loop {
        for factor in [1.0, 2.0, 5.0] {
            if most / (step * factor) <= 6.0 {
                return step * factor;
            }
        }
        step *= 10.0;
    }
}
