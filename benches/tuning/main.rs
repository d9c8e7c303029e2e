//! Throughput and latency by the figure that one chooses: capacity of the channel between a producer
//! and a consumer, permits for each core, number of tasks. Prints the tables of docs/tuning.md and
//! draws its plots.
//!
//! `cargo bench --bench tuning`, about 3 minutes; or `cargo bench --bench tuning -- --rounds 1 --only
//! channel --svg docs/figures`. `--only` is one of channel, permits, tasks; a figure is the median of
//! `--rounds` runs.

#![allow(missing_docs)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and waits")]

mod channel;
mod permits;
mod plot;
mod tasks;
mod work;

use std::{fs, path::PathBuf};

use work::Work;

pub(crate) struct Options {
    pub(crate) rounds: usize,
    svg: Option<PathBuf>,
    only: Option<String>,
}

impl Options {
    fn read() -> Self {
        let mut options = Self { rounds: 3, svg: None, only: None };
        let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| panic!("{arg} takes a value"));
            match arg.as_str() {
                "--rounds" => options.rounds = value().parse().expect("a number of rounds"),
                "--svg" => options.svg = Some(value().into()),
                "--only" => options.only = Some(value()),
                _ => panic!("{arg} is not one of --rounds, --svg and --only"),
            }
        }
        assert!(options.rounds > 0, "--rounds is at least 1");
        options
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == name)
    }

    /// Writes a plot, where plots are wanted.
    pub(crate) fn plot(&self, name: &str, svg: impl FnOnce() -> String) {
        let Some(folder) = &self.svg else { return };
        fs::create_dir_all(folder).expect("the folder can be made");
        let file = folder.join(format!("tuning-{name}.svg"));
        fs::write(&file, svg()).expect("the folder takes files");
        println!("\ndrawn: {}", file.display());
    }
}

/// The median of a few runs.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The number of worker threads.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn main() {
    let options = Options::read();
    let work = Work::calibrated();
    println!("{} cores; each figure the median of {}", cores(), options.rounds);
    if options.wants("channel") {
        channel::measure(&options, work);
    }
    if options.wants("permits") {
        permits::measure(&options, work);
    }
    if options.wants("tasks") {
        tasks::measure(&options, work);
    }
}

/// A runtime as `#[tokio::main]` makes it, for one run.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("it starts")
}
