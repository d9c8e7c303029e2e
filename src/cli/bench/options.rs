//! The flags of the benchmarks, and which one runs.

use clap::{Args, Subcommand};
use uuid::Uuid;

use crate::{
    cli::{
        Error,
        bench::{drive::Drive, events, kv, lock, put_stream, report::Report, soak},
        context::Context,
    },
    client::Client,
    server::parse_duration,
    types::Duration,
};

/// The most clients of a run.
const CLIENTS_MAX: u64 = 10_000;

/// `quorate bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// One kind of operation on a cluster that is there.
    #[command(flatten)]
    One(OneCommand),
    /// Mixed load on nodes of its own whose leader is killed again and again
    Soak(soak::SoakArgs),
}

/// The benchmarks of one kind of operation.
#[derive(Debug, Subcommand)]
pub enum OneCommand {
    /// Write keys
    #[command(
        after_help = "Examples:\n  quorate bench put --clients 64 --duration 30s\n  quorate bench put --verify\n\nWith --verify each write has a key of its own; at the end every acknowledged one is read back,\nand one that is missing or was carried out twice makes the exit code 1."
    )]
    Put(PutArgs),
    /// Write keys over streams that do not wait for each write
    #[command(
        after_help = "Examples:\n  quorate bench put-stream --clients 1 --value-size 256\n  quorate bench put-stream --clients 4 --batch 1 --verify\n\nEach client is one stream; a write is acknowledged once it is durable and applied. --batch 1 sends\none put a message, as a program would that gathers nothing itself. --verify as in `bench put`."
    )]
    PutStream(PutStreamArgs),
    /// Read keys
    #[command(after_help = "Example:\n  quorate bench get --clients 64")]
    Get(GetArgs),
    /// Acquire and release locks, one a client
    #[command(after_help = "Example:\n  quorate bench lock --clients 64")]
    Lock(LockArgs),
    /// Hand one lock from client to client, and check its tokens
    #[command(
        after_help = "Example:\n  quorate bench contend --clients 16\n\nA token that does not grow, or two holders at once, make the exit code 1."
    )]
    Contend(LockArgs),
    /// Append events, to one stream a client
    #[command(after_help = "Example:\n  quorate bench append --clients 64 --batch 10")]
    Append(AppendArgs),
    /// Subscribe with every client to one stream that is appended to, and check the order
    #[command(
        after_help = "Example:\n  quorate bench subscribe --clients 8\n\nAn event that is missing, doubled or out of order makes the exit code 1."
    )]
    Subscribe(AppendArgs),
}

/// What all benchmarks share.
#[derive(Clone, Debug, Args)]
pub(super) struct Load {
    /// How many clients send at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=CLIENTS_MAX))]
    pub(super) clients: u64,
    /// How many connections they share [default: one an endpoint]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=CLIENTS_MAX))]
    pub(super) connections: Option<u64>,
    /// How long it runs
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = parse_duration)]
    pub(super) duration: Duration,
    /// End after so many operations, where that comes first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
}

/// Flags of `bench put`.
#[derive(Debug, Args)]
pub struct PutArgs {
    #[command(flatten)]
    pub(super) load: Load,
    /// How many bytes a value has
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    pub(super) value_size: u64,
    /// How many keys are written to, in turn
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(super) keys: u64,
    /// Give each write a key of its own, and read every acknowledged one back at the end
    #[arg(long, conflicts_with = "keys")]
    pub(super) verify: bool,
}

/// Flags of `bench put-stream`.
#[derive(Debug, Args)]
pub struct PutStreamArgs {
    #[command(flatten)]
    pub(super) load: Load,
    /// How many bytes a value has
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    pub(super) value_size: u64,
    /// How many keys are written to, in turn
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(super) keys: u64,
    /// How many puts one message carries at most
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(super) batch: u64,
    /// Give each write a key of its own, and read every acknowledged one back at the end
    #[arg(long, conflicts_with = "keys")]
    pub(super) verify: bool,
}

