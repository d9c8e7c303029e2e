//! The timeline of a judged history as one HTML file that needs nothing else.
//!
//! A lane a client, a bar a call; what breaks a rule is in view when the file opens. Of a very
//! long history only what lies around the first broken rule is drawn. Everything that comes from
//! the history is data of the page, never a part of its text.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::sim::{
    checker::{
        Report, Verdict,
        black_box::split,
        ops::{self, End, Op},
        words,
    },
    history::{History, Line, Outcome},
};

/// The most operations that a page holds.
const OPERATIONS_MAX: usize = 10_000;
/// The most lines of watches and subscriptions, and the most notes, that a page holds.
const FED_MAX: usize = 20_000;
/// The most bytes of an answer that a page tells.
const TEXT_MAX: usize = 2_000;

const PAGE: &str = include_str!("picture.html");

/// Draws a history with what was found; `title` names it for people.
#[must_use]
pub fn picture(history: &History, report: &Report, title: &str) -> String {
    let page = Page::new(history, report, title);
    let data = serde_json::to_string(&page).expect("a page is plain data");
    // Nothing in the data may end the element that it stands in.
    let data =
        data.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    PAGE.replace("@DATA@", &data)
}

#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    verdict: Verdict,
    summary: String,
    begin: u64,
    finish: u64,
    findings: Vec<Found<'a>>,
    parts: Vec<PagePart<'a>>,
    ops: Vec<PageOp>,
    feeds: Vec<Fed>,
    notes: Vec<Noted<'a>>,
}

#[derive(Serialize)]
struct Found<'a> {
    rule: &'a str,
    words: &'a str,
    op: Option<u64>,
    line: Option<usize>,
    time: u64,
    legal: &'a [String],
}

#[derive(Serialize)]
struct PagePart<'a> {
    name: &'a str,
    operations: usize,
    verdict: Verdict,
    why: Option<&'a str>,
    order: &'a [u64],
}

#[derive(Serialize)]
struct PageOp {
    id: u64,
    client: u64,
    node: Option<u64>,
    line: usize,
    time: u64,
    /// When it returned; absent where the outcome is unknown.
    end_line: Option<usize>,
    end_time: Option<u64>,
    /// When the client gave up on it.
    heard_line: Option<usize>,
    heard_time: Option<u64>,
    state: &'static str,
    call: String,
    answer: String,
    short: String,
    /// What the call is about: keys, a lock, a stream.
    names: Vec<String>,
    parts: Vec<usize>,
}

#[derive(Serialize)]
struct Fed {
    name: String,
    line: usize,
    time: u64,
    text: String,
    bad: bool,
}

#[derive(Serialize)]
struct Noted<'a> {
    line: usize,
    time: u64,
    node: Option<u64>,
    text: &'a str,
}

impl<'a> Page<'a> {
    fn new(history: &'a History, report: &'a Report, title: &'a str) -> Self {
        let time = |line: usize| history.lines.get(line).map_or(0, Line::time);
        let all = ops::read(history).unwrap_or_default();
        let (first, last) = window(&all, report);
        let drawn = &all[first..last];
        let lines = match (drawn.first(), drawn.last()) {
            (Some(from), Some(to)) if drawn.len() < all.len() => from.called..to.called,
            _ => 0..history.lines.len(),
        };
        let findings = report.findings.iter().map(|found| Found {
            rule: found.rule,
            words: &found.words,
            op: found.op,
            line: found.line,
            time: found.line.map_or(0, time),
            legal: &found.legal,
        });
        let parts = report.parts.iter().map(|part| PagePart {
            name: &part.name,
            operations: part.operations,
            verdict: part.verdict,
            why: part.why.as_deref(),
            order: &part.order,
        });
        Self {
            title,
            verdict: report.verdict,
            summary: summary(&all, drawn.len(), report),
            begin: time(lines.start),
            finish: time(lines.end.saturating_sub(1)),
            findings: findings.collect(),
            parts: parts.collect(),
            ops: page_ops(history, &all, drawn, report),
            feeds: feeds(history, report, &lines),
            notes: notes(history, &lines),
        }
    }
}

