//! Reads the register histories of Jepsen's etcd tests, as knossos logs them.
//!
//! A line that counts is `... jepsen.util - PROCESS :TYPE :F VALUE`, as in
//! `INFO  jepsen.util - 3 :invoke :cas [1 2]`, with blanks or tabs. Whatever stands before
//! `jepsen.util` is passed over, and so are the nemesis and all other lines of the log. Values of
//! independent keys are `[KEY VALUE]`. There are no times: a line is a millisecond.

use std::collections::BTreeMap;

use crate::sim::history::{Answer, Call, Header, History, Line, Outcome, VERSION, Versioned};

/// What names the program in a line that may count.
const MARK: &str = "jepsen.util";
/// The key of a test that has only one.
const KEY: &str = "register";

/// Whether a first line is that of such a log.
pub(super) fn is_jepsen(line: &str) -> bool {
    line.contains("jepsen.") || parts(line).is_some()
}

/// A log that is being read.
#[derive(Debug, Default)]
pub(super) struct Reader {
    lines: Vec<Line>,
    /// The open call of each process, with its number.
    open: BTreeMap<u64, (u64, Call)>,
    calls: u64,
}

impl Reader {
    /// Reads a line; gives whether it counts.
    pub(super) fn line(&mut self, line: &str) -> Result<bool, String> {
        let Some((process, kind, function, value)) = parts(line) else { return Ok(false) };
        let time = (self.lines.len() as u64 + 1) * 1_000_000;
        if kind == ":invoke" {
            let call = call(function, value)?;
            self.calls += 1;
            let id = self.calls;
            if self.open.insert(process, (id, call.clone())).is_some() {
                return Err(format!("process {process} has a call open already"));
            }
            self.lines.push(Line::Call { time, id, client: process, node: None, call });
            return Ok(true);
        }
        let Some((id, call)) = self.open.remove(&process) else {
            return Err(format!("process {process} has no call open"));
        };
        let outcome = match kind {
            ":ok" => Outcome::Ok(answer(&call, function, value)?),
            ":fail" => Outcome::Refused { reason: "fail".into(), actual: None },
            ":info" => Outcome::Unknown { reason: value.into() },
            _ => return Err(format!("{kind:?} is none of :invoke, :ok, :fail and :info")),
        };
        self.lines.push(Line::Return { time, id, outcome });
        Ok(true)
    }

    /// Whether no line counted so far.
    pub(super) const fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn finish(self) -> History {
        let source = "a Jepsen log".to_owned();
        let header = Header { quorate_history: VERSION, source, label: None, compacts: false };
        History { header, lines: self.lines }
    }
}

/// Process, type, function and value of a line that counts.
fn parts(line: &str) -> Option<(u64, &str, &str, &str)> {
    let rest = line.split_once(MARK)?.1.trim_start();
    let rest = rest.strip_prefix(['-', ':']).unwrap_or(rest).trim();
    let (process, rest) = word(rest)?;
    let process = process.parse().ok()?;
    let (kind, rest) = word(rest)?;
    let (function, value) = word(rest)?;
    (kind.starts_with(':') && function.starts_with(':')).then_some((process, kind, function, value))
}

fn word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    Some((word, rest.trim()))
}

/// The two halves of `[a b]`.
fn pair(text: &str) -> Option<(&str, &str)> {
    let (first, rest) = word(text.strip_prefix('[')?.strip_suffix(']')?)?;
    (!rest.is_empty()).then_some((first, rest))
}

/// `[key value]` of independent keys, or the value of the one key.
fn keyed(text: &str) -> (String, &str) {
    pair(text).map_or((KEY.to_owned(), text), |(key, value)| (format!("{KEY} {key}"), value))
}

fn nil(text: &str) -> Option<String> {
    (text != "nil" && !text.is_empty()).then(|| text.to_owned())
}

fn call(function: &str, value: &str) -> Result<Call, String> {
    match function {
        ":read" => Ok(Call::Get { key: keyed(value).0, stale: false }),
        ":write" => {
            let (key, value) = keyed(value);
            let value = nil(value).ok_or("a write of nothing")?;
            Ok(Call::Put { key, value, require_lock: None })
        }
        ":cas" => {
            let (first, second) = pair(value).ok_or("a cas needs a value such as [1 2]")?;
            let (key, (expected, value)) = match pair(second) {
                Some(pair) => (format!("{KEY} {first}"), pair),
                None => (KEY.to_owned(), (first, second)),
            };
            let value = nil(value).ok_or("a cas to nothing")?;
            Ok(Call::Cas { key, expected: nil(expected), value })
        }
        _ => Err(format!("{function:?} is none of :read, :write and :cas")),
    }
}

fn answer(call: &Call, function: &str, value: &str) -> Result<Answer, String> {
    let revision = None;
    match (call, function) {
        (Call::Get { .. }, ":read") => {
            let read = nil(keyed(value).1);
            let value = read.map(|value| Versioned { value, mod_revision: None });
            Ok(Answer::Got { value, revision })
        }
        (Call::Put { .. }, ":write") => Ok(Answer::Done { revision }),
        (Call::Cas { .. }, ":cas") => Ok(Answer::Swapped { swapped: true, revision }),
        _ => Err(format!("{function:?} does not answer the process's open call")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<History, String> {
        let mut reader = Reader::default();
        for line in text.lines() {
            reader.line(line)?;
        }
        Ok(reader.finish())
    }

    #[test]
    fn lines_of_calls_and_answers_are_read_and_others_passed_over() {
        let history = read(
            "INFO  jepsen.util - 0\t:invoke\t:read\tnil\n\
             INFO  jepsen.core - Worker 0 starting\n\
             2014-01-02 10:11:12 INFO jepsen.util - :nemesis :info :start nil\n\
             2026-11-22 01:02:03,004{GMT}\tINFO\t[worker 1] jepsen.util: 1 :invoke :cas [1 2]\n\
             INFO  jepsen.util - 0 :ok  :read nil\n\
             INFO jepsen.util - 1 :info :cas :timed-out\n\
             INFO jepsen.util - 3 :invoke :cas [7 [1 2]]\n\
             INFO jepsen.util - 3 :fail :cas [7 [1 2]]\n",
        )
        .expect("it reads");
        let calls: Vec<_> = history
            .lines
            .iter()
            .filter_map(|line| match line {
                Line::Call { client, call, .. } => Some((*client, call.clone())),
                _ => None,
            })
            .collect();
        let cas = |key: &str| Call::Cas {
            key: key.into(),
            expected: Some("1".into()),
            value: "2".into(),
        };
        let get = Call::Get { key: KEY.into(), stale: false };
        assert_eq!(calls, [(0, get), (1, cas(KEY)), (3, cas("register 7"))]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, what) in [
            ("jepsen.util - 1 :invoke :pop nil", "\":pop\" is none of"),
            ("jepsen.util - 1 :ok :read 3", "process 1 has no call open"),
            ("jepsen.util - 1 :invoke :cas 3", "such as [1 2]"),
            (
                "jepsen.util - 1 :invoke :read nil\njepsen.util - 1 :invoke :read nil",
                "process 1 has a call open already",
            ),
            ("jepsen.util - 1 :invoke :read nil\njepsen.util - 1 :ok :write 3", "does not answer"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
