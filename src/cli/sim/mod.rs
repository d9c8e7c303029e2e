//! `quorate sim`: sweeps of seeds on all processors, one seed or plan replayed and told, and plans
//! made smaller.

use std::{
    cell::Cell,
    fs::File,
    io::{BufReader, BufWriter, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use clap::{Args, Subcommand};

use crate::{
    cli::Error,
    sim::{
        Counts, Report,
        plan::{Plan, draw},
        run,
        shrink::{Progress, shrink},
    },
};

/// How many steps before a failure are told.
const LAST_STEPS: usize = 40;
/// How many failed seeds end a sweep.
const FAILURES_MAX: usize = 5;

/// Flags of `sim`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Examples:\n  quorate sim --seeds 1000\n  quorate sim --seed 42 --trace\n  quorate sim --seed 42 --save-plan plan.jsonl\n  quorate sim --plan plan.jsonl --history history.jsonl\n  quorate sim shrink plan.jsonl"
)]
pub struct SimArgs {
    #[command(subcommand)]
    command: Option<SimCommand>,
    /// Run so many seeds, one after the other on each processor
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["seed", "plan"])]
    seeds: Option<u64>,
    /// The first of --seeds
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    first: u64,
    /// How many to run at the same time [default: one a processor]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=1_024))]
    jobs: Option<u64>,
    /// Stop a sweep after so many seconds
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Run one seed
    #[arg(long, conflicts_with = "plan")]
    seed: Option<u64>,
    /// Run the plan in a file
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Tell every step of the one run
    #[arg(long, conflicts_with = "seeds")]
    trace: bool,
    /// Keep the plan of --seed in a file
    #[arg(long, value_name = "FILE", requires = "seed")]
    save_plan: Option<PathBuf>,
    /// Keep what clients saw in a file, for `quorate check`
    #[arg(long, value_name = "FILE", conflicts_with = "seeds")]
    history: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum SimCommand {
    /// Make a failing plan smaller: the same rule must break
    Shrink(ShrinkArgs),
}

/// Flags of `sim shrink`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quorate sim shrink plan.jsonl\n  quorate sim shrink plan.jsonl --out small.jsonl --runs 500"
)]
struct ShrinkArgs {
    /// The plan
    file: PathBuf,
    /// Where the smaller plan goes [default: FILE with .min.jsonl]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The most runs to spend
    #[arg(long, value_name = "COUNT", default_value_t = 2_000)]
    runs: u64,
}

thread_local! {
    /// Whether a panic of this thread is a finding, told in its place.
    static SIMULATES: Cell<bool> = const { Cell::new(false) };
}

impl SimArgs {
    pub(crate) fn run(self) -> Result<u8, Error> {
        quiet_panics();
        match &self.command {
            Some(SimCommand::Shrink(args)) => args.run(),
            None => match (self.seeds, self.seed, &self.plan) {
                (Some(seeds), ..) => self.sweep(seeds),
                (None, Some(seed), _) => self.one(&draw(seed), &format!("--seed {seed}")),
                (None, None, Some(file)) => {
                    let plan = read_plan(file)?;
                    self.one(&plan, &format!("--plan {}", file.display()))
                }
                _ => Err(Error::Usage("one of --seeds, --seed and --plan is needed".to_owned())),
            },
        }
    }

    fn one(&self, plan: &Plan, replay: &str) -> Result<u8, Error> {
        if let Some(file) = &self.save_plan {
            write_plan(plan, file)?;
        }
        let report = simulate(plan, self.trace);
        if self.trace {
            let mut out = BufWriter::new(std::io::stdout().lock());
            for line in &report.trace {
                writeln!(out, "{line}").map_err(|error| Error::output(&error))?;
            }
            out.flush().map_err(|error| Error::output(&error))?;
        }
        if let Some(file) = &self.history {
            let failed = |error: std::io::Error| failed(file, &error);
            let mut out = BufWriter::new(File::create(file).map_err(failed)?);
            report.history.write(&mut out).and_then(|()| out.flush()).map_err(failed)?;
        }
        tell_counts(&report.counts);
        if report.broken.is_some() {
            tell_failure(plan, &report, replay);
            return Ok(1);
        }
        let seconds = report.simulated.as_secs_f64();
        println!("{seconds:.1} s simulated, every rule held");
        Ok(0)
    }

    fn sweep(&self, seeds: u64) -> Result<u8, Error> {
        let jobs = match self.jobs {
            Some(jobs) => jobs,
            None => std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        };
        let sweep = Sweep::default();
        let began = now();
        let end = self.first.saturating_add(seeds);
        let next = AtomicU64::new(self.first);
        let late = || self.seconds.is_some_and(|most| began.elapsed().as_secs() >= most);
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= end || late() || sweep.over.load(Ordering::Relaxed) {
                            return;
                        }
                        let plan = draw(seed);
                        let report = simulate(&plan, false);
                        sweep.took(seed, &report, seeds, began);
                    }
                });
            }
        });
        let found = sweep.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if std::io::stderr().is_terminal() {
            eprintln!();
        }
        tell_counts(&found.counts);
        for &seed in &found.failed {
            let plan = draw(seed);
            let report = simulate(&plan, true);
            tell_failure(&plan, &report, &format!("--seed {seed}"));
        }
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{} seeds in {seconds:.1} s ({:.1}/s), {:.0} s simulated, {} failed",
            found.done,
            found.done as f64 / seconds,
            found.simulated,
            found.failed.len()
        );
        Ok(u8::from(!found.failed.is_empty()))
    }
}

