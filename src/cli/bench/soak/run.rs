//! The course of a soak: start, load, kill and start again, look, stop, prove.

use std::{path::PathBuf, sync::atomic::Ordering};

use clap::Args;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};

use crate::{
    cli::{
        Error,
        bench::soak::{
            load::{self, Found, PARTS, Shared},
            members::Members,
            proof::Wrongs,
            report::{Memory, Report},
            tally::Tally,
        },
        show::{Show, is_heard, say},
    },
    client::Client,
    pb::{cluster::v1::StatusRequest, kv::v1::CompactRequest},
    server::parse_duration,
    types::Duration,
};

/// How often memory is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How often history is compacted, to where it stood at the last time.
const COMPACT_INTERVAL: Duration = Duration::from_secs(15);

/// How long the leader is looked for before it is killed.
const LEADER_LIMIT: Duration = Duration::from_secs(2);

/// How long the clients may take to end once they were told.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Flags of `bench soak`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Example:\n  quorate bench soak --duration 10m --kill-every 20s\n\nIt starts nodes of its own and talks to no other cluster. One client in six each puts, gets,\nlocks, appends, watches and subscribes. The exit code is 1 where something acknowledged was lost\nor done twice, a guarantee was seen broken, or memory was not flat: the median of the last third\nof the run more than 15 % above that of the middle third. Memory is judged from 5 minutes on."
)]
pub struct SoakArgs {
    /// How many nodes there are
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    nodes: u8,
    /// How many clients there are
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(PARTS..=6_000))]
    clients: u64,
    /// How long it runs
    #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = parse_duration)]
    duration: Duration,
    /// How often the leader is killed
    #[arg(long, default_value = "20s", value_name = "DURATION", value_parser = parse_duration)]
    kill_every: Duration,
    /// How long a killed node stays down
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = parse_duration)]
    down_for: Duration,
    /// How many bytes a value or an event has
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(8..=1 << 20))]
    value_size: u64,
    /// Where the nodes' data goes, in a directory of the run's own [default: the temporary one]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs a soak and tells what it found.
pub(in crate::cli::bench) async fn run(args: SoakArgs, show: Show) -> Result<(), Error> {
    if args.kill_every <= args.down_for {
        let why = "--kill-every must be longer than --down-for";
        return Err(Error::Usage(why.to_owned()));
    }
    let parent = args.data_dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = parent.join(format!("quorate-soak-{}", std::process::id()));
    let mut members = tokio::select! {
        started = Members::start(dir, args.nodes) => started?,
        _ = tokio::signal::ctrl_c() => return Err(Error::failed("interrupted")),
    };
    let ended = soak(&args, &mut members, show).await;
    if ended.is_err() {
        say(&format!("the nodes' data and logs stay in {}", members.keep().display()));
    }
    ended
}

async fn soak(args: &SoakArgs, members: &mut Members, show: Show) -> Result<(), Error> {
    let endpoints = members.endpoints();
    let tally = Tally::new();
    let value_size = usize::try_from(args.value_size).expect("at most a megabyte");
    let shared = Shared::new(tally.clone(), args.clients, value_size);
    let mut clients = JoinSet::new();
    for number in 0..args.clients {
        let client = client_of(&endpoints, number)?;
        clients.spawn(load::client(number, client, shared.clone()));
    }
    let mut course = Course {
        args,
        members,
        client: client_of(&endpoints, 0)?,
        shared,
        samples: Vec::new(),
        wrongs: Wrongs::default(),
    };
    let conducted = course.conduct(&tally).await;
    tally.stop();
    conducted?;
    let elapsed = tally.elapsed();
    let found = timeout(END_LIMIT, joined(clients)).await;
    let found = found.map_err(|_| Error::failed(format!("clients hang after {END_LIMIT:?}")))??;
    let Course { members, client, shared, samples, mut wrongs, .. } = course;
    if is_heard() {
        say("reading back what was acknowledged");
    }
    members.start_all()?;
    members.wait_until_ready().await?;
    let (acknowledged, others) = load::verify(&client, found).await?;
    wrongs.join(others);
    wrongs.join(shared.lock_wrongs());
    let report = Report {
        elapsed,
        clients: args.clients,
        minutes: tally.minutes(),
        memory: Memory::of(&samples, elapsed),
        disk_bytes: members.disk_bytes(),
        acknowledged,
        wrongs,
    };
    report.print(show)?;
    report.broken().map_or(Ok(()), |broken| Err(Error::failed(broken)))
}

