//! `quorate check`: judges histories of calls and answers, and draws what is wrong with them.
//!
//! Exit codes are those of a filter: 0 for legal, 1 for illegal, 3 where nobody can tell; 2 where
//! a file cannot be read. The checkers stand in `sim::checker`; files and clocks stay here.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    cli::{
        Error, Globals, OutputFormat,
        show::{Show, Shown},
        table::{Cell, Paint, Table, printable},
    },
    server::parse_duration,
    sim::{
        checker::{Budget, Counts, Report, Verdict, black_box, check_form, picture, witness},
        history::{History, HistoryError},
    },
    types::Duration,
};

/// Parts beyond these are summed up in a table, where they are legal.
const PARTS_SHOWN_MAX: usize = 20;
/// The most broken rules that a table tells.
const FINDINGS_SHOWN_MAX: usize = 10;

/// Flags of `check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quorate check history.jsonl\n  quorate check --oracle blackbox --time-limit 10s jepsen.log\n  quorate check -o json - < history.jsonl\n\nExit code: 0 legal, 1 illegal, 3 unknown, 2 for a file that cannot be read.\nThe format is described in docs/history.md."
)]
pub struct CheckArgs {
    /// Histories as JSON lines, or logs of Jepsen's register tests; - reads standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Who judges: the revisions in the answers, a search for any legal order, or both
    #[arg(long, value_enum, default_value_t = Oracle::Both, hide_possible_values = true)]
    #[arg(value_name = "witness|blackbox|both")]
    oracle: Oracle,
    /// How long the search may take for each file; what is then open is unknown
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "60s")]
    time_limit: Duration,
    /// Where the timeline is drawn [default: FILE.html where it is illegal]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Who judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Oracle {
    /// By the revisions in the answers
    Witness,
    /// By a search
    Blackbox,
    /// By both
    Both,
}

/// A judged history, as JSON shows it.
#[derive(Serialize)]
struct Judged<'a> {
    file: String,
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    html: Option<String>,
}

impl CheckArgs {
    pub(crate) fn run(&self, globals: &Globals) -> Result<u8, Error> {
        if self.html.is_some() && self.files.len() > 1 {
            return Err(Error::Usage("--html takes the timeline of one FILE".into()));
        }
        let show = Show::new(globals.output.unwrap_or_default());
        let mut worst = 0;
        for file in &self.files {
            let code = match read(file) {
                Ok(history) => self.check(file, &history, show)?,
                Err(error) => {
                    error.report();
                    error.exit_code()
                }
            };
            worst = worse(worst, code);
        }
        Ok(worst)
    }

    fn check(&self, file: &Path, history: &History, show: Show) -> Result<u8, Error> {
        let report = self.judge(history);
        let html = self.draw(file, history, &report)?;
        let judged = Judged { file: name(file), report: &report, html };
        let json = |pretty: bool| {
            let text = if pretty {
                serde_json::to_string_pretty(&judged)
            } else {
                serde_json::to_string(&judged)
            };
            text.expect("a report is plain data")
        };
        match show.format {
            OutputFormat::Json => show.line(&json(self.files.len() == 1))?,
            OutputFormat::Jsonl => show.line(&json(false))?,
            OutputFormat::Table => self.tell(&judged, show)?,
        }
        Ok(match report.verdict {
            Verdict::Legal => 0,
            Verdict::Illegal => 1,
            Verdict::Unknown => 3,
        })
    }

    #[expect(clippy::disallowed_methods, reason = "a person's limit of time")]
    fn judge(&self, history: &History) -> Report {
        let end = std::time::Instant::now() + self.time_limit;
        let mut budget = Budget::until(|| std::time::Instant::now() >= end);
        match self.oracle {
            Oracle::Witness => witness(history),
            Oracle::Blackbox => black_box(history, &mut budget),
            Oracle::Both => witness(history).with(black_box(history, &mut budget)),
        }
    }

    /// Draws the timeline where that is asked for, or called for.
    fn draw(
        &self,
        file: &Path,
        history: &History,
        report: &Report,
    ) -> Result<Option<String>, Error> {
        let beside = || {
            let mut beside = file.as_os_str().to_owned();
            beside.push(".html");
            let illegal = report.verdict == Verdict::Illegal;
            (illegal && file != Path::new("-")).then(|| PathBuf::from(beside))
        };
        let Some(path) = self.html.clone().or_else(beside) else { return Ok(None) };
        let title = match history.header.source.as_str() {
            "" => name(file),
            source => format!("{}, {source}", name(file)),
        };
        let page = picture(history, report, &title);
        match std::fs::write(&path, page) {
            Ok(()) => Ok(Some(path.display().to_string())),
            Err(error) if self.html.is_none() => {
                let path = path.display();
                eprintln!("note: cannot write {path}: {error}; name another place with --html");
                Ok(None)
            }
            Err(error) => Err(Error::failed(format!("cannot write {}: {error}", path.display()))),
        }
    }

