//! The lines of a history, reading and writing them.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::sim::history::{Call, Event, Outcome};

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

impl History {
    /// Reads JSON lines.
    ///
    /// # Errors
    /// Where a line is malformed, or the version unknown.
    pub fn read(input: impl BufRead) -> Result<Self, HistoryError> {
        let mut header = None;
        let mut lines = Vec::new();
        for (at, line) in input.lines().enumerate() {
            let line = line?;
            let wrong = |error: serde_json::Error| HistoryError::Line {
                line: at + 1,
                what: error.to_string(),
            };
            if line.trim().is_empty() {
                continue;
            }
            if header.is_none() {
                let read: Header = serde_json::from_str(&line).map_err(wrong)?;
                if read.quorate_history != VERSION {
                    return Err(HistoryError::UnknownVersion(read.quorate_history));
                }
                header = Some(read);
            } else {
                lines.push(serde_json::from_str(&line).map_err(wrong)?);
            }
        }
        let header = header.ok_or(HistoryError::Line {
            line: 1,
            what: "a history begins with a header such as {\"quorate_history\":1}".into(),
        })?;
        Ok(Self { header, lines })
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
