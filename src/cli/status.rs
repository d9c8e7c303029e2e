//! `quorate status`: how the nodes stand, in one answer for the whole cluster.

use clap::Args;
use tokio::time::{Instant, interval_at};

use crate::{
    cli::{
        Error, OutputFormat,
        context::Context,
        show::say,
        table::{Cell, Paint, Table, id, optional},
    },
    pb::cluster::v1::{Alarm, NodeStatus, Role, StatusRequest, StatusResponse},
    types::Duration,
};

/// How often `--watch` asks again.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Clears a terminal and goes to its top.
const CLEAR: &[u8] = b"\x1b[2J\x1b[H";

/// Flags of `status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  quorate status\n  quorate status --watch")]
pub struct StatusArgs {
    /// Show it again every second
    #[arg(long)]
    watch: bool,
}

impl StatusArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        if !self.watch {
            let answer = context.client.cluster().status(StatusRequest::default()).await?;
            return context.show.answer(&answer, |answer| table(answer).into());
        }
        let mut turns = interval_at(Instant::now(), WATCH_INTERVAL);
        loop {
            turns.tick().await;
            let answer = context.client.cluster().status(StatusRequest::default()).await;
            if context.show.terminal && context.show.format == OutputFormat::Table {
                context.show.bytes(CLEAR)?;
            }
            match answer {
                Ok(answer) => context.show.message(&answer, |answer| table(answer).into())?,
                Err(error) => say(&format!("error: {error}")),
            }
        }
    }
}

fn table(answer: &StatusResponse) -> Table {
    let mut table = Table::new(&[
        "ID", "ROLE", "TERM", "CLIENT", "PEER", "COMMIT", "APPLIED", "REVISION", "POSITION",
        "VERSION",
    ]);
    for node in &answer.nodes {
        if !node.reachable {
            let why = if node.error.is_empty() { "no answer" } else { &node.error };
            let dash = || Cell::from("-");
            table.row([
                node.node_id.into(),
                Cell::painted("unreachable", Paint::Bad),
                dash(),
                optional(&node.client_address).into(),
                optional(&node.peer_address).into(),
                dash(),
                dash(),
                dash(),
                dash(),
                optional(why).into(),
            ]);
            continue;
        }
        table.row([
            node.node_id.into(),
            role(node),
            node.term.into(),
            optional(&node.client_address).into(),
            optional(&node.peer_address).into(),
            node.commit_index.into(),
            node.applied_index.into(),
            id(node.revision).into(),
            id(node.position).into(),
            optional(&node.version).into(),
        ]);
    }
    table
}

fn role(node: &NodeStatus) -> Cell {
    let (text, paint) = match node.role() {
        Role::Leader => ("leader", Paint::Good),
        Role::Follower => ("follower", Paint::Plain),
        Role::PreCandidate => ("pre-candidate", Paint::Bad),
        Role::Candidate => ("candidate", Paint::Bad),
        Role::Unspecified => ("unknown", Paint::Bad),
    };
    let draining = if node.draining { ", draining" } else { "" };
    let short = node.alarms.contains(&Alarm::NoSpace.into());
    let (space, paint) = if short { (", no space", Paint::Bad) } else { ("", paint) };
    Cell::painted(format!("{text}{draining}{space}"), paint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_does_not_answer_is_listed_with_the_reason() {
        let leader = NodeStatus {
            node_id: 1,
            client_address: "127.0.0.1:7401".to_owned(),
            reachable: true,
            role: Role::Leader.into(),
            term: 3,
            version: "0.1.0".to_owned(),
            ..Default::default()
        };
        let gone =
            NodeStatus { node_id: 2, error: "connection refused".to_owned(), ..Default::default() };
        let answer = StatusResponse { nodes: vec![leader, gone], ..Default::default() };
        let text = table(&answer).render(false);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with("1   leader       3     127.0.0.1:7401"), "{text}");
        assert!(lines[2].contains("unreachable") && lines[2].ends_with("connection refused"));
    }
}
