//! `quorate lab`: break links between nodes that were started with `--lab`, look, and heal.
//!
//! Each node breaks its own links, so a command finds the node that it concerns first. Nodes are
//! found through any that answers, also those that it does not reach itself.

use clap::{Args, Subcommand, ValueEnum};
use tonic::Code;

use crate::{
    cli::{Error, OutputFormat, context::Context, json, show::say, table::Table},
    client,
    pb::{
        cluster::v1::{NodeStatus, StatusRequest},
        lab::v1::{Direction, LinkFault, ListLinkFaultsResponse, MessageKind},
    },
    server::parse_duration,
    types::Duration,
};

/// `quorate lab`.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Break the link from one node to another for a while
    #[command(
        after_help = "Examples:\n  quorate up --lab\n  quorate lab link --from 1 --to 2 --drop 1.0 --for 10s\n  quorate lab link --from 1 --to 2 --both --cut --for 10s\n  quorate lab link --from 3 --to 1 --kind append --delay 200ms --jitter 100ms --for 1m"
    )]
    Link(LinkArgs),
    /// Show the link faults in force, and what faults did so far
    #[command(after_help = "Example:\n  quorate lab links")]
    Links(LinksArgs),
    /// Take all link faults of all nodes away
    #[command(after_help = "Example:\n  quorate lab heal")]
    Heal(HealArgs),
}

/// Flags of `lab link`.
#[derive(Debug, Args)]
pub struct LinkArgs {
    /// The node that sends
    #[arg(long, value_name = "ID")]
    from: u64,
    /// The node that is sent to
    #[arg(long, value_name = "ID")]
    to: u64,
    /// Break the way back as well
    #[arg(long)]
    both: bool,
    /// Which messages; may be repeated [default: all]
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<KindArg>,
    /// The share of messages that are lost, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, hide_default_value = true)]
    drop: f64,
    /// How much later messages arrive
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    delay: Option<Duration>,
    /// Up to how much later than that
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    jitter: Option<Duration>,
    /// The share of Raft's messages that arrive twice
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, hide_default_value = true)]
    duplicate: f64,
    /// The share of Raft's messages that later ones overtake
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, hide_default_value = true)]
    reorder: f64,
    /// Break connections and let none through, instead of losing messages without a trace
    #[arg(long)]
    cut: bool,
    /// How long it lasts; it ends by itself, 10m at most
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    lease: Duration,
    /// What chance is drawn from
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    seed: u64,
}

/// Flags of `lab links`.
#[derive(Debug, Args)]
pub struct LinksArgs {}

/// Flags of `lab heal`.
#[derive(Debug, Args)]
pub struct HealArgs {}

/// A kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindArg {
    Control,
    Vote,
    VoteAnswer,
    Heartbeat,
    HeartbeatAnswer,
    Append,
    AppendAnswer,
    Transfer,
    Forward,
    ForwardAnswer,
    Snapshot,
    SnapshotAnswer,
}

impl LabCommand {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Link(args) => args.run(context).await,
            Self::Links(_) => links(context).await,
            Self::Heal(_) => heal(context).await,
        }
    }
}

impl LinkArgs {
    async fn run(self, context: &Context) -> Result<(), Error> {
        if self.from == self.to {
            return Err(Error::Usage("--from and --to name the same node".to_owned()));
        }
        let nodes = nodes(context).await?;
        let sender = find(&nodes, self.from)?;
        find(&nodes, self.to)?;
        let ways: &[_] = match self.both {
            true => &[Direction::ToPeer, Direction::FromPeer],
            false => &[Direction::ToPeer],
        };
        let client = client_of(context, sender)?;
        for direction in ways {
            let added = client.lab().add_link_fault(self.fault(*direction), self.lease).await;
            let added = added.map_err(|error| not_a_lab(error, sender))?;
            context.show.answer(&added, |added| {
                let link = link(self.from, self.to, *direction);
                let what = what(&self.fault(*direction));
                format!("node {}, fault {}: {link}: {what}", added.node_id, added.fault_id).into()
            })?;
        }
        Ok(())
    }

