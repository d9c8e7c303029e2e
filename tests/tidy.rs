//! The rules of the house that a machine can check: the floors, the deterministic parts, the size
//! of files, their opening lines, and paths of somebody's machine.
//!
//! The checks are plain functions over sources, so that the tests below can plant bad ones and see
//! that each is found. What a rule means is in ARCHITECTURE.md and CONTRIBUTING.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Which folder of `src/` stands on which floor. A folder imports from lower floors, or sideways
/// without a cycle.
const FLOORS: &[(&str, u8)] = &[
    ("types", 0),
    ("pb", 0),
    ("host", 1),
    ("fuzz", 0),
    ("raft", 1),
    ("machine", 1),
    ("resilience", 1),
    ("storage", 2),
    ("wire", 2),
    ("observe", 2),
    ("net", 2),
    ("layers", 2),
    ("node", 3),
    ("streaming", 4),
    ("client", 4),
    ("sim", 4),
    ("services", 5),
    ("server", 6),
    ("lab", 7),
    ("testing", 7),
    ("cli", 7),
];

/// Where time, chance and I/O are arguments: folders, and files of other folders.
const DETERMINISTIC: &[&str] = &[
    "src/types/",
    "src/raft/",
    "src/machine/",
    "src/resilience/",
    "src/client/lease.rs",
    "src/sim/",
    "src/node/replica.rs",
    "src/node/replica/",
    "src/node/calls.rs",
    "src/node/lessor.rs",
    "src/streaming/steps.rs",
    "src/streaming/changes.rs",
    "src/streaming/events.rs",
];

/// What the deterministic parts must not name: crates, modules of `std`, and words.
const BANNED_CRATES: &[&str] = &["tokio", "tonic", "rand", "fastrand", "getrandom"];
const BANNED_STD: &[&str] = &["time", "net", "fs", "thread", "env", "process"];
const BANNED_WORDS: &[&str] =
    &["HashMap", "HashSet", "RandomState", "thread_rng", "new_v4", "now_v7"];

/// The most lines that a new file may have.
const MOST_LINES: usize = 600;

/// Older files above the limit, with their size. A number here may only shrink.
const LONGER: &[(&str, usize)] = &[];

/// Files with a limit of their own.
const SHORTER: &[(&str, usize)] = &[("bin/quorate.rs", 150), ("ARCHITECTURE.md", 300)];

/// Beginnings of paths on the machine of whoever wrote a file. In two parts each, so that this
/// file does not find itself.
const MACHINE_PATHS: &[(&str, &str)] = &[
    ("/wo", "rk/"),
    ("/tmp/", "wt/"),
    ("/tmp/", "td/"),
    ("/ro", "ot/"),
    ("/ho", "me/"),
    ("/Us", "ers/"),
];

/// A file of the repository.
struct Source {
    path: String,
    text: String,
}

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    collect(root, root, &mut sources);
    assert!(sources.iter().any(|source| source.path == "src/lib.rs"), "no sources were found");
    let problems = problems(&sources, LONGER);
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// Pages with a table of what others have and which test proves what Quorate has, in its last column.
const TABLES: &[&str] = &["docs/balancing.md", "docs/resilience.md"];

#[test]
fn the_tests_that_the_tables_beside_others_name_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    collect(root, &root.join("src"), &mut sources);
    for page in TABLES {
        let text = fs::read_to_string(root.join(page)).expect("the repository can be read");
        let (_, section) = text.split_once("\n## Beside others\n").expect("it has the section");
        let rows = section.lines().filter(|line| line.starts_with('|'));
        let ours = rows.filter_map(|row| row.rsplit('|').nth(1));
        let names: Vec<&str> = ours
            .flat_map(|cell| cell.split('`').skip(1).step_by(2))
            .filter(|name| !name.ends_with(".md"))
            .collect();
        assert!(names.len() > 20, "the table of {page} was not read: {names:?}");
        for name in names {
            let test = format!("fn {name}(");
            assert!(sources.iter().any(|source| source.text.contains(&test)), "{page}: no {name}");
        }
    }
}

