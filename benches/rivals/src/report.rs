//! The table: medians over the rounds, the ratio of each round, and what was wanted.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    load::Measured,
    options::{System, Workload},
};

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// Microseconds of one fsync.
    Fsync,
    /// Operations a second with so many clients.
    Rate(Workload, usize),
    /// Puts a second through one stream.
    PutStream,
    /// Messages a second through one stream of the echo.
    EchoStream,
    /// Milliseconds from the kill to the next accepted write.
    Failover,
    /// Megabytes resident, idle.
    Idle,
    /// Megabytes resident after the load.
    Loaded,
}

/// What the project wants of a line.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// At least this many times the rival, as the median of ratios.
    Times(f64),
    /// At least this much.
    AtLeast(f64),
    /// At most the rival's, as the median of ratios.
    AtMostRival,
    /// At most this much, for the largest member.
    AtMost(f64),
    /// The median below the first, the worst below the second.
    Below(f64, f64),
    Nothing,
}

impl Cell {
    pub fn name(self) -> String {
        match self {
            Self::Fsync => "fsync of 512 B, us".to_owned(),
            Self::Rate(workload, clients) => {
                let name = match workload {
                    Workload::Put => "puts/s",
                    Workload::Get => "linearizable reads/s",
                    Workload::Lock => "lock+release pairs/s",
                    Workload::Handover => "hand-overs/s",
                    _ => "bare echo/s",
                };
                format!("{name}, {clients}")
            }
            Self::PutStream => "puts/s through one stream".to_owned(),
            Self::EchoStream => "bare echo, one stream/s".to_owned(),
            Self::Failover => "failover, ms".to_owned(),
            Self::Idle => "resident idle, MB".to_owned(),
            Self::Loaded => "resident after load, MB".to_owned(),
        }
    }

    const fn wanted(self) -> Wanted {
        use Workload::{Get, Handover, Lock, Put};
        match self {
            Self::Rate(Put, 1 | 256) => Wanted::Times(1.6),
            Self::Rate(Put | Get, 64) | Self::Rate(Get, 256) => Wanted::Times(2.0),
            Self::Rate(Get, 1) => Wanted::Times(1.4),
            Self::Rate(Lock, 1) => Wanted::Times(1.8),
            Self::Rate(Lock, 64) | Self::Rate(Handover, 64) => Wanted::Times(3.0),
            Self::Rate(Handover, 2) => Wanted::Times(20.0),
            Self::Rate(Handover, 16) => Wanted::Times(6.0),
            Self::PutStream => Wanted::AtLeast(100_000.0),
            Self::Failover => Wanted::Below(250.0, 600.0),
            Self::Idle => Wanted::AtMost(20.0),
            Self::Loaded => Wanted::AtMostRival,
            _ => Wanted::Nothing,
        }
    }
}

/// What a run found.
#[derive(Debug)]
pub struct Report {
    about: Vec<String>,
    references: BTreeMap<Cell, Vec<f64>>,
    figures: BTreeMap<Cell, BTreeMap<System, Vec<f64>>>,
    latencies: BTreeMap<(Cell, System), Vec<Value>>,
}

impl Report {
    pub const fn new(about: Vec<String>) -> Self {
        Self {
            about,
            references: BTreeMap::new(),
            figures: BTreeMap::new(),
            latencies: BTreeMap::new(),
        }
    }

    pub fn reference(&mut self, cell: Cell, figure: f64) {
        self.references.entry(cell).or_default().push(figure);
    }

    pub fn add(&mut self, system: System, cell: Cell, figure: f64, measured: Option<&Measured>) {
        self.figures.entry(cell).or_default().entry(system).or_default().push(figure);
        if let Some(Measured { p50_micros, p99_micros, errors, .. }) = measured {
            let told =
                json!({ "p50Micros": p50_micros, "p99Micros": p99_micros, "errors": errors });
            self.latencies.entry((cell, system)).or_default().push(told);
        }
    }

    pub fn markdown(&self) -> String {
        let mut lines: Vec<_> = self.about.iter().map(|line| format!("* {line}")).collect();
        if !self.figures.is_empty() {
            lines.push(String::new());
            lines.push("| | quorate | etcd | ratio (least..most) | wanted | |".to_owned());
            lines.push("|---|--:|--:|--:|--:|---|".to_owned());
            lines.extend(self.figures.keys().map(|cell| self.row(*cell)));
        }
        if !self.references.is_empty() {
            lines.push(String::new());
            lines.push("| for reference | median (least..most) |".to_owned());
            lines.push("|---|--:|".to_owned());
            for (cell, figures) in &self.references {
                let (least, most) = ends(figures);
                let told = [median(figures), least, most].map(number);
                let [median, least, most] = told;
                lines.push(format!("| {} | {median} ({least}..{most}) |", cell.name()));
            }
        }
        lines.join("\n")
    }

