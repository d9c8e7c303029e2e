//! The lines of a history, reading and writing them.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::sim::history::{Call, Event, Outcome, jepsen};

/// The version of the format.
pub const VERSION: u32 = 1;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the format.
    pub quorate_history: u32,
    /// Where it comes from, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// What a checker should find, where the file is an example: `legal` or `illegal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Whether history is compacted without anybody asking.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub compacts: bool,
}

/// Any other line. Times are nanoseconds since a start of the recorder's own; lines stand in the
/// order in which the recorder saw them, and times never go back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum Line {
    /// A client calls.
    Call {
        /// When.
        time: u64,
        /// The call's number; each is used once.
        id: u64,
        /// The client; it has one call open at a time.
        client: u64,
        /// The node that it was sent to, where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<u64>,
        /// What is asked.
        #[serde(flatten)]
        call: Call,
    },
    /// It is answered. A call without a return is unknown.
    Return {
        /// When.
        time: u64,
        /// The call's number.
        id: u64,
        /// What became of it.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// A watch of keys begins, or begins again.
    WatchBegins {
        /// When.
        time: u64,
        /// Its number.
        watch: u64,
        /// The first key that it covers.
        key: String,
        /// The key after the last that it covers.
        range_end: String,
        /// It is told what follows this revision.
        after: u64,
    },
    /// A watch is told of one change.
    WatchTold {
        /// When.
        time: u64,
        /// Its number.
        watch: u64,
        /// The key.
        key: String,
        /// Its new value; `None` where it was deleted.
        value: Option<String>,
        /// The revision.
        revision: u64,
        /// Whether it is the revision's last change in this message.
        last: bool,
    },
    /// A watch is told that it has everything up to a revision.
    WatchProgress {
        /// When.
        time: u64,
        /// Its number.
        watch: u64,
        /// The revision.
        revision: u64,
    },
    /// A watch is told that what it asks for was compacted.
    WatchCompacted {
        /// When.
        time: u64,
        /// Its number.
        watch: u64,
        /// Everything up to here is gone.
        through: u64,
    },
    /// A subscription begins, or begins again.
    SubscriptionBegins {
        /// When.
        time: u64,
        /// Its number.
        subscription: u64,
        /// The stream; empty is all.
        stream: String,
        /// The first version (of all: position) that it is to be told.
        from: u64,
    },
    /// A subscription is told of an event.
    SubscriptionTold {
        /// When.
        time: u64,
        /// Its number.
        subscription: u64,
        /// The event.
        #[serde(flatten)]
        event: Event,
    },
    /// Something that happened to the cluster, for people and pictures.
    Note {
        /// When.
        time: u64,
        /// The node that it concerns; absent for all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<u64>,
        /// What, in words.
        text: String,
    },
}

impl Line {
    /// When it was recorded.
    #[must_use]
    pub const fn time(&self) -> u64 {
        match self {
            Self::Call { time, .. }
            | Self::Return { time, .. }
            | Self::WatchBegins { time, .. }
            | Self::WatchTold { time, .. }
            | Self::WatchProgress { time, .. }
            | Self::WatchCompacted { time, .. }
            | Self::SubscriptionBegins { time, .. }
            | Self::SubscriptionTold { time, .. }
            | Self::Note { time, .. } => *time,
        }
    }
}

/// A history in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// The first line.
    pub header: Header,
    /// The others, in their order.
    pub lines: Vec<Line>,
}

/// Why a history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A line is not what it should be.
    #[error("line {line}: {what}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The version is not known.
    #[error("version {0} of the history format is not known; this program reads version {VERSION}")]
    UnknownVersion(u32),
}

impl HistoryError {
    fn line(at: usize, what: impl Into<String>) -> Self {
        Self::Line { line: at + 1, what: what.into() }
    }
}

impl History {
    /// Reads JSON lines, or the log of one of Jepsen's register tests.
    ///
    /// # Errors
    /// Where a line is malformed, or the version unknown.
    pub fn read(input: impl BufRead) -> Result<Self, HistoryError> {
        Self::read_numbered(input).map(|(history, _)| history)
    }