/// Everything that is wrong, a line each.
fn problems(sources: &[Source], longer: &[(&str, usize)]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        found.extend(check_machine_paths(source));
        found.extend(check_size(source, longer));
        if source.path.ends_with(".rs") {
            found.extend(check_opening(source));
            found.extend(check_floor(source));
            found.extend(check_determinism(source));
        }
    }
    found.extend(check_exceptions(sources, longer));
    found.extend(check_cycles(sources));
    found
}

/// A folder names only folders on its own or lower floors.
fn check_floor(source: &Source) -> Vec<String> {
    let Some(folder) = folder_of(&source.path) else { return Vec::new() };
    let Some(floor) = floor_of(folder) else {
        return vec![format!("{}: the folder `{folder}` has no floor in tidy.rs", source.path)];
    };
    let mut found = Vec::new();
    for (line, name) in names_after(&code_of(&source.text), "crate") {
        if let Some(above) = floor_of(&name).filter(|above| *above > floor) {
            let path = &source.path;
            found.push(format!(
                "{path}:{line}: `{folder}` (floor {floor}) reaches up to `{name}` (floor {above})"
            ));
        }
    }
    found
}

/// Folders of one floor do not import each other in a circle.
fn check_cycles(sources: &[Source]) -> Vec<String> {
    let mut edges: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.path.ends_with(".rs")) {
        let Some(folder) = folder_of(&source.path) else { continue };
        for (_, name) in names_after(&code_of(&source.text), "crate") {
            if name != folder && floor_of(&name).is_some() && floor_of(&name) == floor_of(folder) {
                edges.entry(folder).or_default().insert(name);
            }
        }
    }
    let mut found = Vec::new();
    for start in edges.keys() {
        let mut reached = BTreeSet::new();
        let mut open = vec![(*start).to_owned()];
        while let Some(folder) = open.pop() {
            for next in edges.get(folder.as_str()).into_iter().flatten() {
                if reached.insert(next.clone()) {
                    open.push(next.clone());
                }
            }
        }
        if reached.contains(*start) {
            found.push(format!("src/{start}: imports itself through other folders of its floor"));
        }
    }
    found
}

/// The deterministic parts name no clock, network, file, thread, hash order or global chance.
fn check_determinism(source: &Source) -> Vec<String> {
    if !DETERMINISTIC.iter().any(|part| source.path.starts_with(part)) {
        return Vec::new();
    }
    let code = code_of(&source.text);
    let mut found = Vec::new();
    for (line, name) in names_after(&code, "std") {
        if BANNED_STD.contains(&name.as_str()) {
            found.push(format!("{}:{line}: names std::{name}", source.path));
        }
    }
    for (number, line) in code.lines().enumerate() {
        for word in words(line) {
            if BANNED_WORDS.contains(&word) || BANNED_CRATES.contains(&word) {
                found.push(format!("{}:{}: names {word}", source.path, number + 1));
            }
        }
    }
    found
}

/// A file keeps to its size.
fn check_size(source: &Source, longer: &[(&str, usize)]) -> Option<String> {
    let lines = source.text.lines().count();
    let path = source.path.as_str();
    let own = longer.iter().chain(SHORTER).find(|(listed, _)| *listed == path);
    let most = match own {
        Some((_, most)) => *most,
        None if path.ends_with(".rs") => MOST_LINES,
        None => return None,
    };
    (lines > most).then(|| format!("{path}: {lines} lines; at most {most}: split it by duty"))
}

