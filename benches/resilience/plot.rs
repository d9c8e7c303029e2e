//! Lines over time as SVG, panels beside each other, in colours that can be read on a light and on a
//! dark ground.

use std::fmt::Write as _;

const PANEL_WIDTH: f64 = 350.0;
const PANEL_HEIGHT: f64 = 190.0;
const LEFT: f64 = 62.0;
const TOP: f64 = 74.0;
const BETWEEN: f64 = 28.0;
const INK: &str = "#7d8794";
const COLOURS: [&str; 4] = ["#3b82f6", "#e5484d", "#2f9e6b", "#b7791f"];

/// What is drawn: everything that two panels share.
pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    /// What the values are.
    pub(crate) unit: &'a str,
    /// Names of the lines, at most four, in the order of the panels' lines.
    pub(crate) lines: &'a [&'a str],
    /// Moments, in seconds, with words for them.
    pub(crate) marks: &'a [(f64, &'a str)],
    /// How long the whole took, in seconds.
    pub(crate) seconds: f64,
}

/// One panel: its title, and the values of each line at even distances.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) lines: Vec<Vec<f64>>,
}

impl Plot<'_> {
    /// The picture as text.
    pub(crate) fn draw(&self, panels: &[Panel]) -> String {
        let count = panels.len() as f64;
        let width = LEFT + count * PANEL_WIDTH + (count - 1.0) * BETWEEN + 16.0;
        let height = TOP + PANEL_HEIGHT + 48.0;
        let values = panels.iter().flat_map(|panel| panel.lines.iter().flatten());
        let most = values.fold(1.0, |most: f64, value| most.max(*value));
        let step = step_of(most);
        let top = (most / step).ceil() * step;
        let Self { title, unit, .. } = self;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
             font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\" role=\"img\">\n\
             <title>{title}</title>\n\
             <text x=\"{LEFT}\" y=\"18\" font-size=\"14\" font-weight=\"bold\">{title}</text>\n"
        );
        self.legend(&mut svg);
        for (place, panel) in panels.iter().enumerate() {
            let left = LEFT + place as f64 * (PANEL_WIDTH + BETWEEN);
            self.frame(&mut svg, left, (top, step), &panel.title, place == 0);
            for (values, colour) in panel.lines.iter().zip(COLOURS) {
                line(&mut svg, left, top, values, colour);
            }
        }
        let middle = TOP + PANEL_HEIGHT / 2.0;
        let _ = writeln!(
            svg,
            "<text transform=\"translate(13 {middle}) rotate(-90)\" \
             text-anchor=\"middle\">{unit}</text>"
        );
        svg.push_str("</svg>\n");
        svg
    }

    fn legend(&self, svg: &mut String) {
        let mut at = LEFT;
        for (name, colour) in self.lines.iter().zip(COLOURS) {
            let _ = writeln!(
                svg,
                "<rect x=\"{at}\" y=\"31\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\
                 <text x=\"{}\" y=\"37\">{name}</text>",
                at + 19.0
            );
            at += 40.0 + name.len() as f64 * 6.5;
        }
    }

    /// The title, the axes, their words and the marks.
    fn frame(
        &self,
        svg: &mut String,
        left: f64,
        (top, step): (f64, f64),
        title: &str,
        is_first: bool,
    ) {
        let bottom = TOP + PANEL_HEIGHT;
        let _ = writeln!(
            svg,
            "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{title}</text>",
            TOP - 12.0
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
        let every = step_of(self.seconds).max(1.0) as usize;
        for second in (0..=self.seconds as usize).step_by(every) {
            let x = left + PANEL_WIDTH * second as f64 / self.seconds;
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
        // Each a line lower, so that words do not stand in each other.
        for (place, (moment, word)) in self.marks.iter().enumerate() {
            let x = left + PANEL_WIDTH * moment / self.seconds;
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {TOP}v{PANEL_HEIGHT}\" stroke=\"{INK}\" \
                 stroke-dasharray=\"3 3\"/><text x=\"{:.1}\" y=\"{}\" font-size=\"11\">{word}</text>",
                x + 4.0,
                TOP + 11.0 + 12.0 * place as f64
            );
        }
    }
}

fn line(svg: &mut String, left: f64, top: f64, values: &[f64], colour: &str) {
    let mut path = String::new();
    for (at, value) in values.iter().enumerate() {
        let x = left + PANEL_WIDTH * (at as f64 + 0.5) / values.len() as f64;
        let y = TOP + PANEL_HEIGHT * (1.0 - value / top);
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