    fn fault(&self, direction: Direction) -> LinkFault {
        LinkFault {
            peer_id: self.to,
            direction: direction.into(),
            kinds: self.kinds.iter().map(|kind| kind.wire().into()).collect(),
            drop: self.drop,
            delay: self.delay.and_then(|span| span.try_into().ok()),
            jitter: self.jitter.and_then(|span| span.try_into().ok()),
            duplicate: self.duplicate,
            reorder: self.reorder,
            cut: self.cut,
            seed: self.seed,
        }
    }
}

impl KindArg {
    fn wire(self) -> MessageKind {
        match self {
            Self::Control => MessageKind::Control,
            Self::Vote => MessageKind::Vote,
            Self::VoteAnswer => MessageKind::VoteAnswer,
            Self::Heartbeat => MessageKind::Heartbeat,
            Self::HeartbeatAnswer => MessageKind::HeartbeatAnswer,
            Self::Append => MessageKind::Append,
            Self::AppendAnswer => MessageKind::AppendAnswer,
            Self::Transfer => MessageKind::Transfer,
            Self::Forward => MessageKind::Forward,
            Self::ForwardAnswer => MessageKind::ForwardAnswer,
            Self::Snapshot => MessageKind::Snapshot,
            Self::SnapshotAnswer => MessageKind::SnapshotAnswer,
        }
    }
}

/// Every node as any of them knows it, whether it answers or not.
async fn nodes(context: &Context) -> Result<Vec<NodeStatus>, Error> {
    let status = context.client.cluster().status(StatusRequest::default()).await?;
    Ok(status.nodes)
}

fn find(nodes: &[NodeStatus], id: u64) -> Result<&NodeStatus, Error> {
    nodes.iter().find(|node| node.node_id == id).ok_or_else(|| {
        Error::with_hint(format!("there is no node {id}"), "`quorate status` lists the nodes")
    })
}

fn client_of(context: &Context, node: &NodeStatus) -> Result<client::Client, Error> {
    if node.client_address.is_empty() {
        let what = format!("nobody knows where clients reach node {}", node.node_id);
        return Err(Error::with_hint(what, "name it first with --endpoints"));
    }
    context.client_of(std::slice::from_ref(&node.client_address))
}

/// A node without a lab does not know the service.
fn not_a_lab(error: client::Error, node: &NodeStatus) -> Error {
    if error.code() == Code::Unimplemented {
        let what = format!("node {} was started without --lab", node.node_id);
        return Error::with_hint(what, "start the cluster with `quorate up --lab`");
    }
    error.into()
}

async fn links(context: &Context) -> Result<(), Error> {
    let mut answers = Vec::new();
    let mut silent = None;
    for node in nodes(context).await? {
        match client_of(context, &node)?.lab().link_faults().await {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                let error = not_a_lab(error, &node);
                if !matches!(error, Error::Call(_)) {
                    return Err(error);
                }
                silent = Some(node.node_id);
            }
        }
    }
    if context.show.format == OutputFormat::Table {
        context.show.shown(&faults_table(&answers).into())?;
        context.show.shown(&counts_table(&answers).into())?;
    } else {
        for answer in &answers {
            context.show.line(&json::line(answer)?)?;
        }
    }
    match silent {
        Some(node) => Err(Error::failed(format!("node {node} did not answer"))),
        None => Ok(()),
    }
}

async fn heal(context: &Context) -> Result<(), Error> {
    let mut silent = None;
    for node in nodes(context).await? {
        match client_of(context, &node)?.lab().clear_link_faults(&[]).await {
            Ok(answer) => context.show.answer(&answer, |answer| {
                format!("node {}: {} faults cleared", answer.node_id, answer.cleared).into()
            })?,
            Err(error) => {
                let error = not_a_lab(error, &node);
                if !matches!(error, Error::Call(_)) {
                    return Err(error);
                }
                say(&format!("node {} did not answer: {error}", node.node_id));
                silent = Some(node.node_id);
            }
        }
    }
    match silent {
        Some(node) => Err(Error::with_hint(
            format!("node {node} did not answer"),
            "its faults end by themselves when their time is over",
        )),
        None => Ok(()),
    }
}