/// The list of longer files only shrinks.
fn check_exceptions(sources: &[Source], longer: &[(&str, usize)]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, most) in longer {
        let Some(source) = sources.iter().find(|source| source.path == *path) else {
            found.push(format!("{path}: is gone: take it off the list in tidy.rs"));
            continue;
        };
        let lines = source.text.lines().count();
        if lines <= MOST_LINES {
            found.push(format!("{path}: {lines} lines: take it off the list in tidy.rs"));
        } else if lines < *most {
            found.push(format!("{path}: shrank to {lines} lines: write that into tidy.rs"));
        }
    }
    found
}

/// A file says first what it is for.
fn check_opening(source: &Source) -> Option<String> {
    (!source.text.starts_with("//!"))
        .then(|| format!("{}: does not open with `//!` and its duty", source.path))
}

/// No file names a path of the machine that it was written on.
fn check_machine_paths(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        for (start, rest) in MACHINE_PATHS {
            let path = format!("{start}{rest}");
            if line.contains(&path) {
                found.push(format!("{}:{}: names {path}", source.path, number + 1));
            }
        }
    }
    found
}

fn folder_of(path: &str) -> Option<&str> {
    path.strip_prefix("src/")?.split_once('/').map(|(folder, _)| folder)
}

fn floor_of(folder: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == folder).map(|(_, floor)| *floor)
}

/// The words of a line: runs of letters, digits and underscores.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The first names in every path that begins with `root`, with their lines: of `root::a::b` it is
/// `a`, of `root::{a, b::{c, d}}` they are `a` and `b`.
fn names_after(code: &str, root: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let pattern = format!("{root}::");
    for (at, _) in code.match_indices(&pattern) {
        let whole = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        if !whole {
            continue;
        }
        let line = code[..at].lines().count().max(1);
        let rest = &code[at + pattern.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            found.extend(names_in_group(group).into_iter().map(|name| (line, name)));
        } else if let Some(name) = words(rest.split("::").next().unwrap_or_default()).next() {
            found.push((line, name.to_owned()));
        }
    }
    found
}

/// The first names of a group's parts, up to the brace that closes it.
fn names_in_group(group: &str) -> Vec<String> {
    let (mut names, mut depth, mut part) = (Vec::new(), 0_usize, String::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.extend(words(&std::mem::take(&mut part)).next().map(String::from))
            }
            _ if depth == 0 => part.push(c),
            _ => {}
        }
    }
    names.extend(words(&part).next().map(String::from));
    names
}

/// The text without comments and the insides of plain strings, line for line.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    for line in text.lines() {
        let (mut inside, mut escaped, mut previous) = (false, false, ' ');
        for c in line.chars() {
            if inside {
                inside = escaped || c != '"';
                escaped = c == '\\' && !escaped;
            } else if c == '"' && previous != '\'' {
                inside = true;
            } else if c == '/' && previous == '/' {
                code.pop();
                break;
            } else {
                code.push(c);
            }
            previous = c;
        }
        code.push('\n');
    }
    code
}

/// Reads every text file below `folder` that belongs to the project.
fn collect(root: &Path, folder: &Path, sources: &mut Vec<Source>) {
    let entries = fs::read_dir(folder).expect("the repository can be read");
    for entry in entries.map(|entry| entry.expect("the repository can be read")) {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if ["target", ".git", "quorate-data", "Cargo.lock"].contains(&name.as_ref()) {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, sources);
        } else if let Ok(text) = fs::read_to_string(&path) {
            let path = path.strip_prefix(root).expect("below the root").to_string_lossy();
            sources.push(Source { path: path.replace('\\', "/"), text });
        }
    }
}

/// What the checks say about one planted file.
fn planted(path: &str, text: &str) -> Vec<String> {
    let text = format!("//! Planted.\n{text}\n");
    problems(&[Source { path: path.to_owned(), text }], &[])
}

#[test]
fn reaching_up_is_found() {
    let bad = [
        "use crate::node::Handle;",
        "use crate::{\n    pb,\n    node::{Handle, Feed},\n};",
        "fn f() { crate::server::run(); }",
        "pub(crate) use crate::cli;",
    ];
    for text in bad {
        let found = planted("src/storage/wal.rs", text);
        assert!(found.len() == 1 && found[0].contains("reaches up"), "{text}: {found:?}");
    }
    assert!(planted("src/storage/wal.rs", bad[1])[0].starts_with("src/storage/wal.rs:2:"));
}

