//! The histories in `tests/histories`: each verdict agrees with the file's label, and an illegal
//! one is found by the rule and at the call that the label names.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use quorate::sim::{
    checker::{Budget, RULES, Report, Verdict, black_box, check_form, witness},
    history::History,
};

const STEPS: u64 = 1_000_000;

/// What a label says.
#[derive(Debug)]
struct Label {
    verdict: Verdict,
    rule: Option<String>,
    call: Option<u64>,
}

impl Label {
    /// Reads `legal`, `illegal: RULE` or `illegal: RULE, call N`.
    fn read(text: &str) -> Self {
        if text == "legal" {
            return Self { verdict: Verdict::Legal, rule: None, call: None };
        }
        let rest = text.strip_prefix("illegal: ").expect("a label is legal or illegal");
        let (rule, call) = rest.split_once(", call ").unwrap_or((rest, ""));
        let call = (!call.is_empty()).then(|| call.parse().expect("a call has a number"));
        Self { verdict: Verdict::Illegal, rule: Some(rule.to_owned()), call }
    }
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/histories");
    let entries = fs::read_dir(folder).expect("the histories are there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    files.sort();
    files
}

/// The history of a file with its label; a log of Jepsen's has it in its name.
fn read(file: &Path) -> (History, Label) {
    let input = BufReader::new(File::open(file).expect("it can be read"));
    let history =
        History::read(input).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    check_form(&history).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let label = match file.file_name().and_then(|name| name.to_str()) {
        Some("jepsen-legal.log") => "legal".to_owned(),
        Some("jepsen-illegal.log") => "illegal: linearizable, call 4".to_owned(),
        _ => history.header.label.clone().expect("it has a label"),
    };
    (history, Label::read(&label))
}

fn judge(history: &History) -> [Report; 2] {
    [witness(history), black_box(history, &mut Budget::steps(STEPS))]
}

#[test]
fn every_verdict_agrees_with_its_label() {
    let (mut legal, mut illegal) = (0, 0);
    for file in files() {
        let (history, label) = read(&file);
        let name = file.display();
        let [seen, searched] = judge(&history);
        let both = seen.clone().with(searched.clone());
        assert_eq!(both.verdict, label.verdict, "{name}: {:#?}", both.findings);
        match label.verdict {
            Verdict::Legal => {
                legal += 1;
                for one in [seen, searched] {
                    assert_ne!(one.verdict, Verdict::Illegal, "{name}: {:#?}", one.findings);
                }
            }
            _ => {
                illegal += 1;
                let rule = label.rule.expect("an illegal one names its rule");
                let named =
                    both.findings.iter().any(|found| found.rule == rule && found.op == label.call);
                let call = label.call;
                assert!(named, "{name}: {rule} at {call:?} is not in {:#?}", both.findings);
            }
        }
    }
    assert!(legal >= 12 && illegal >= 20, "{legal} legal, {illegal} illegal");
}

#[test]
fn what_is_found_names_the_call_and_what_would_have_been_legal() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/histories");
    let (history, _) = read(&folder.join("register-stale-read.jsonl"));
    let [_, searched] = judge(&history);
    let found = &searched.findings[0];
    for part in ["keys x", "client 3", "get x answered \"1\""] {
        assert!(found.words.contains(part), "{}", found.words);
    }
    assert_eq!(found.legal, ["\"2\""]);
    let part = searched.parts.iter().find(|part| part.name == "keys x").expect("it has the key");
    assert_eq!(part.order, [1, 2, 3], "the longest legal order stops before it");
}

#[test]
fn each_rule_has_a_history_that_breaks_it_and_a_line_in_the_document() {
    let broken: BTreeSet<String> = files().iter().filter_map(|file| read(file).1.rule).collect();
    let known: BTreeSet<String> = RULES.iter().map(|(rule, _)| (*rule).to_owned()).collect();
    assert_eq!(broken, known);
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/history.md");
    let document = fs::read_to_string(document).expect("it can be read");
    for (rule, meaning) in RULES {
        let row = format!("| `{rule}` | {meaning} |");
        assert!(document.contains(&row), "docs/history.md lacks: {row}");
    }
}

#[test]
fn the_examples_of_the_document_are_what_it_says() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/history.md");
    let document = fs::read_to_string(document).expect("it can be read");
    let mut verdicts = Vec::new();
    for block in document.split("```").skip(1).step_by(2) {
        let Some(text) = block.strip_prefix("json\n").or_else(|| block.strip_prefix("text\nINFO"))
        else {
            continue;
        };
        let text = if block.starts_with("text") { format!("INFO{text}") } else { text.to_owned() };
        let history = History::read(text.as_bytes()).expect("an example reads");
        check_form(&history).expect("an example is well formed");
        let [seen, searched] = judge(&history);
        verdicts.push(seen.with(searched).verdict);
    }
    assert_eq!(verdicts, [Verdict::Illegal, Verdict::Legal, Verdict::Legal]);
}
