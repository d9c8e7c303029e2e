//! `quorate cluster`: hand over leadership, compare the nodes' state, back it up.

use clap::{Args, Subcommand};

use crate::{
    cli::{
        Error, OutputFormat,
        context::Context,
        json,
        snapshot::SnapshotCommand,
        table::{Cell, Paint, Table},
    },
    pb::cluster::v1::{
        StateHashRequest, StateHashResponse, StatusRequest, TransferLeadershipRequest,
    },
};

/// `quorate cluster`.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Hand leadership to another node
    #[command(
        after_help = "Examples:\n  quorate cluster transfer\n  quorate cluster transfer --to 2"
    )]
    Transfer(TransferArgs),
    /// Compare a hash of every node's state; exit 1 where two differ
    #[command(after_help = "Example:\n  quorate cluster hash")]
    Hash(HashArgs),
    /// Save the state to a file for a backup, or check such a file
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
}

/// Flags of `cluster transfer`.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// The node that is to lead [default: the most up-to-date one]
    #[arg(long, value_name = "ID", default_value_t = 0, hide_default_value = true)]
    to: u64,
}

/// Flags of `cluster hash`.
#[derive(Debug, Args)]
pub struct HashArgs {
    /// The revision to hash at [default: the newest that all nodes have]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    revision: u64,
}

impl ClusterCommand {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Transfer(args) => transfer(context, args).await,
            Self::Hash(args) => hash(context, args).await,
            Self::Snapshot(command) => command.run(context).await,
        }
    }
}

async fn transfer(context: &Context, args: TransferArgs) -> Result<(), Error> {
    let request = TransferLeadershipRequest { target_id: args.to };
    let answer = context.client.cluster().transfer_leadership(request).await?;
    context.show.answer(&answer, |answer| {
        format!("node {} leads in term {}", answer.leader_id, answer.term).into()
    })
}

async fn hash(context: &Context, args: HashArgs) -> Result<(), Error> {
    let status = context.client.cluster().status(StatusRequest::default()).await?;
    let (up, down): (Vec<_>, Vec<_>) = status.nodes.iter().partition(|node| node.reachable);
    let newest = up.iter().map(|node| node.revision).min().unwrap_or_default();
    let revision = if args.revision == 0 { newest } else { args.revision };
    let mut hashes = Vec::new();
    for node in up {
        let one = context.client_of(core::slice::from_ref(&node.client_address))?;
        hashes.push(one.cluster().state_hash(StateHashRequest { revision }).await?);
    }
    if context.show.format == OutputFormat::Table {
        context.show.shown(&table(&hashes).into())?;
    } else {
        for hash in &hashes {
            context.show.line(&json::line(hash)?)?;
        }
    }
    if let Some((one, other)) = differing(&hashes) {
        return Err(Error::failed(format!("the state of nodes {one} and {other} differs")));
    }
    if let Some(node) = down.first() {
        return Err(Error::failed(format!("node {} did not answer", node.node_id)));
    }
    Ok(())
}

fn table(hashes: &[StateHashResponse]) -> Table {
    let mut table = Table::new(&["ID", "REVISION", "COMPACTED", "HASH", "APPLIED", "WHOLE STATE"]);
    let bad = differing(hashes).is_some();
    let paint = if bad { Paint::Bad } else { Paint::Good };
    for hash in hashes {
        table.row([
            hash.node_id.into(),
            hash.revision.into(),
            hash.compact_revision.into(),
            Cell::painted(&hash.hash, paint),
            hash.applied_index.into(),
            Cell::painted(&hash.full_hash, paint),
        ]);
    }
    table
}

/// Two nodes whose state should be equal and is not.
fn differing(hashes: &[StateHashResponse]) -> Option<(u64, u64)> {
    let keys = |hash: &StateHashResponse| (hash.revision, hash.compact_revision);
    let differ = |one: &StateHashResponse, other: &StateHashResponse| {
        keys(one) == keys(other) && one.hash != other.hash
            || one.applied_index == other.applied_index && one.full_hash != other.full_hash
    };
    let pairs = hashes.iter().enumerate();
    let mut pairs = pairs.flat_map(|(at, one)| hashes[at + 1..].iter().map(move |two| (one, two)));
    pairs.find(|(one, two)| differ(one, two)).map(|(one, two)| (one.node_id, two.node_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(node_id: u64, revision: u64, hash: &str, applied_index: u64) -> StateHashResponse {
        let full_hash = format!("full {hash}");
        let hash = hash.to_owned();
        StateHashResponse {
            node_id,
            revision,
            hash,
            applied_index,
            full_hash,
            ..Default::default()
        }
    }

    #[test]
    fn only_what_must_be_equal_is_compared() {
        assert_eq!(differing(&[hash(1, 5, "a", 9), hash(2, 5, "a", 9)]), None);
        assert_eq!(differing(&[hash(1, 5, "a", 9), hash(2, 6, "b", 10)]), None);
        assert_eq!(
            differing(&[hash(1, 5, "a", 9), hash(2, 5, "a", 9), hash(3, 5, "b", 10)]),
            Some((1, 3))
        );
        assert_eq!(differing(&[hash(1, 5, "a", 9), hash(2, 6, "b", 9)]), Some((1, 2)));
    }
}
