//! The flags.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand, ValueEnum};

/// The same closed loop against Quorate and etcd, three members each, alternating.
#[derive(Debug, Parser)]
#[command(name = "rivals", version, max_term_width = 100)]
#[command(
    after_help = "Examples:\n  rivals                                everything, 3 rounds\n  rivals --only put,get --clients 64    two cells of each system\n  rivals --systems quorate --only put   no rival, no ratio: for tuning\n  rivals --only failover --kills 20"
)]
pub struct Options {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The release build of Quorate [default: target/release/quorate of the repository]
    #[arg(long, value_name = "PATH")]
    pub quorate: Option<PathBuf>,
    /// The etcd binary
    #[arg(long, value_name = "PATH", default_value = "etcd")]
    pub etcd: PathBuf,
    /// Which systems run
    #[arg(long, value_delimiter = ',', default_values = ["quorate", "etcd"])]
    pub systems: Vec<System>,
    /// Which workloads run [default: all]
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Workload>,
    /// Which numbers of clients run, of those that a workload has [default: all]
    #[arg(long, value_delimiter = ',')]
    pub clients: Vec<usize>,
    /// How often both systems are started and measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// How long a cell is measured, in seconds
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
    /// How long a cell runs before it is measured, in seconds
    #[arg(long, default_value_t = 1.0)]
    pub warm_up: f64,
    /// How many connections the clients share; each member gets its part
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub connections: u16,
    /// How many bytes a value has
    #[arg(long, default_value_t = 256)]
    pub value_size: usize,
    /// How many keys are written and read
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// How often the leader is killed, over all rounds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub kills: u32,
    /// How many puts lie between the two measurements of memory
    #[arg(long, default_value_t = 100_000)]
    pub memory_puts: u64,
    /// How long a cluster is idle before its memory is measured, in seconds
    #[arg(long, default_value_t = 5.0)]
    pub idle: f64,
    /// Give each of Quorate's changes a request id, as its own client does
    #[arg(long)]
    pub request_ids: bool,
    /// Further flags of every `quorate node`, separated by spaces
    #[arg(long, value_name = "FLAGS", default_value = "", allow_hyphen_values = true)]
    pub quorate_flags: String,
    /// Further flags of every etcd, separated by spaces
    #[arg(long, value_name = "FLAGS", default_value = "", allow_hyphen_values = true)]
    pub etcd_flags: String,
    /// Where the members' data goes, in a directory of the run's own; a real disk
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// Also write everything that was measured, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Answers with what it is asked; the run starts it by itself
    #[command(hide = true)]
    EchoServer { listen: SocketAddr },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum System {
    Quorate,
    Etcd,
}

impl System {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quorate => "quorate",
            Self::Etcd => "etcd",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Workload {
    /// Put a value at a random key
    Put,
    /// Puts through one stream; Quorate only
    PutStream,
    /// Read a random key, linearizable
    Get,
    /// Acquire and release, each client its own lock
    Lock,
    /// One lock that all clients want
    Handover,
    /// From kill -9 of the leader to the next accepted write
    Failover,
    /// Resident memory, idle and after a load
    Memory,
    /// A bare echo over gRPC
    Echo,
    /// One fsync
    Fsync,
}

impl Workload {
    pub const ALL: [Self; 9] = [
        Self::Fsync,
        Self::Echo,
        Self::Memory,
        Self::Put,
        Self::PutStream,
        Self::Get,
        Self::Lock,
        Self::Handover,
        Self::Failover,
    ];

    /// The numbers of clients it runs with.
    pub const fn clients(self) -> &'static [usize] {
        match self {
            Self::Put | Self::Get | Self::Echo => &[1, 64, 256],
            Self::Lock => &[1, 64],
            Self::Handover => &[2, 16, 64],
            Self::PutStream | Self::Failover | Self::Memory | Self::Fsync => &[],
        }
    }
}

impl Options {
    pub fn workloads(&self) -> BTreeSet<Workload> {
        let only = if self.only.is_empty() { &Workload::ALL[..] } else { &self.only };
        only.iter().copied().collect()
    }

    pub fn clients_of(&self, workload: Workload) -> Vec<usize> {
        let wanted = |clients: &&usize| self.clients.is_empty() || self.clients.contains(clients);
        workload.clients().iter().filter(wanted).copied().collect()
    }
}