    fn tell(&self, judged: &Judged<'_>, show: Show) -> Result<(), Error> {
        let report = judged.report;
        let verdict = match report.verdict {
            Verdict::Legal => "legal",
            Verdict::Illegal => "illegal",
            Verdict::Unknown => "unknown",
        };
        show.line(&format!("{}: {verdict}", printable(&judged.file)))?;
        show.line(&format!("  {}", counted(&report.counts)))?;
        let mut table = Table::new(&["  PART", "OPERATIONS", "VERDICT"]);
        let (mut legal, mut shown) = (0, 0);
        for part in &report.parts {
            let paint = match part.verdict {
                Verdict::Legal => Paint::Good,
                _ => Paint::Bad,
            };
            let (verdict, why) = match (part.verdict, &part.why) {
                (Verdict::Legal, _) => ("legal".to_owned(), None),
                (Verdict::Illegal, _) => ("illegal".to_owned(), None),
                (Verdict::Unknown, why) => ("unknown".to_owned(), why.as_deref()),
            };
            if part.verdict == Verdict::Legal && shown >= PARTS_SHOWN_MAX {
                legal += 1;
                continue;
            }
            shown += 1;
            let verdict = why.map_or(verdict.clone(), |why| format!("{verdict}: {why}"));
            table.row([
                format!("  {}", printable(&part.name)).into(),
                part.operations.into(),
                Cell::painted(verdict, paint),
            ]);
        }
        if shown > 0 {
            show.shown(&Shown::Table(table))?;
        }
        if legal > 0 {
            show.line(&format!("  and {legal} more, all legal"))?;
        }
        for found in report.findings.iter().take(FINDINGS_SHOWN_MAX) {
            show.line(&format!("  broken: {}\n    {}", found.rule, printable(&found.words)))?;
            if !found.legal.is_empty() {
                show.line(&format!("    legal there: {}", printable(&found.legal.join(", or "))))?;
            }
        }
        let more = report.findings.len().saturating_sub(FINDINGS_SHOWN_MAX);
        if more > 0 {
            show.line(&format!("  and {more} more"))?;
        }
        if let Some(html) = &judged.html {
            show.line(&format!("  timeline: {html}"))?;
        }
        Ok(())
    }
}

fn counted(counts: &Counts) -> String {
    let mut text = format!(
        "{} operations: {} carried out, {} refused, {} of unknown outcome",
        counts.operations, counts.ok, counts.refused, counts.unknown
    );
    for (count, what) in [
        (counts.placed, "of them seen"),
        (counts.told_changes, "changes told to watches"),
        (counts.told_events, "events told to subscriptions"),
        (counts.overlaps, "overlaps of holders"),
        (counts.steps, "steps of the search"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    text
}

/// Reads a history and sees that it can be judged; an error is one line that names the file.
fn read(file: &Path) -> Result<History, Error> {
    let wrong = |what: String| Error::Usage(format!("{}: {what}", name(file)));
    let unreadable = |error: HistoryError| wrong(error.to_string());
    let (history, numbers) = if file == Path::new("-") {
        History::read_numbered(io::stdin().lock()).map_err(unreadable)?
    } else {
        let opened = File::open(file).map_err(|error| wrong(error.to_string()))?;
        let input: &mut dyn BufRead = &mut BufReader::new(opened);
        History::read_numbered(input).map_err(unreadable)?
    };
    check_form(&history).map_err(|malformed| {
        let line = numbers.get(malformed.line).copied().unwrap_or_default();
        wrong(format!("line {line}: {malformed}"))
    })?;
    Ok(history)
}

fn name(file: &Path) -> String {
    if file == Path::new("-") { "standard input".into() } else { file.display().to_string() }
}

/// The exit code of several files: unreadable before illegal before unknown before legal.
const fn worse(a: u8, b: u8) -> u8 {
    const fn rank(code: u8) -> u8 {
        match code {
            0 => 0,
            3 => 1,
            1 => 2,
            _ => 3,
        }
    }
    if rank(a) >= rank(b) { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_several_files_is_the_exit_code() {
        assert_eq!([0, 3, 1, 2].into_iter().reduce(worse), Some(2));
        assert_eq!([1, 3, 0].into_iter().reduce(worse), Some(1));
        assert_eq!([0, 3, 0].into_iter().reduce(worse), Some(3));
        assert_eq!([0, 0].into_iter().reduce(worse), Some(0));
    }
}
