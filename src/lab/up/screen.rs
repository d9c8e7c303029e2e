//! What `up` says: the table of endpoints and the commands to copy on standard output, the rest on
//! standard error.
//!
//! Nothing here fails: a terminal that is gone must not keep the cluster from being stopped.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
};

use crate::lab::{
    process::{NodeSpec, shell_word},
    up::place,
};

/// Says a line.
pub(super) fn say(line: impl Display) {
    let _gone = writeln!(io::stderr(), "{line}");
}

/// A line on a terminal that is written over and over; nothing where there is no terminal.
#[derive(Debug)]
pub(super) struct Progress {
    shown: Option<String>,
    terminal: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { shown: None, terminal: io::stderr().is_terminal() }
    }

    /// Shows how far it is.
    pub(super) fn show(&mut self, line: String) {
        if self.terminal && self.shown.as_ref() != Some(&line) {
            let _gone = write!(io::stderr(), "\r\x1b[K{line}");
            self.shown = Some(line);
        }
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        if self.shown.take().is_some() {
            let _gone = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// How commands to copy are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hints<'a> {
    /// How the person typed the program.
    pub(super) typed_as: &'a str,
    /// Whether they say where the nodes are, because the command line would not find them itself.
    pub(super) endpoints: bool,
    /// The CA to trust, where nodes speak TLS.
    pub(super) ca: Option<&'a Path>,
}

/// Prints where the nodes are and what to try.
pub(super) fn welcome(specs: &[NodeSpec], leader: u64, hints: Hints<'_>, dir: &Path) {
    let text = table(specs, leader) + "\n" + &commands(specs, hints);
    let mut out = io::stdout();
    let _gone = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    say(format_args!("\nLogs: {}/node-N/node.log. Ctrl-C stops the cluster.", dir.display()));
}

fn table(specs: &[NodeSpec], leader: u64) -> String {
    let row = |cells: [&str; 5]| {
        let [node, clients, peers, admin, role] = cells;
        let line = format!("{node:<5} {clients:<16} {peers:<16} {admin:<23} {role}");
        line.trim_end().to_owned() + "\n"
    };
    let mut text = row(["NODE", "CLIENTS (gRPC)", "PEERS (gRPC)", "ADMIN (HTTP)", "ROLE"]);
    for spec in specs {
        let a = spec.addresses;
        text += &row([
            &spec.id.to_string(),
            &a.client.to_string(),
            &a.peer.to_string(),
            &format!("http://{}", a.admin),
            if spec.id == leader { "leader" } else { "follower" },
        ]);
    }
    text
}

/// Three commands to copy and the same over grpcurl.
fn commands(specs: &[NodeSpec], hints: Hints<'_>) -> String {
    let ca = hints.ca.map(|ca| shell_word(&ca.to_string_lossy()));
    let mut program = hints.typed_as.to_owned();
    if hints.endpoints {
        program += &format!(" --endpoints {}", place::endpoints(specs));
        program += &ca.as_ref().map(|ca| format!(" --tls-ca {ca}")).unwrap_or_default();
    }
    let grpcurl = ca.map_or_else(|| "-plaintext".to_owned(), |ca| format!("-cacert {ca}"));
    let client = specs.first().map(|spec| spec.addresses.client.to_string()).unwrap_or_default();
    format!(
        "  {program} status\n  \
           {program} kv put greeting hello\n  \
           {program} lock acquire demo --ttl 5s -- sleep 1\n  \
           grpcurl {grpcurl} -d '{{\"name\":\"demo\",\"ttl\":\"5s\"}}' {client} \
         quorate.lock.v1.LockService/Acquire\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::up::UpOptions;

    fn specs() -> Vec<NodeSpec> {
        let options = UpOptions {
            nodes: 3,
            base_port: 7400,
            data_dir: "quorate-data".into(),
            ephemeral: false,
            restore: None,
            tls: false,
            node_flags: Vec::new(),
            program: "quorate".into(),
            typed_as: "quorate".to_owned(),
        };
        options.specs("quorate-data".as_ref(), false, None)
    }

    #[test]
    fn the_table_names_every_address_and_the_leader() {
        let text = table(&specs(), 2);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(
            lines[2],
            "2     127.0.0.1:7402   127.0.0.1:7412   http://127.0.0.1:7422   leader"
        );
        assert!(lines[1].ends_with("follower"));
    }

    #[test]
    fn the_commands_are_written_as_the_person_typed_the_program() {
        let hints = |typed_as, endpoints, ca| Hints { typed_as, endpoints, ca };
        let plain = commands(&specs(), hints("target/release/quorate", false, None));
        assert!(plain.starts_with("  target/release/quorate status\n"), "{plain}");
        assert_eq!(plain.lines().count(), 4);
        let told = commands(&specs(), hints("q", true, None));
        let endpoints = "--endpoints 127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403";
        assert!(told.starts_with(&format!("  q {endpoints} status\n")), "{told}");
        assert!(told.contains("127.0.0.1:7401 quorate.lock.v1.LockService/Acquire"));
        assert!(told.contains("grpcurl -plaintext "), "{told}");
        let ca = Some(Path::new("/my data/ca.pem"));
        let secure = commands(&specs(), hints("q", true, ca));
        let flags = format!("  q {endpoints} --tls-ca '/my data/ca.pem' status\n");
        assert!(secure.starts_with(&flags), "{secure}");
        assert!(secure.contains("grpcurl -cacert '/my data/ca.pem' -d"), "{secure}");
        let found = commands(&specs(), hints("q", false, ca));
        assert!(found.starts_with("  q status\n"), "the CA is found with the endpoints: {found}");
    }
}
