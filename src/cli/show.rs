//! Where output goes: data to standard output, talk to standard error.
//!
//! Every write is checked, so that a reader who leaves ends the command instead of a panic.

use std::io::{self, IsTerminal as _, Write as _};

use crate::cli::{
    Error, OutputFormat,
    json::{self, Named},
    table::Table,
};

/// How a command's answers are shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Show {
    pub(crate) format: OutputFormat,
    /// Whether a terminal reads standard output.
    pub(crate) terminal: bool,
    /// Whether colour is wanted there.
    colour: bool,
}

impl Show {
    pub(crate) fn new(format: OutputFormat) -> Self {
        let terminal = io::stdout().is_terminal();
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { format, terminal, colour: terminal && !unwanted }
    }

    /// Shows an answer: as JSON, or as what `people` makes of it.
    pub(crate) fn answer<M: Named>(
        &self,
        answer: &M,
        people: impl FnOnce(&M) -> Shown,
    ) -> Result<(), Error> {
        match self.format {
            OutputFormat::Json => self.line(&json::pretty(answer)?),
            OutputFormat::Jsonl => self.line(&json::line(answer)?),
            OutputFormat::Table => self.shown(&people(answer)),
        }
    }

    /// Shows one message of a stream: as one line of JSON, or as what `people` makes of it.
    pub(crate) fn message<M: Named>(
        &self,
        message: &M,
        people: impl FnOnce(&M) -> Shown,
    ) -> Result<(), Error> {
        match self.format {
            OutputFormat::Json | OutputFormat::Jsonl => self.line(&json::line(message)?),
            OutputFormat::Table => self.shown(&people(message)),
        }
    }

    pub(crate) fn shown(&self, shown: &Shown) -> Result<(), Error> {
        match shown {
            Shown::Table(table) => self.bytes(table.render(self.colour).as_bytes()),
            Shown::Lines(lines) if lines.is_empty() => Ok(()),
            Shown::Lines(lines) => self.line(&lines.join("\n")),
        }
    }

    pub(crate) fn line(&self, text: &str) -> Result<(), Error> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Writes bytes as they are, and at once.
    #[expect(clippy::unused_self, reason = "all writing goes through the one who knows how")]
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| Error::output(&error))
    }
}

/// What a person sees of an answer.
#[derive(Debug)]
pub(crate) enum Shown {
    Table(Table),
    Lines(Vec<String>),
}

impl From<Table> for Shown {
    fn from(table: Table) -> Self {
        Self::Table(table)
    }
}

impl From<String> for Shown {
    fn from(line: String) -> Self {
        Self::Lines(vec![line])
    }
}

/// Says something to the person, on standard error. A closed one is no reason to stop.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Says something on a terminal in the place of what was said there last.
pub(crate) fn say_over(text: &str) {
    let _ = write!(io::stderr(), "\r\x1b[K{text}");
}

/// Whether a terminal reads what is said.
pub(crate) fn is_heard() -> bool {
    io::stderr().is_terminal()
}

/// Tells of a stream's markers and breaks, on standard error.
#[derive(Debug, Default)]
pub(crate) struct Markers {
    breaks: u64,
}

impl Markers {
    pub(crate) fn tell(&mut self, breaks: u64, caught_up: bool, fell_behind: bool, place: &str) {
        if breaks > self.breaks {
            self.breaks = breaks;
            say("connection lost and taken up again");
        }
        if fell_behind {
            say(&format!("fell behind at {place}; catching up, nothing is lost"));
        }
        if caught_up {
            say(&format!("caught up at {place}"));
        }
    }
}
