//! Both oracles over a run's history.

use quorate::sim::{
    checker::{Budget, Report, Verdict, black_box, witness},
    history::{Answer, History, Line, Outcome, Versioned},
};

/// How many steps the black box may take.
const STEPS: u64 = 50_000_000;

/// Judges a history; anything but legal by both fails the test.
pub(crate) fn judge(name: &str, history: &History) {
    let (log, search) = verdicts(history);
    println!("{name}: {:?}", log.counts);
    let both = [("the log witness", log), ("the black box", search)];
    for (oracle, report) in both {
        assert!(
            report.verdict == Verdict::Legal,
            "{name}: {oracle} says {:?}: {:#?}{:#?}",
            report.verdict,
            report.findings,
            report.parts.iter().filter(|part| part.verdict != Verdict::Legal).collect::<Vec<_>>()
        );
    }
}

/// What each oracle says.
fn verdicts(history: &History) -> (Report, Report) {
    (witness(history), black_box(history, &mut Budget::steps(STEPS)))
}

/// A history that was legal is so no longer once an answer is another: the proof that a run whose
/// cluster lies would fail.
pub(crate) fn lies_are_found(name: &str, history: &History) {
    for (lie, value) in [("lost", None), ("made up", Some("nobody wrote this".to_owned()))] {
        let mut history = history.clone();
        let told = last_value(&mut history);
        *told = value.map(|value| Versioned { value, ..told.clone().expect("it was there") });
        let (log, search) = verdicts(&history);
        assert_eq!(log.verdict, Verdict::Illegal, "{name}: {lie}: the log witness");
        assert_eq!(search.verdict, Verdict::Illegal, "{name}: {lie}: the black box");
    }
}

/// What the last read of a key was told that found something.
fn last_value(history: &mut History) -> &mut Option<Versioned> {
    let last = history.lines.iter().rposition(|line| {
        matches!(
            line,
            Line::Return { outcome: Outcome::Ok(Answer::Got { value: Some(_), .. }), .. }
        )
    });
    match &mut history.lines[last.expect("a run ends with reads")] {
        Line::Return { outcome: Outcome::Ok(Answer::Got { value, .. }), .. } => value,
        _ => unreachable!("it was looked for"),
    }
}
