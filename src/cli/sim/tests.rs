//! The sweep of the plain test run, that one seed gives one run, and the plans that were kept.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use super::*;

/// How many seeds a plain `cargo test` tries; `QUORATE_SIM_SEEDS` asks for more.
const SEEDS: u64 = 30;
/// How many run at the same time.
const JOBS: usize = 2;

#[test]
fn a_short_sweep_breaks_no_rule() {
    quiet_panics();
    let asked = std::env::var("QUORATE_SIM_SEEDS");
    let seeds = asked.map_or(SEEDS, |seeds| seeds.parse().expect("a number"));
    let next = AtomicU64::new(0);
    let counts = Mutex::new(Counts::default());
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let report = simulate(&draw(seed), false);
                    assert!(
                        report.broken.is_none(),
                        "seed {seed}: {}; replay it: quorate sim --seed {seed} --trace",
                        report.broken.map(|broken| broken.to_string()).unwrap_or_default()
                    );
                    assert!(report.simulated.as_secs() >= 30, "seed {seed} was cut short");
                    let calls: u64 = report.counts.operations.values().sum();
                    assert!(calls >= 200, "seed {seed} had {calls} calls");
                    counts.lock().expect("no test panics here").add(&report.counts);
                }
            });
        }
    });
    let counts = counts.into_inner().expect("no thread panicked");
    for what in ["leaders elected", "snapshots installed", "message lost", "disk failed"] {
        assert!(counts.events.get(what).is_some_and(|count| *count > 0), "{what}: {counts:?}");
    }
    let answered = counts.operations["answered"];
    assert!(answered > 100 * seeds, "{answered} calls were answered in {seeds} seeds");
}

#[test]
fn one_seed_gives_one_run_byte_for_byte() {
    for seed in [1, 3, 8] {
        let text = || {
            let report = simulate(&draw(seed), true);
            let mut history = Vec::new();
            report.history.write(&mut history).expect("memory takes it");
            (report.trace.join("\n"), history, format!("{:?}", report.counts))
        };
        let (one, other) = (text(), text());
        assert!(one.0.len() > 20_000, "a trace of {} bytes", one.0.len());
        assert!(one == other, "seed {seed} ran in two ways");
    }
}

#[test]
fn plans_that_were_kept_break_no_rule() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/plans");
    let mut plans = 0;
    for file in fs::read_dir(folder).expect("the folder is there") {
        let file = file.expect("it can be listed").path();
        if file.extension().is_some_and(|extension| extension == "jsonl") {
            let plan = read_plan(&file).expect("a plan that was kept can be read");
            let broken = simulate(&plan, false).broken;
            assert!(broken.is_none(), "{}: {}", file.display(), broken.expect("as said"));
            plans += 1;
        }
    }
    assert!(plans > 0, "there are plans");
}

#[test]
fn a_wrong_plan_is_one_line_that_names_file_and_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("plan.jsonl");
    let refused = |text: &str| {
        fs::write(&file, text).expect("it can be written");
        read_plan(&file).expect_err("it is wrong").to_string()
    };
    assert!(refused("{}").contains("plan.jsonl: line 1: a plan begins with its settings"));
    let mut plan = Vec::new();
    draw(1).write(&mut plan).expect("memory takes it");
    let plan = String::from_utf8(plan).expect("JSON is text");
    let wrong = format!("{plan}\n{{\"at_ms\":1,\"fault\":\"earthquake\"}}");
    let lines = wrong.lines().count();
    assert!(refused(&wrong).contains(&format!("line {lines}: unknown variant `earthquake`")));
    assert!(read_plan(Path::new("nowhere.jsonl")).is_err());
}
