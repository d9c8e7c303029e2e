//! The history of a run, which many tasks write, and where it is kept when the run fails.

use std::{
    env, fs, io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use quorate::sim::history::{Call, History, Line, Outcome, Recorder};
use tokio::time::Instant;

/// A history that grows.
pub(crate) struct Record {
    name: String,
    seed: u64,
    start: Instant,
    recorder: Mutex<Recorder>,
}

impl Record {
    pub(crate) fn new(name: &str, seed: u64) -> Self {
        let source = format!("tests/chaos {name}, seed {seed}");
        let recorder = Mutex::new(Recorder::new(source));
        Self { name: name.to_owned(), seed, start: Instant::now(), recorder }
    }

    /// A call is about to be made; its number.
    pub(crate) fn call(&self, client: u64, node: Option<u64>, call: Call) -> u64 {
        self.with(|recorder, time| recorder.call(time, client, node, call))
    }

    /// What became of it.
    pub(crate) fn returned(&self, id: u64, outcome: Outcome) {
        self.with(|recorder, time| recorder.returned(time, id, outcome));
    }

    /// Another line, made for its time.
    pub(crate) fn line(&self, line: impl FnOnce(u64) -> Line) {
        self.with(|recorder, time| recorder.line(line(time)));
    }

    /// What happens to the cluster, for people.
    pub(crate) fn note(&self, node: Option<u64>, text: impl Into<String>) {
        let text = text.into();
        self.line(|time| Line::Note { time, node, text });
    }

    /// Everything so far.
    pub(crate) fn history(&self) -> History {
        self.with(|recorder, _| recorder.history().clone())
    }

    /// Writes everything so far into a file.
    pub(crate) fn keep(&self) -> io::Result<PathBuf> {
        let file =
            format!("quorate-chaos-{}-{}-{}.jsonl", self.name, self.seed, std::process::id());
        let path = env::temp_dir().join(file);
        let out = io::BufWriter::new(fs::File::create(&path)?);
        self.history().write(out)?;
        Ok(path)
    }

    /// The time is taken under the lock, so that lines stand in the order of their times.
    fn with<T>(&self, write: impl FnOnce(&mut Recorder, u64) -> T) -> T {
        let mut recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        let time = u64::try_from(self.start.elapsed().as_nanos()).expect("a run is short");
        write(&mut recorder, time)
    }
}

/// A run that fails, in whatever way, leaves its history.
impl Drop for Record {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        match self.keep() {
            Ok(path) => eprintln!(
                "the history of {}, seed {}: judge it again with\n  quorate check {}",
                self.name,
                self.seed,
                path.display()
            ),
            Err(error) => eprintln!("the history of {} is lost: {error}", self.name),
        }
    }
}
