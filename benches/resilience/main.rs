//! What the layers do when it matters, drawn: a retry storm with and without a budget, a breaker, load
//! shedding, hedging, limits that adapt, and deadlines that are passed on. In virtual time, with the
//! layers that ship; then what each layer adds to a real call. Prints the tables of
//! docs/resilience.md and draws its plots.
//!
//! `cargo bench --bench resilience`, or `cargo bench --bench resilience -- --svg docs/figures --only
//! storm`; `--only` is one of storm, breaker, shedding, hedging, adaptive, deadlines, cost.

#![allow(missing_docs)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and waits")]

mod adaptive;
#[path = "../balance/backends.rs"]
#[allow(dead_code, reason = "the other benchmark kills them")]
mod backends;
mod breaker;
mod cost;
mod deadlines;
mod hedging;
#[path = "../balance/load.rs"]
#[allow(dead_code, reason = "the other benchmark has more columns")]
mod load;
mod plot;
mod shedding;
mod storm;
mod world;

use std::{fs, path::PathBuf};

struct Options {
    svg: Option<PathBuf>,
    only: Option<String>,
}

fn options() -> Options {
    let mut options = Options { svg: None, only: None };
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} takes a value"));
        match arg.as_str() {
            "--svg" => options.svg = Some(value().into()),
            "--only" => options.only = Some(value()),
            _ => panic!("{arg} is not one of --svg and --only"),
        }
    }
    options
}

/// An experiment: it prints its table and returns its picture.
type Experiment = (&'static str, fn() -> String);

const EXPERIMENTS: [Experiment; 6] = [
    ("storm", storm::run),
    ("breaker", breaker::run),
    ("shedding", shedding::run),
    ("hedging", hedging::run),
    ("adaptive", adaptive::run),
    ("deadlines", deadlines::run),
];

fn main() {
    let options = options();
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    for (name, experiment) in EXPERIMENTS {
        if !wanted(name) {
            continue;
        }
        let svg = experiment();
        if let Some(folder) = &options.svg {
            fs::create_dir_all(folder).expect("the folder can be made");
            let file = folder.join(format!("resilience-{name}.svg"));
            fs::write(&file, svg).expect("the folder takes files");
            println!("\ndrawn: {}", file.display());
        }
    }
    if wanted("cost") {
        cost::measure();
    }
}
