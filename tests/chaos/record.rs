//! The history of a run, which many tasks write, and where it is kept when the run fails.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use quorate::sim::history::{Call, History, Line, Outcome, Recorder};
use tokio::time::Instant;

/// A history that grows.
pub(crate) struct Record {
    name: String,
    seed: u64,
    start: Instant,
    recorder: Mutex<Recorder>,
    /// Grows with each beginning and end of a node's process, by its id.
    lives: Mutex<BTreeMap<u64, u64>>,
}

impl Record {
    pub(crate) fn new(name: &str, seed: u64) -> Self {
        let source = format!("tests/chaos {name}, seed {seed}");
        let recorder = Mutex::new(Recorder::new(source));
        let (name, lives) = (name.to_owned(), Mutex::default());
        Self { name, seed, start: Instant::now(), recorder, lives }
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

    /// A node is about to be killed, or was.
    pub(crate) fn life_changes(&self, node: u64) {
        *self.lives().entry(node).or_default() += 1;
    }

    /// Which life of a node this is. Its own state may be older in a later one, until it has read
    /// its log again.
    pub(crate) fn life(&self, node: u64) -> u64 {
        self.lives().get(&node).copied().unwrap_or_default()
    }

    fn lives(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything so far.
    pub(crate) fn history(&self) -> History {
        self.with(|recorder, _| recorder.history().clone())
    }

    /// Writes everything so far into a file.
    fn keep(&self) -> io::Result<PathBuf> {
        let file =
            format!("quorate-chaos-{}-{}-{}.jsonl", self.name, self.seed, std::process::id());
        let path = env::temp_dir().join(file);
        let out = io::BufWriter::new(fs::File::create(&path)?);
        self.history().write(out)?;
        Ok(path)
    }

    fn path(&self) -> PathBuf {
        let Self { name, seed, .. } = self;
        env::temp_dir().join(format!("quorate-chaos-{name}-{seed}-{}.jsonl", std::process::id()))
    }

    /// The time is taken under the lock, so that lines stand in the order of their times.
    fn with<T>(&self, write: impl FnOnce(&mut Recorder, u64) -> T) -> T {
        let mut recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        let time = u64::try_from(self.start.elapsed().as_nanos()).expect("a run is short");
        write(&mut recorder, time)
    }
}

/// A run that fails, in whatever way, leaves its history.
pub(crate) struct KeptOnFailure(pub(crate) Arc<Record>);

impl Drop for KeptOnFailure {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Record { name, seed, .. } = &*self.0;
        match self.0.keep() {
            Ok(path) => {
                let path = path.display();
                eprintln!(
                    "{name}, seed {seed}: judge its history again with\n  quorate check {path}"
                );
            }
            Err(error) => eprintln!("{name}, seed {seed}: its history is lost: {error}"),
        }
    }
}

#[test]
fn a_run_that_fails_leaves_its_history() {
    let record = Arc::new(Record::new("proof", 0));
    let id = record.call(1, None, Call::Delete { key: "k".to_owned() });
    record.returned(id, Outcome::Unknown { reason: "the test stops here".to_owned() });
    let path = record.path();
    let kept = KeptOnFailure(Arc::clone(&record));
    let failed = std::panic::catch_unwind(move || {
        let _kept = kept;
        panic!("as a run that fails would");
    });
    assert!(failed.is_err());
    let file = fs::File::open(&path).expect("it was kept");
    let history = History::read(io::BufReader::new(file)).expect("it can be read");
    assert_eq!(history, record.history());
    fs::remove_file(&path).expect("it was kept");
}
