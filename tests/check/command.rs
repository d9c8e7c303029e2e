//! `quorate check` as a person runs it: exit codes, output, the timeline beside the file.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn histories() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/histories")
}

fn check(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quorate"))
        .arg("check")
        .args(arguments)
        .env_remove("QUORATE_OUTPUT")
        .output()
        .expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("it is text")
}

/// A history of the repository, where it may be written beside.
fn copied(folder: &Path, name: &str) -> String {
    let to = folder.join(name);
    fs::copy(histories().join(name), &to).expect("it can be copied");
    to.display().to_string()
}

#[test]
fn a_legal_history_is_0_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = copied(folder.path(), "lock-handed-over.jsonl");
    let output = check(&[&file]);
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{out}");
    assert!(out.starts_with(&format!("{file}: legal\n")), "{out}");
    assert!(out.contains("lock l ") && !out.contains("broken"), "{out}");
    assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), 1);
}

#[test]
fn an_illegal_history_is_1_and_draws_its_timeline_beside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = copied(folder.path(), "register-stale-read.jsonl");
    let output = check(&[&file]);
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(out.contains("broken: linearizable") && out.contains("call 4 of client 3"), "{out}");
    assert!(out.contains("legal there: \"2\""), "{out}");
    let html = format!("{file}.html");
    assert!(out.contains(&format!("timeline: {html}")), "{out}");
    let page = fs::read_to_string(html).expect("it was drawn");
    assert!(page.starts_with("<!doctype html>") && page.contains("\"order\":[1,2,3]"));
    for loaded in ["src=", "href=", "@import", "url("] {
        assert!(!page.contains(loaded), "a page needs nothing else, but has {loaded}");
    }
    let elsewhere = folder.path().join("elsewhere.html").display().to_string();
    assert_eq!(check(&["--html", &elsewhere, &file]).status.code(), Some(1));
    assert!(fs::exists(elsewhere).expect("the folder can be read"));
}

#[test]
fn what_nobody_can_tell_is_3() {
    let register = histories().join("register-legal.jsonl").display().to_string();
    let output = check(&["--oracle", "witness", &register]);
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{out}");
    assert!(out.contains("answers carry no revision"), "{out}");
    let legal = histories().join("queue.jsonl").display().to_string();
    assert_eq!(check(&[&legal]).status.code(), Some(0));
    assert_eq!(check(&[&legal, "--oracle", "witness"]).status.code(), Some(3));
}

#[test]
fn what_cannot_be_read_is_2_and_one_line_names_file_and_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let header = "{\"quorate_history\":1}\n";
    let call =
        "{\"line\":\"call\",\"time\":1,\"id\":1,\"client\":1,\"call\":\"get\",\"key\":\"a\"}\n";
    for (content, line) in [
        (String::new(), "line 1: "),
        ("{}\n".to_owned(), "line 1: "),
        (format!("{header}\n{call}what\n"), "line 4: "),
        (format!("{header}\n{call}\n{call}"), "line 5: call number 1 is used twice"),
        ("{\"quorate_history\":9}\n".to_owned(), "version 9"),
        ("INFO jepsen.util - 1 :ok :read nil\n".to_owned(), "line 1: process 1 has no call"),
    ] {
        let file = folder.path().join("h.jsonl");
        fs::write(&file, &content).expect("it can be written");
        let output = check(&[&file.display().to_string()]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{content}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.starts_with("error: ") && error.contains("h.jsonl: "), "{error}");
        assert!(error.contains(line), "{content}: {error}");
        assert!(!error.contains("at line 1 column"), "{error}");
    }
    let output = check(&["/nowhere/at/all.jsonl"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[test]
fn several_files_and_standard_input_are_judged_and_the_worst_counts() {
    let legal = histories().join("queue.jsonl").display().to_string();
    let illegal = histories().join("jepsen-illegal.log");
    let mut child = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["check", &legal, "-", "-o", "jsonl"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(&fs::read(illegal).expect("it can be read")).expect("it is read");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let reports: Vec<serde_json::Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("it is JSON"))
        .collect();
    assert_eq!(reports.len(), 2);
    assert_eq!(reports[0]["verdict"], "legal");
    assert_eq!(reports[1]["verdict"], "illegal");
    assert_eq!(reports[1]["file"], "standard input");
    assert_eq!(reports[1]["findings"][0]["op"], 4);
    assert_eq!(reports[1]["findings"][0]["rule"], "linearizable");
}