fn faults_table(answers: &[ListLinkFaultsResponse]) -> Table {
    let mut table = Table::new(&["FAULT", "AT", "LINK", "WHAT", "MESSAGES", "STILL"]);
    for answer in answers {
        for active in &answer.faults {
            let fault = active.fault.clone().unwrap_or_default();
            table.row([
                active.fault_id.into(),
                answer.node_id.into(),
                link(answer.node_id, fault.peer_id, fault.direction()).into(),
                what(&fault).into(),
                kinds(&fault).into(),
                seconds(active.remaining).into(),
            ]);
        }
    }
    table
}

fn counts_table(answers: &[ListLinkFaultsResponse]) -> Table {
    let mut table = Table::new(&[
        "AT",
        "LINK",
        "MESSAGES",
        "DROPPED",
        "DELAYED",
        "DUPLICATED",
        "REORDERED",
        "CUT",
    ]);
    for answer in answers {
        for count in &answer.counts {
            table.row([
                answer.node_id.into(),
                link(answer.node_id, count.peer_id, count.direction()).into(),
                name(count.kind()).into(),
                count.dropped.into(),
                count.delayed.into(),
                count.duplicated.into(),
                count.reordered.into(),
                count.cut.into(),
            ]);
        }
    }
    table
}

fn link(node: u64, peer: u64, direction: Direction) -> String {
    match direction {
        Direction::FromPeer => format!("{peer} to {node}"),
        _ => format!("{node} to {peer}"),
    }
}

/// What a fault does, in words.
fn what(fault: &LinkFault) -> String {
    let mut words = Vec::new();
    if fault.cut {
        words.push("cut".to_owned());
    }
    let mut share = |name: &str, share: f64| {
        if share > 0.0 {
            words.push(format!("{name} {share}"));
        }
    };
    share("drop", fault.drop);
    share("duplicate", fault.duplicate);
    share("reorder", fault.reorder);
    let mut span = |name: &str, span: Option<prost_types::Duration>| {
        let span = span.and_then(|span| Duration::try_from(span).ok()).unwrap_or_default();
        if !span.is_zero() {
            words.push(format!("{name} {span:?}"));
        }
    };
    span("delay", fault.delay);
    span("jitter", fault.jitter);
    words.join(", ")
}

fn kinds(fault: &LinkFault) -> String {
    let names: Vec<_> = fault.kinds().map(name).collect();
    if names.is_empty() { "all".to_owned() } else { names.join(", ") }
}

/// A kind as the flag names it.
fn name(kind: MessageKind) -> String {
    let name = kind.as_str_name().trim_start_matches("MESSAGE_KIND_");
    name.to_lowercase().replace('_', "-")
}

fn seconds(span: Option<prost_types::Duration>) -> String {
    let span = span.and_then(|span| Duration::try_from(span).ok()).unwrap_or_default();
    format!("{:.1}s", span.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_in_the_words_of_its_flags() {
        let fault = LinkFault {
            drop: 0.5,
            delay: Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 }),
            kinds: vec![MessageKind::Append.into(), MessageKind::VoteAnswer.into()],
            ..Default::default()
        };
        assert_eq!(what(&fault), "drop 0.5, delay 200ms");
        assert_eq!(kinds(&fault), "append, vote-answer");
        assert_eq!(kinds(&LinkFault::default()), "all");
        assert_eq!(link(1, 2, Direction::ToPeer), "1 to 2");
        assert_eq!(link(1, 2, Direction::FromPeer), "2 to 1");
    }

    #[test]
    fn every_kind_of_message_has_a_flag_of_its_name() {
        for kind in KindArg::value_variants() {
            let flag = kind.to_possible_value().expect("none is hidden");
            assert_eq!(flag.get_name(), name(kind.wire()));
        }
        assert_eq!(KindArg::value_variants().len(), 12);
    }
}
