//! How golden scenarios are written, for both of their players: `tests/raft/scenarios.rs` (the
//! consensus core) and `src/node/replica/tests/scenarios.rs` (replicas with their state machines).
//!
//! A block is commands, a line `----`, and what they bring about; `#` begins a comment. With
//! `UPDATE_EXPECT=1` what happens is written into the file; without, it is compared.

use std::{fmt::Write as _, fs, path::PathBuf};

/// A test for each scenario of a folder, played by a `Player` of its own, and one that none is left
/// out. The player stands beside, as `Player::new()` and `run(command)`.
macro_rules! scenarios {
    ($folder:literal: $($name:ident)*) => {
        $(#[test]
        fn $name() {
            let mut player = Player::new();
            script::play($folder, stringify!($name), |command| player.run(command));
        })*

        #[test]
        fn every_scenario_is_played() {
            assert_eq!(script::names($folder), [$(stringify!($name)),*]);
        }
    };
}

/// Where the scenarios lie.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios")
}

/// The files of one folder, in the order of the course.
pub(crate) fn files(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).expect("the folder is there");
    let names = entries.map(|file| file.expect("it can be listed").file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The names of one folder's scenarios: their files' without number and ending.
pub(crate) fn names(folder: &str) -> Vec<String> {
    files(folder).iter().map(|file| name_of(file).to_owned()).collect()
}

fn name_of(file: &str) -> &str {
    let (_, name) = file.split_once('_').expect("a file is called number_name.txt");
    name.strip_suffix(".txt").expect("a file is called number_name.txt")
}

/// Plays a scenario. `run` carries out a command and says what happens, line by line.
pub(crate) fn play(folder: &str, name: &str, run: impl FnMut(&str) -> Vec<String>) {
    let file = files(folder).into_iter().find(|file| name_of(file) == name);
    let path = root().join(folder).join(file.expect("the scenario is there"));
    let script = fs::read_to_string(&path).expect("the scenario can be read");
    let played = perform(&script, run);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, played).expect("the scenario can be written");
        return;
    }
    let differs = script.lines().zip(played.lines()).position(|(old, new)| old != new);
    let line = differs.map_or(script.lines().count(), |line| line + 1);
    assert!(
        script == played,
        "{} differs from line {line} on; this is what happens now:\n{played}\n\
         UPDATE_EXPECT=1 takes it over: read the difference",
        path.display()
    );
}

/// The script with what happens in the place of what was expected.
fn perform(script: &str, mut run: impl FnMut(&str) -> Vec<String>) -> String {
    let (mut out, mut commands, mut expected) = (String::new(), Vec::new(), false);
    for line in script.lines() {
        match line.trim() {
            "----" => {
                expected = true;
                out.push_str("----\n");
                for happened in commands.drain(..).flat_map(&mut run) {
                    writeln!(out, "{happened}").expect("a string takes it");
                }
            }
            "" => {
                expected = false;
                out.push('\n');
            }
            _ if expected => {}
            text => {
                writeln!(out, "{line}").expect("a string takes it");
                if !text.starts_with('#') {
                    commands.push(text);
                }
            }
        }
    }
    assert!(commands.is_empty(), "a block without its ----: {commands:?}");
    out
}
