//! The command line as a whole: where flags may stand and what each command shows for help.

use clap::{CommandFactory as _, Parser as _};

use crate::{
    cli::{Cli, Command, OutputFormat},
    types::Duration,
};

fn parse(line: &str) -> Cli {
    Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn the_definitions_fit_together() {
    Cli::command().debug_assert();
}

#[test]
fn global_flags_stand_before_or_after_the_command() {
    for line in [
        "quorate --timeout 9s -o json --endpoints a:1,b:2 kv get x",
        "quorate kv get x --timeout 9s -o json --endpoints a:1,b:2",
        "quorate kv --endpoints a:1,b:2 --output json get x --timeout 9s",
    ] {
        let globals = parse(line).globals;
        assert_eq!(globals.timeout, Some(Duration::from_secs(9)), "{line}");
        assert_eq!(globals.output, Some(OutputFormat::Json), "{line}");
        assert_eq!(globals.endpoints, Some(vec!["a:1".to_owned(), "b:2".to_owned()]), "{line}");
    }
}

#[test]
fn the_commands_of_the_contract_are_taken_as_written() {
    for line in [
        "quorate up --nodes 5 --base-port 8000 --ephemeral -- --log-level debug",
        "quorate up --data-dir d",
        "quorate node --id 1 --data-dir d --listen a --peer-listen b --admin-listen c --bootstrap \
         --initial-cluster 1=a,2=b",
        "quorate status --watch",
        "quorate kv put a 1",
        "quorate kv put a -1",
        "quorate kv list --prefix a/",
        "quorate kv list a/",
        "quorate kv watch a --prefix --from 7",
        "quorate kv txn",
        "quorate kv compact 7",
        "quorate lock acquire demo --ttl 5s -- sleep 1",
        "quorate -o json lock acquire demo2 --ttl 5s --wait forever",
        "quorate lock acquire demo --wait 0s",
        "quorate lock renew demo --fencing-token 7",
        "quorate lock release demo --fencing-token 7",
        "quorate lock describe demo",
        "quorate lock list",
        "quorate lock watch demo",
        "quorate service register web --address 127.0.0.1:9000 --ttl 30s --zone z --weight 2 \
         --meta a=b --meta c=d -- true",
        "quorate discovery resolve web",
        "quorate service deregister web id",
        "quorate service register web --address h:1 --state draining",
        "quorate service drain web id",
        "quorate service resume web id",
        "quorate service list",
        "quorate service watch web",
        "quorate events append orders --expect no-stream",
        "quorate events read orders",
        "quorate events subscribe orders --from start",
        "quorate events streams",
        "quorate cluster transfer",
        "quorate cluster hash",
        "quorate completions bash",
    ] {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        parse(&line);
    }
}

#[test]
fn what_follows_two_dashes_is_the_commands_own() {
    let cli = parse("quorate lock acquire demo -- cmd --timeout 1s -o json");
    assert_eq!(cli.globals.timeout, None);
    assert!(matches!(cli.command, Command::Lock(_)));
}

#[test]
fn every_command_has_an_example() {
    fn visit(command: &clap::Command, path: &str, missing: &mut Vec<String>) {
        let path = format!("{path} {}", command.get_name());
        let mut leaf = true;
        for sub in command.get_subcommands() {
            leaf = false;
            visit(sub, &path, missing);
        }
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        if leaf && !help.contains("  quorate ") && !help.contains("| quorate ") {
            missing.push(path);
        }
    }
    let mut missing = Vec::new();
    visit(&Cli::command(), "", &mut missing);
    assert!(missing.is_empty(), "{missing:?}");
}