/// Which operations are drawn: all, or those around the first broken rule.
fn window(ops: &[Op<'_>], report: &Report) -> (usize, usize) {
    if ops.len() <= OPERATIONS_MAX {
        return (0, ops.len());
    }
    let line = report.findings.first().and_then(|found| found.line).unwrap_or(0);
    let at = ops.partition_point(|op| op.called < line);
    let first = at.saturating_sub(OPERATIONS_MAX * 3 / 4).min(ops.len() - OPERATIONS_MAX);
    (first, first + OPERATIONS_MAX)
}

fn summary(all: &[Op<'_>], drawn: usize, report: &Report) -> String {
    let counts = &report.counts;
    let mut text = format!(
        "{} operations: {} carried out, {} refused, {} of unknown outcome",
        counts.operations, counts.ok, counts.refused, counts.unknown
    );
    if drawn < all.len() {
        text.push_str(&format!("; the {drawn} around the first broken rule are drawn"));
    }
    text
}

fn page_ops(history: &History, all: &[Op<'_>], drawn: &[Op<'_>], report: &Report) -> Vec<PageOp> {
    let mut parts_of: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (name, group) in split(all) {
        let Some(part) = report.parts.iter().position(|part| part.name == name) else { continue };
        for op in group.ops {
            parts_of.entry(op.id).or_default().push(part);
        }
    }
    let mut heard: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
    for (line, what) in history.lines.iter().enumerate() {
        if let Line::Return { time, id, outcome: Outcome::Unknown { .. } } = what {
            heard.insert(*id, (line, *time));
        }
    }
    let page_op = |op: &Op<'_>| {
        let (state, answer) = match op.end {
            End::Ok(answer) => ("ok", words::answer(answer)),
            End::Refused { reason, .. } => ("refused", format!("refused, {reason}")),
            End::Unknown => ("unknown", "unknown".to_owned()),
        };
        let (call, answer) = (shortened(words::call(op.call)), shortened(answer));
        let known = op.returned != usize::MAX;
        let heard = heard.get(&op.id);
        PageOp {
            id: op.id,
            client: op.client,
            node: op.node,
            line: op.called,
            time: op.call_time,
            end_line: known.then_some(op.returned),
            end_time: known.then_some(op.return_time),
            heard_line: heard.map(|(line, _)| *line),
            heard_time: heard.map(|(_, time)| *time),
            state,
            short: format!("{call} → {answer}").chars().take(90).collect(),
            call,
            answer,
            names: words::names(op.call),
            parts: parts_of.get(&op.id).cloned().unwrap_or_default(),
        }
    };
    drawn.iter().map(page_op).collect()
}

fn shortened(text: String) -> String {
    if text.len() <= TEXT_MAX {
        return text;
    }
    let end = (0..=TEXT_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}...", &text[..end])
}

fn feeds(history: &History, report: &Report, lines: &core::ops::Range<usize>) -> Vec<Fed> {
    let mut fed = Vec::new();
    for (line, what) in history.lines.iter().enumerate() {
        if !lines.contains(&line) || fed.len() == FED_MAX {
            continue;
        }
        let (name, text) = match what {
            Line::WatchBegins { watch, key, range_end, after, .. } => (
                format!("watch {watch}"),
                format!("begins at {key:?}..{range_end:?} after revision {after}"),
            ),
            Line::WatchTold { watch, key, value, revision, .. } => (
                format!("watch {watch}"),
                format!("{key} = {} at revision {revision}", words::value(value.as_deref())),
            ),
            Line::WatchProgress { watch, revision, .. } => {
                (format!("watch {watch}"), format!("progress up to revision {revision}"))
            }
            Line::WatchCompacted { watch, through, .. } => {
                (format!("watch {watch}"), format!("turned away: compacted through {through}"))
            }
            Line::SubscriptionBegins { subscription, stream, from, .. } => (
                format!("subscription {subscription}"),
                format!("begins with stream {stream:?} from {from}"),
            ),
            Line::SubscriptionTold { subscription, event, .. } => (
                format!("subscription {subscription}"),
                format!(
                    "{}:{} {:?} at position {}",
                    event.stream, event.version, event.data, event.position
                ),
            ),
            _ => continue,
        };
        let bad = report.findings.iter().any(|found| found.line == Some(line));
        fed.push(Fed { name, line, time: what.time(), text: shortened(text), bad });
    }
    fed
}

fn notes<'a>(history: &'a History, lines: &core::ops::Range<usize>) -> Vec<Noted<'a>> {
    let note = |(line, what): (usize, &'a Line)| match what {
        Line::Note { time, node, text } => Some(Noted { line, time: *time, node: *node, text }),
        _ => None,
    };
    let within = |(line, _): &(usize, &Line)| lines.contains(line);
    history.lines.iter().enumerate().filter(within).filter_map(note).take(FED_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{
        checker::{Budget, black_box},
        history::{Answer, Call, Recorder},
    };

    #[test]
    fn nothing_of_a_history_ends_the_element_that_its_data_stand_in() {
        let mut recorder = Recorder::new("");
        let (key, value) = ("k</script><b>".to_owned(), "<!--\u{2028}".to_owned());
        let id = recorder.call(1, 1, None, Call::Put { key, value, require_lock: None });
        recorder.returned(2, id, Outcome::Ok(Answer::Done { revision: None }));
        let history = recorder.into_history();
        let report = black_box(&history, &mut Budget::steps(10));
        let page = picture(&history, &report, "</script>");
        assert_eq!(page.matches("</script>").count(), PAGE.matches("</script>").count());
        assert!(!page.contains("@DATA@") && !page.contains("<!--") && !page.contains('\u{2028}'));
    }
}