#[test]
fn importing_downward_and_sideways_is_fine() {
    let good = "use crate::{raft::Entry, types::{node, Term}, wire::status};\n// crate::node\n\
                const WHY: &str = \"crate::node\";";
    assert_eq!(planted("src/storage/wal.rs", good), Vec::<String>::new());
}

#[test]
fn a_folder_without_a_floor_is_found() {
    assert!(planted("src/attic/box.rs", "")[0].contains("has no floor"));
}

#[test]
fn a_circle_on_one_floor_is_found() {
    let source =
        |path: &str, text: &str| Source { path: path.into(), text: format!("//! P.\n{text}") };
    let circle = [
        source("src/raft/a.rs", "use crate::machine::View;"),
        source("src/machine/b.rs", "use crate::{raft::Entry};"),
    ];
    assert_eq!(problems(&circle, &[]).len(), 2, "both folders are in it");
    assert!(problems(&circle[..1], &[]).is_empty());
}

#[test]
fn what_the_deterministic_floors_must_not_name_is_found() {
    let bad = [
        "use tokio::sync::mpsc;",
        "fn f(_: tonic::Status) {}",
        "use std::time::Instant;",
        "use std::{collections::BTreeMap, fs};",
        "let listener = std::net::TcpListener::bind(a);",
        "use std::{io::{self, Write}, thread::spawn};",
        "use std::collections::HashMap;",
        "let id = Uuid::new_v4();",
    ];
    for text in bad {
        for path in ["src/raft/log.rs", "src/sim/world.rs", "src/node/replica.rs"] {
            assert_eq!(planted(path, text).len(), 1, "{path}: {text}");
        }
        assert_eq!(planted("src/node/driver.rs", text), Vec::<String>::new(), "{text}");
    }
    let good = "use std::{collections::BTreeMap, fmt};\n// tokio, HashMap and std::time\n\
                fn time() { log(\"tokio\") } // std::fs";
    assert_eq!(planted("src/raft/log.rs", good), Vec::<String>::new());
}

#[test]
fn a_file_that_is_too_long_is_found_and_exceptions_only_shrink() {
    let long = |lines: usize| Source {
        path: "src/raft/raft.rs".to_owned(),
        text: "//! Long.\n".repeat(lines),
    };
    assert_eq!(problems(&[long(600)], &[]), Vec::<String>::new());
    assert!(problems(&[long(601)], &[])[0].contains("601 lines"));
    let listed: &[(&str, usize)] = &[("src/raft/raft.rs", 700)];
    assert_eq!(problems(&[long(700)], listed), Vec::<String>::new());
    assert!(problems(&[long(701)], listed)[0].contains("at most 700"));
    assert!(problems(&[long(650)], listed)[0].contains("shrank"));
    assert!(problems(&[long(500)], listed)[0].contains("off the list"));
    assert!(problems(&[], listed)[0].contains("is gone"));
    let main = Source { path: "bin/quorate.rs".into(), text: "//! Main.\n".repeat(151) };
    assert!(problems(&[main], &[])[0].contains("at most 150"));
}

#[test]
fn a_file_without_its_duty_is_found() {
    let source = Source { path: "src/raft/log.rs".into(), text: "use core::fmt;\n".into() };
    assert!(problems(&[source], &[])[0].contains("does not open"));
}

#[test]
fn a_path_of_somebodys_machine_is_found() {
    for (start, rest) in MACHINE_PATHS {
        let text = format!("See {start}{rest}notes.md.\n");
        let source = Source { path: "docs/notes.md".into(), text };
        assert_eq!(problems(&[source], &[]).len(), 1);
    }
}