/// Flags of `bench get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    #[command(flatten)]
    pub(super) load: Load,
    /// How many bytes a value has
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    pub(super) value_size: u64,
    /// How many keys are written first and then read, in turn
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(super) keys: u64,
    /// Read the answering node's own state instead of asking the leader
    #[arg(long)]
    pub(super) stale: bool,
}

/// Flags of `bench lock` and `bench contend`.
#[derive(Debug, Args)]
pub struct LockArgs {
    #[command(flatten)]
    pub(super) load: Load,
    /// The TTL of each grant
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
    pub(super) ttl: Duration,
}

/// Flags of `bench append` and `bench subscribe`.
#[derive(Debug, Args)]
pub struct AppendArgs {
    #[command(flatten)]
    pub(super) load: Load,
    /// How many bytes an event has
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(8..=1 << 20))]
    pub(super) value_size: u64,
    /// How many events one append has
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub(super) batch: u64,
}

impl BenchCommand {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::One(command) => command.run(context).await,
            Self::Soak(args) => soak::run(args, context.show).await,
        }
    }
}

impl OneCommand {
    async fn run(self, context: &Context) -> Result<(), Error> {
        let run = Run { name: run_name(), clients: clients(context, self.load())? };
        let load = self.load().clone();
        let drive = Drive::new(&load);
        drive.stop_at_interrupt();
        let report = match &self {
            Self::Put(args) => kv::put(&run, drive, args).await?,
            Self::PutStream(args) => put_stream::put_stream(&run, drive, args).await?,
            Self::Get(args) => kv::get(&run, drive, args).await?,
            Self::Lock(args) => lock::lock(&run, drive, args).await?,
            Self::Contend(args) => lock::contend(&run, drive, args).await?,
            Self::Append(args) => events::append(&run, drive, args).await?,
            Self::Subscribe(args) => events::subscribe(&run, drive, args).await?,
        };
        let connections = run.clients.len();
        report.print(self.name(), load.clients, connections, context.show)?;
        report.verdict()
    }

    const fn load(&self) -> &Load {
        match self {
            Self::Put(args) => &args.load,
            Self::PutStream(args) => &args.load,
            Self::Get(args) => &args.load,
            Self::Lock(args) | Self::Contend(args) => &args.load,
            Self::Append(args) | Self::Subscribe(args) => &args.load,
        }
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Put(_) => "put",
            Self::PutStream(_) => "put-stream",
            Self::Get(_) => "get",
            Self::Lock(_) => "lock",
            Self::Contend(_) => "contend",
            Self::Append(_) => "append",
            Self::Subscribe(_) => "subscribe",
        }
    }
}

/// One run: its name and its connections.
#[derive(Debug)]
pub(super) struct Run {
    /// What the keys, locks and streams of the run begin with.
    pub(super) name: String,
    clients: Vec<Client>,
}

impl Run {
    /// The connection of a client.
    pub(super) fn client(&self, number: u64) -> Client {
        let at = usize::try_from(number).unwrap_or_default() % self.clients.len();
        self.clients[at].clone()
    }
}

fn run_name() -> String {
    let id = Uuid::new_v4().simple().to_string();
    format!("bench/{}", &id[..8])
}

/// One client a connection, each with another endpoint first.
fn clients(context: &Context, load: &Load) -> Result<Vec<Client>, Error> {
    let endpoints = &context.endpoints;
    let one_each = u64::try_from(endpoints.len()).unwrap_or(1).min(load.clients);
    (0..load.connections.unwrap_or(one_each))
        .map(|number| {
            let first = usize::try_from(number).unwrap_or_default() % endpoints.len();
            let mut rotated = endpoints.clone();
            rotated.rotate_left(first);
            context.client_of(&rotated)
        })
        .collect()
}

impl Report {
    fn verdict(&self) -> Result<(), Error> {
        if let Some(broken) = self.broken() {
            return Err(Error::failed(broken));
        }
        if self.operations == 0 {
            let why = self.errors.keys().next();
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            return Err(Error::failed(format!("no operation succeeded{why}")));
        }
        Ok(())
    }
}