    fn row(&self, cell: Cell) -> String {
        let told = |system| {
            let figures = self.of(cell, system);
            if figures.is_empty() {
                return "–".to_owned();
            }
            let median = number(median(figures));
            if cell == Cell::Failover {
                format!("{median}, worst {}", number(ends(figures).1))
            } else {
                median
            }
        };
        let ratios = self.ratios(cell);
        let ratio = if ratios.is_empty() {
            "–".to_owned()
        } else {
            let (least, most) = ends(&ratios);
            format!("{:.2} ({least:.2}..{most:.2})", median(&ratios))
        };
        let (wanted, reached) = self.verdict(cell, &ratios);
        let reached = match reached {
            None => "",
            Some(true) => "reached",
            Some(false) => "**not reached**",
        };
        let (quorate, etcd) = (told(System::Quorate), told(System::Etcd));
        format!("| {} | {quorate} | {etcd} | {ratio} | {wanted} | {reached} |", cell.name())
    }

    fn verdict(&self, cell: Cell, ratios: &[f64]) -> (String, Option<bool>) {
        let own = self.of(cell, System::Quorate);
        let compared = (!ratios.is_empty()).then(|| median(ratios));
        let alone = (!own.is_empty()).then(|| (median(own), ends(own).1));
        match cell.wanted() {
            Wanted::Nothing => (String::new(), None),
            Wanted::Times(times) => {
                (format!("{times:.1} times"), compared.map(|ratio| ratio >= times))
            }
            Wanted::AtMostRival => ("at most etcd's".to_owned(), compared.map(|r| r <= 1.0)),
            Wanted::AtLeast(least) => (format!("{least}"), alone.map(|(m, _)| m >= least)),
            Wanted::AtMost(most) => (format!("at most {most}"), alone.map(|(_, m)| m <= most)),
            Wanted::Below(middle, worst) => (
                format!("below {middle}, worst below {worst}"),
                alone.map(|(median, most)| median < middle && most < worst),
            ),
        }
    }

    /// Quorate's figure over etcd's, of each round; of failovers the medians only.
    fn ratios(&self, cell: Cell) -> Vec<f64> {
        let (own, other) = (self.of(cell, System::Quorate), self.of(cell, System::Etcd));
        if own.is_empty() || other.is_empty() {
            return Vec::new();
        }
        if cell == Cell::Failover {
            return vec![median(own) / median(other)];
        }
        own.iter().zip(other).map(|(own, other)| own / other).collect()
    }

    fn of(&self, cell: Cell, system: System) -> &[f64] {
        let figures = self.figures.get(&cell).and_then(|systems| systems.get(&system));
        figures.map_or(&[], Vec::as_slice)
    }

    pub fn json(&self) -> Value {
        let rows: Vec<_> = self.figures.keys().map(|cell| self.row_json(*cell)).collect();
        let references: serde_json::Map<_, _> =
            self.references.iter().map(|(cell, figures)| (cell.name(), json!(figures))).collect();
        json!({ "about": self.about, "rows": rows, "references": references })
    }

    fn row_json(&self, cell: Cell) -> Value {
        let ratios = self.ratios(cell);
        let (wanted, reached) = self.verdict(cell, &ratios);
        let side = |system| {
            let figures = self.of(cell, system);
            json!({
                "rounds": figures,
                "median": (!figures.is_empty()).then(|| median(figures)),
                "latencies": self.latencies.get(&(cell, system)),
            })
        };
        json!({
            "name": cell.name(),
            "quorate": side(System::Quorate),
            "etcd": side(System::Etcd),
            "ratios": ratios,
            "medianOfRatios": (!ratios.is_empty()).then(|| median(&ratios)),
            "wanted": wanted,
            "reached": reached,
        })
    }
}

/// The middle one, or the mean of the two in the middle.
fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

fn ends(figures: &[f64]) -> (f64, f64) {
    figures.iter().fold((f64::INFINITY, 0.0), |(least, most), f| (least.min(*f), most.max(*f)))
}

/// Three digits or more.
fn number(figure: f64) -> String {
    if figure < 100.0 { format!("{figure:.1}") } else { format!("{figure:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(own: &[f64], other: &[f64]) -> Report {
        let mut report = Report::new(Vec::new());
        for (system, figures) in [(System::Quorate, own), (System::Etcd, other)] {
            for figure in figures {
                report.add(system, Cell::Rate(Workload::Put, 64), *figure, None);
            }
        }
        report
    }

    #[test]
    fn the_median_of_ratios_is_judged_and_not_the_ratio_of_medians() {
        let lucky = report(&[100.0, 30.0, 25.0], &[10.0, 20.0, 20.0]);
        let row = lucky.row(Cell::Rate(Workload::Put, 64));
        assert_eq!(
            row,
            "| puts/s, 64 | 30.0 | 20.0 | 1.50 (1.25..10.00) | 2.0 times | **not reached** |"
        );
    }

    #[test]
    fn one_system_alone_has_no_ratio_and_no_verdict() {
        let row = report(&[120.0], &[]).row(Cell::Rate(Workload::Put, 64));
        assert_eq!(row, "| puts/s, 64 | 120 | – | – | 2.0 times |  |");
    }
}