/// What goes on beside the load.
struct Course<'a> {
    args: &'a SoakArgs,
    members: &'a mut Members,
    client: Client,
    shared: Shared,
    /// Time since the start, and kilobytes, of every node.
    samples: Vec<(Duration, u64)>,
    wrongs: Wrongs,
}

impl Course<'_> {
    /// Kills, starts again, looks and compacts until the time is over.
    async fn conduct(&mut self, tally: &Tally) -> Result<(), Error> {
        let begun = Instant::now();
        let until = begun + self.args.duration;
        let every = |span: Duration| {
            let mut ticks = interval_at(begun + span, span);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut kills, mut looks) = (every(self.args.kill_every), every(LOOK_INTERVAL));
        let mut compactions = every(COMPACT_INTERVAL);
        let mut back_at = None;
        let mut compact_to = 0;
        loop {
            tokio::select! {
                () = sleep_until(until) => return Ok(()),
                _ = tokio::signal::ctrl_c() => return Ok(()),
                _ = kills.tick() => {
                    self.kill_leader(tally).await;
                    back_at = Some(Instant::now() + self.args.down_for);
                }
                () = reached(back_at) => {
                    back_at = None;
                    self.members.start_all()?;
                }
                _ = looks.tick() => self.look(tally).await?,
                _ = compactions.tick() => {
                    let newest = self.shared.revision.load(Ordering::Relaxed);
                    self.compact(std::mem::replace(&mut compact_to, newest), tally).await;
                }
            }
        }
    }

    /// Kills the leader. A cluster that has none, or that is not whole again, is a finding.
    async fn kill_leader(&mut self, tally: &Tally) {
        if !self.members.are_ready().await {
            self.wrongs.add("kills that found the cluster not ready", 1);
        }
        let client = self.client.with_timeout(LEADER_LIMIT);
        match client.cluster().status(StatusRequest { local: true }).await {
            Ok(status) if status.leader_id != 0 => {
                self.members.kill(status.leader_id).await;
                tally.killed();
                if is_heard() {
                    let at = tally.elapsed().as_secs();
                    say(&format!("{at:5}s  killed node {}, the leader", status.leader_id));
                }
            }
            Ok(_) => self.wrongs.add("kills that found no leader", 1),
            Err(error) => {
                tally.failed(&error);
                self.wrongs.add("kills that found no leader", 1);
            }
        }
    }

    async fn look(&mut self, tally: &Tally) -> Result<(), Error> {
        let resident = self.members.resident_kilobytes();
        let now = tally.elapsed();
        self.samples.extend(resident.iter().map(|(_, kilobytes)| (now, *kilobytes)));
        tally.resident(resident.into_iter().map(|(_, kilobytes)| kilobytes));
        self.members.check_processes().await
    }

    /// Discards old history, as whoever runs a cluster does.
    async fn compact(&self, revision: u64, tally: &Tally) {
        if revision == 0 {
            return;
        }
        let request = CompactRequest { revision, ..Default::default() };
        if let Err(error) = self.client.kv().compact(request).await {
            tally.failed(&error);
        }
    }
}

async fn reached(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn joined(mut clients: JoinSet<Found>) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    while let Some(ended) = clients.join_next().await {
        found.push(ended.map_err(|error| Error::failed(format!("a client failed: {error}")))?);
    }
    Ok(found)
}

/// A client with a connection of its own, and another node first for each.
fn client_of(endpoints: &[String], number: u64) -> Result<Client, Error> {
    let mut rotated = endpoints.to_vec();
    rotated.rotate_left(usize::try_from(number).unwrap_or_default() % endpoints.len());
    Ok(Client::builder().endpoints(rotated).build()?)
}
