//! Golden scenarios: `tests/scenarios/*.txt` are played and what happens is compared, line by line.
//!
//! A block is commands, a line `----`, and what they bring about; `#` begins a comment. Run with
//! `UPDATE_EXPECT=1` to write what happens into the files, and read the difference.

use std::{fmt::Write as _, fs, path::PathBuf};

use quorate::raft::{Config, Input};

use crate::network::{Network, i, ms, n};

macro_rules! scenarios {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            play(stringify!($name));
        })*

        #[test]
        fn every_scenario_is_played() {
            let mut files: Vec<String> = fs::read_dir(folder())
                .expect("the folder is there")
                .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
                .collect();
            files.sort();
            let mut played = vec![$(stringify!($name).to_owned()),*];
            played.sort();
            assert_eq!(files, played);
        }
    };
}

scenarios! {
    election
    replication
    conflict_repair
    pre_vote_rejection
    commit_of_old_terms
    read_index
    leadership_transfer
    disconnect_failover
    partition_heals
    snapshot_catch_up
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios")
}

fn play(name: &str) {
    let path = folder().join(format!("{name}.txt"));
    let script = fs::read_to_string(&path).expect("the scenario is there");
    let played = perform(&script);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, played).expect("the scenario is writable");
    } else {
        let differs = script.lines().zip(played.lines()).position(|(old, new)| old != new);
        let line = differs.map_or(script.lines().count(), |line| line + 1);
        assert!(
            script == played,
            "{} differs from line {line} on; this is what happens now:\n{played}\n\
             UPDATE_EXPECT=1 cargo test --test raft {name} takes it over",
            path.display()
        );
    }
}

/// The script with what happens in the place of what was expected.
fn perform(script: &str) -> String {
    let mut network = Network::new(3);
    network.trace = Some(Vec::new());
    let (mut out, mut commands, mut expected) = (String::new(), Vec::new(), false);
    for line in script.lines() {
        match line.trim() {
            "----" => {
                expected = true;
                out.push_str("----\n");
                for command in commands.drain(..) {
                    run(&mut network, command);
                    for event in network.trace.replace(Vec::new()).unwrap_or_default() {
                        writeln!(out, "{event}").expect("a string takes it");
                    }
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
    out
}

/// Carries out one command; the README of the folder's files is their own comments.
fn run(network: &mut Network, command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let id = |place: usize| -> u64 {
        let word = words.get(place).unwrap_or_else(|| panic!("{command}: who?"));
        word.trim_start_matches('n').parse().unwrap_or_else(|_| panic!("{command}: who?"))
    };
    match words[0] {
        // cluster 3 | cluster 1,1,2 1,1 1 (the terms of each member's entries; - for none)
        "cluster" => {
            let fresh = words.len() == 2 && !words[1].contains([',', '-']);
            let mut new = if fresh { Network::new(id(1)) } else { with_logs(&words[1..], |_| {}) };
            new.trace = network.trace.take();
            *network = new;
        }
        // The same with one entry in each append at most.
        "cluster-one-entry" => {
            let mut new = with_logs(&words[1..], |config| config.append_entries_max = 1);
            new.trace = network.trace.take();
            *network = new;
        }
        // An election that goes as expected, without the details.
        "elect" => {
            let trace = network.trace.take();
            network.elect(id(1));
            network.trace = trace;
            status(network);
        }
        "timeout" => network.time_out(id(1)),
        "wait" => network.run(ms(words[1].trim_end_matches("ms").parse().expect("a span"))),
        "settle" => network.settle(),
        "deliver" => network.deliver_to(id(1)),
        "persist" => network.persist(id(1)),
        "propose" => {
            for text in &words[2..] {
                network.propose(id(1), text);
            }
        }
        "read" => drop(network.read(id(1))),
        "transfer" => drop(network.transfer(id(1), Some(id(2)))),
        "lose" => network.packets.clear(),
        // One direction of one link.
        "cut" => drop(network.cut.insert((n(id(1)), n(id(2))))),
        "isolate" => network.isolate(id(1)),
        "heal" => network.heal(),
        "crash" => network.crash(id(1)),
        "restart" => network.restart(id(1)),
        "disconnect" => {
            network.step(id(1), Input::Disconnected { peer: n(id(2)) });
        }
        "disk-stands" => drop(network.disk_stands.insert(n(id(1)))),
        "disk-works" => drop(network.disk_stands.remove(&n(id(1)))),
        "purge" => {
            let through = i(words[2].trim_start_matches('i').parse().expect("an index"));
            network.step(id(1), Input::Purge { through });
        }
        "status" => status(network),
        _ => panic!("{command}: no such command"),
    }
}

fn with_logs(words: &[&str], configure: impl Fn(&mut Config)) -> Network {
    let terms = |word: &&str| -> Vec<u64> {
        let terms = word.split(',').filter(|term| *term != "-");
        terms.map(|term| term.parse().expect("a term")).collect()
    };
    let logs: Vec<Vec<u64>> = words.iter().map(terms).collect();
    let logs: Vec<&[u64]> = logs.iter().map(Vec::as_slice).collect();
    Network::with_logs_and(&logs, configure)
}

fn status(network: &mut Network) {
    let mut lines = Vec::new();
    for (id, node) in &network.nodes {
        let status = node.raft.status();
        let role = if node.up { format!("{:?}", status.role) } else { "down".to_owned() };
        let terms: Vec<String> =
            node.raft.entries().map(|entry| entry.term.value().to_string()).collect();
        lines.push(format!(
            "{id:?} {role:<12} {:?} log from {:?}: [{}] commit {:?} applied {:?}",
            status.term,
            status.first,
            terms.join(" "),
            status.commit,
            status.applied
        ));
    }
    network.trace.as_mut().expect("scenarios are traced").extend(lines);
}