/// What a sweep found so far.
#[derive(Default)]
struct Sweep {
    state: Mutex<Found>,
    over: AtomicBool,
}

#[derive(Default)]
struct Found {
    done: u64,
    simulated: f64,
    counts: Counts,
    failed: Vec<u64>,
}

impl Sweep {
    fn took(&self, seed: u64, report: &Report, seeds: u64, began: std::time::Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.done += 1;
        state.simulated += report.simulated.as_secs_f64();
        state.counts.add(&report.counts);
        if let Some(broken) = &report.broken {
            state.failed.push(seed);
            eprintln!("seed {seed}: {broken}");
            if state.failed.len() >= FAILURES_MAX {
                self.over.store(true, Ordering::Relaxed);
            }
        }
        if std::io::stderr().is_terminal() && state.done.is_multiple_of(50) {
            let rate = state.done as f64 / began.elapsed().as_secs_f64().max(0.001);
            eprint!(
                "\r{} of {seeds} seeds, {rate:.1}/s, {} failed ",
                state.done,
                state.failed.len()
            );
        }
    }
}

impl ShrinkArgs {
    fn run(&self) -> Result<u8, Error> {
        let plan = read_plan(&self.file)?;
        let Some(broken) = simulate(&plan, false).broken else {
            return Err(Error::failed(format!(
                "{}: every rule holds, there is nothing to shrink",
                self.file.display()
            )));
        };
        println!("breaks {broken}");
        let terminal = std::io::stderr().is_terminal();
        let mut told = |progress: Progress| {
            if terminal && progress.runs.is_multiple_of(10) {
                let Progress { runs, faults, intents } = progress;
                eprint!("\r{runs} runs: {faults} faults, {intents} intents left   ");
            }
            true
        };
        SIMULATES.set(true);
        let smaller = shrink(&plan, &broken.rule, self.runs, &mut told);
        SIMULATES.set(false);
        if terminal {
            eprintln!();
        }
        let out = self.out.clone().unwrap_or_else(|| self.file.with_extension("min.jsonl"));
        write_plan(&smaller, &out)?;
        println!(
            "{} faults and {} intents of {} nodes are left, in {}",
            smaller.faults.len(),
            smaller.intents.len(),
            smaller.settings.nodes,
            out.display()
        );
        let report = simulate(&smaller, true);
        tell_failure(&smaller, &report, &format!("--plan {}", out.display()));
        Ok(0)
    }
}

fn simulate(plan: &Plan, traced: bool) -> Report {
    SIMULATES.set(true);
    let report = run(plan, traced);
    SIMULATES.set(false);
    report
}

/// A panic in a simulation is a finding, which is told in its place.
fn quiet_panics() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !SIMULATES.get() {
            loud(info);
        }
    }));
}

#[expect(clippy::disallowed_methods, reason = "a person is told how long a sweep took")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fn tell_counts(counts: &Counts) {
    let line = |(name, count): (&str, &u64)| format!("{name} {count}");
    let faults = counts.faults.iter().map(|(name, count)| line((name, count)));
    println!("faults:  {}", faults.collect::<Vec<_>>().join(", "));
    let never = crate::sim::plan::Fault::names();
    let never: Vec<&str> =
        never.into_iter().filter(|name| !counts.faults.contains_key(*name)).collect();
    if !never.is_empty() {
        println!("never:   {}", never.join(", "));
    }
    let events = counts.events.iter().map(|(name, count)| line((name, count)));
    println!("events:  {}", events.collect::<Vec<_>>().join(", "));
    let operations = counts.operations.iter().map(|(name, count)| line((name, count)));
    println!("calls:   {}", operations.collect::<Vec<_>>().join(", "));
}

fn tell_failure(plan: &Plan, report: &Report, replay: &str) {
    let again;
    let traced = if report.trace.is_empty() {
        again = simulate(plan, true);
        &again
    } else {
        report
    };
    let Some(broken) = &traced.broken else { return };
    println!("\n{replay}: the rule {:?} does not hold", broken.rule);
    println!("  {}", broken.words);
    println!("the last steps:");
    let from = traced.trace.len().saturating_sub(LAST_STEPS);
    for line in &traced.trace[from..] {
        println!("  {line}");
    }
    println!("replay it:  quorate sim {replay} --trace");
    if replay.starts_with("--seed") {
        println!(
            "shrink it:  quorate sim {replay} --save-plan plan.jsonl; quorate sim shrink plan.jsonl"
        );
    }
}

fn read_plan(file: &Path) -> Result<Plan, Error> {
    let wrong = |what: String| Error::Usage(format!("{}: {what}", file.display()));
    let input = File::open(file).map_err(|error| wrong(error.to_string()))?;
    Plan::read(BufReader::new(input)).map_err(|error| wrong(error.to_string()))
}

fn write_plan(plan: &Plan, file: &Path) -> Result<(), Error> {
    let failed = |error: std::io::Error| failed(file, &error);
    let mut out = BufWriter::new(File::create(file).map_err(failed)?);
    plan.write(&mut out).and_then(|()| out.flush()).map_err(failed)
}

fn failed(file: &Path, error: &std::io::Error) -> Error {
    Error::failed(format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests;
