//! Tables for people: aligned columns, bytes as text, durations as `4.2s`.
//!
//! Colour is added only where the caller says that a terminal reads.

use std::fmt::Write as _;

use prost_types::{Duration, Timestamp};

/// How a cell is painted on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    Plain,
    Good,
    Bad,
}

#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    pub(crate) fn painted(text: impl ToString, paint: Paint) -> Self {
        Self { text: text.to_string(), paint }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(value: T) -> Self {
        Self::painted(value, Paint::Plain)
    }
}

/// Rows under a header.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        assert_eq!(N, self.header.len(), "a row has a cell under each header");
        self.rows.push(cells.into());
    }

    /// The table with a line end after each row. Nothing is padded at a row's end.
    pub(crate) fn render(&self, colour: bool) -> String {
        let mut widths: Vec<usize> = self.header.iter().map(|name| width(name)).collect();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                widths[column] = widths[column].max(width(&cell.text));
            }
        }
        let mut out = String::new();
        let header: Vec<Cell> = self.header.iter().map(Cell::from).collect();
        render_row(&mut out, &header, &widths, |_| if colour { "\x1b[1m" } else { "" });
        for row in &self.rows {
            render_row(&mut out, row, &widths, |paint| match paint {
                Paint::Good if colour => "\x1b[32m",
                Paint::Bad if colour => "\x1b[31m",
                _ => "",
            });
        }
        out
    }
}

fn render_row(
    out: &mut String,
    row: &[Cell],
    widths: &[usize],
    code: impl Fn(Paint) -> &'static str,
) {
    for (column, cell) in row.iter().enumerate() {
        let code = code(cell.paint);
        let reset = if code.is_empty() { "" } else { "\x1b[0m" };
        let last = column + 1 == row.len();
        let padding = if last { 0 } else { widths[column] - width(&cell.text) + 2 };
        write!(out, "{code}{}{reset}{:padding$}", cell.text, "").expect("a string takes it");
    }
    out.push('\n');
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// Bytes for a person: UTF-8 as it is, but for control characters; anything else escaped.
pub(crate) fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => printable(text),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

/// Text for a person: control characters escaped, so that a value cannot break a row.
pub(crate) fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    text.chars().map(escape).collect()
}

/// A duration such as `250ms`, `4.2s`, `2m30s` or `1h5m`; `-` where there is none.
pub(crate) fn duration(duration: Option<&Duration>) -> String {
    let Some(span) = duration.and_then(|d| std::time::Duration::try_from(*d).ok()) else {
        return "-".to_owned();
    };
    span_text(span)
}

/// As [`duration`].
pub(crate) fn span_text(span: std::time::Duration) -> String {
    let seconds = span.as_secs();
    if seconds == 0 && span.subsec_millis() > 0 {
        return format!("{}ms", span.subsec_millis());
    }
    if seconds < 120 {
        let tenths = span.subsec_millis() / 100;
        return if tenths == 0 { format!("{seconds}s") } else { format!("{seconds}.{tenths}s") };
    }
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let parts = [(hours, 'h'), (minutes, 'm'), (seconds, 's')];
    let mut out = String::new();
    for (count, unit) in parts.into_iter().filter(|(count, _)| *count > 0) {
        write!(out, "{count}{unit}").expect("a string takes it");
    }
    out
}

/// A time in UTC; `-` where there is none.
pub(crate) fn time(time: Option<&Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// An id of which 0 is none.
pub(crate) fn id(id: u64) -> String {
    if id == 0 { "-".to_owned() } else { id.to_string() }
}

/// Text that may be empty.
pub(crate) fn optional(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { printable(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_rows_end_without_blanks() {
        let mut table = Table::new(&["NAME", "N", "LAST"]);
        table.row(["a".into(), 10.into(), "x".into()]);
        table.row(["größer".into(), 1.into(), "".into()]);
        assert_eq!(table.render(false), "NAME    N   LAST\na       10  x\ngrößer  1   \n");
    }

    #[test]
    fn colour_does_not_move_columns_and_is_absent_in_a_pipe() {
        let mut table = Table::new(&["ROLE", "ID"]);
        table.row([Cell::painted("leader", Paint::Good), 1.into()]);
        assert!(!table.render(false).contains('\x1b'));
        let plain: String = ["\x1b[1m", "\x1b[32m", "\x1b[0m"]
            .iter()
            .fold(table.render(true), |text, code| text.replace(code, ""));
        assert_eq!(plain, table.render(false));
    }

    #[test]
    fn bytes_are_text_where_they_are_utf8_and_never_break_a_row() {
        assert_eq!(text("grün".as_bytes()), "grün");
        assert_eq!(text(b"two\nlines"), "two\\nlines");
        assert_eq!(text(b"\xff\x01a"), "\\xff\\x01a");
    }

    #[test]
    fn durations_are_short() {
        let of = |millis| span_text(std::time::Duration::from_millis(millis));
        assert_eq!(
            [of(0), of(250), of(4_200), of(30_000), of(119_900), of(150_000), of(3_900_000)],
            ["0s", "250ms", "4.2s", "30s", "119.9s", "2m30s", "1h5m"]
        );
        assert_eq!(duration(None), "-");
    }
}