    /// As [`Self::read`], with the number of each line in the file, from 1.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_numbered(input: impl BufRead) -> Result<(Self, Vec<usize>), HistoryError> {
        let mut reader = None;
        let mut numbers = Vec::new();
        for (at, line) in input.lines().enumerate() {
            let line = line.map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData => HistoryError::line(at, "it is not UTF-8"),
                _ => HistoryError::Io(error),
            })?;
            if line.trim().is_empty() {
                continue;
            }
            let Some(reader) = &mut reader else {
                let first = Reader::first(&line, at)?;
                numbers.extend(first.counts_first().then_some(at + 1));
                reader = Some(first);
                continue;
            };
            if reader.line(&line).map_err(|what| HistoryError::line(at, what))? {
                numbers.push(at + 1);
            }
        }
        let Some(reader) = reader else {
            return Err(HistoryError::line(
                0,
                "a history begins with a header such as {\"quorate_history\":1}",
            ));
        };
        Ok((reader.finish(), numbers))
    }

    /// Writes JSON lines.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&self, mut out: impl Write) -> std::io::Result<()> {
        serde_json::to_writer(&mut out, &self.header)?;
        writeln!(out)?;
        for line in &self.lines {
            serde_json::to_writer(&mut out, line)?;
            writeln!(out)?;
        }
        Ok(())
    }
}

/// A file that is being read.
enum Reader {
    Json(History),
    Jepsen(jepsen::Reader),
}

impl Reader {
    /// Tells by the first line what it is.
    fn first(line: &str, at: usize) -> Result<Self, HistoryError> {
        if jepsen::is_jepsen(line) && !line.trim_start().starts_with('{') {
            let mut reader = jepsen::Reader::default();
            reader.line(line).map_err(|what| HistoryError::line(at, what))?;
            return Ok(Self::Jepsen(reader));
        }
        let header: Header =
            serde_json::from_str(line).map_err(|error| HistoryError::line(at, json(&error)))?;
        if header.quorate_history != VERSION {
            return Err(HistoryError::UnknownVersion(header.quorate_history));
        }
        Ok(Self::Json(History { header, lines: Vec::new() }))
    }

    /// Whether the first line is one of the history's, and no header.
    const fn counts_first(&self) -> bool {
        match self {
            Self::Json(_) => false,
            Self::Jepsen(reader) => !reader.is_empty(),
        }
    }

    /// Reads a further line; gives whether it is one of the history's.
    fn line(&mut self, line: &str) -> Result<bool, String> {
        match self {
            Self::Json(history) => {
                history.lines.push(serde_json::from_str(line).map_err(|error| json(&error))?);
                Ok(true)
            }
            Self::Jepsen(reader) => reader.line(line),
        }
    }

    fn finish(self) -> History {
        match self {
            Self::Json(history) => history,
            Self::Jepsen(reader) => reader.finish(),
        }
    }
}

/// What is wrong with a line of JSON; that it is one line is known.
fn json(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

/// Writes a history down while it happens.
#[derive(Debug)]
pub struct Recorder {
    history: History,
    next: u64,
}

impl Recorder {
    /// An empty history.
    #[must_use]
    pub fn new(source: impl Into<String>) -> Self {
        let header = Header {
            quorate_history: VERSION,
            source: source.into(),
            label: None,
            compacts: false,
        };
        Self { history: History { header, lines: Vec::new() }, next: 0 }
    }

    /// History is compacted without anybody asking.
    #[must_use]
    pub const fn compacting(mut self) -> Self {
        self.history.header.compacts = true;
        self
    }

    /// A client calls; gives the call's number.
    pub fn call(&mut self, time: u64, client: u64, node: Option<u64>, call: Call) -> u64 {
        self.next += 1;
        self.history.lines.push(Line::Call { time, id: self.next, client, node, call });
        self.next
    }

    /// A call is answered.
    pub fn returned(&mut self, time: u64, id: u64, outcome: Outcome) {
        self.history.lines.push(Line::Return { time, id, outcome });
    }

    /// Any other line.
    pub fn line(&mut self, line: Line) {
        self.history.lines.push(line);
    }

    /// What was written so far.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// Ends the record.
    #[must_use]
    pub fn into_history(self) -> History {
        self.history
    }
}
