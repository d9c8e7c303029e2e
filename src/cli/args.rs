//! The commands and the global flags. Each command's own flags stand in its file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    cli::{
        bench, check, cluster, completions, events, kv, lab, lock, node, service, sim, status, up,
    },
    server::parse_duration,
    types::Duration,
};

/// A coordination and event-streaming server on one Raft log, and its command line.
#[derive(Debug, Parser)]
#[command(name = "quorate", bin_name = "quorate", disable_help_subcommand = true)]
#[command(version = LONG_VERSION, max_term_width = 100)]
#[command(
    after_help = "Start a cluster on this machine:\n  quorate up\n\nand in another terminal:\n  quorate status\n  quorate kv put greeting hello\n  quorate lock acquire demo -- sleep 5"
)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub globals: Globals,
    /// What is to be done.
    #[command(subcommand)]
    pub command: Command,
}

/// The version and the commit that was built.
const LONG_VERSION: &str = env!("QUORATE_VERSION");

/// Flags that stand before or after the command.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// The nodes to talk to [default: ./quorate-data/endpoints, else 127.0.0.1:7401 to 7403]
    #[arg(long, global = true, env = "QUORATE_ENDPOINTS", hide_env_values = true)]
    #[arg(value_name = "HOST:PORT,...", value_delimiter = ',')]
    pub endpoints: Option<Vec<String>>,
    /// The CAs to trust, in PEM: dials by TLS [default: ca.pem beside ./quorate-data/endpoints]
    #[arg(long, global = true, env = "QUORATE_TLS_CA", hide_env_values = true)]
    #[arg(value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// The certificate to show to nodes that demand one, in PEM with its intermediates
    #[arg(long, global = true, env = "QUORATE_TLS_CLIENT_CERT", hide_env_values = true)]
    #[arg(value_name = "FILE")]
    pub tls_client_cert: Option<PathBuf>,
    /// The private key of --tls-client-cert, in PEM
    #[arg(long, global = true, env = "QUORATE_TLS_CLIENT_KEY", hide_env_values = true)]
    #[arg(value_name = "FILE")]
    pub tls_client_key: Option<PathBuf>,
    /// Bounds each call, retries included; not --wait and not streams [default: 5s]
    #[arg(long, global = true, env = "QUORATE_TIMEOUT", hide_env_values = true)]
    #[arg(value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// How answers are printed: table, json (a line a message for streams) or jsonl [default: table]
    #[arg(short, long, global = true, env = "QUORATE_OUTPUT", hide_env_values = true)]
    #[arg(value_name = "FORMAT", hide_possible_values = true)]
    pub output: Option<OutputFormat>,
    /// A TOML file with settings; flags and variables come before it
    #[arg(long, global = true, env = "QUORATE_CONFIG", hide_env_values = true)]
    #[arg(value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    /// For people
    #[default]
    Table,
    /// The canonical JSON of the answer, indented; one line a message for streams
    Json,
    /// The canonical JSON of the answer on one line
    Jsonl,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a cluster on this machine
    Up(up::UpArgs),
    /// Run one node
    Node(Box<node::NodeArgs>),
    /// Show how the nodes stand
    Status(status::StatusArgs),
    /// Read, write and watch keys
    #[command(subcommand)]
    Kv(kv::KvCommand),
    /// Acquire locks with fencing tokens, and see who holds them
    #[command(subcommand)]
    Lock(lock::LockCommand),
    /// Register services and find them
    #[command(subcommand, visible_alias = "discovery")]
    Service(service::ServiceCommand),
    /// Append to event streams, read them and subscribe
    #[command(subcommand)]
    Events(events::EventsCommand),
    /// Hand over leadership, compare the nodes' state
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Measure a cluster with a closed loop of clients
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Break the links of nodes that were started with --lab, and heal them
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// Judge histories of calls and answers
    Check(check::CheckArgs),
    /// Simulate faulty clusters by seed or plan, and shrink what fails
    Sim(sim::SimArgs),
    /// Print a shell's completions
    Completions(completions::CompletionsArgs),
}
