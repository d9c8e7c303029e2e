//! `quorate lock`: acquire, renew, release and look at locks.
//!
//! With a command, the lock is renewed while it runs, and it is stopped where the lock is lost:
//! standard output is then the command's alone.

use std::ffi::OsString;

use clap::{Args, Subcommand};
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use crate::{
    cli::{
        Error,
        child::{Child, Ended, Signals},
        context::Context,
        show::{Markers, Shown, is_heard, say},
        table::{self, Table, duration, optional, printable, time},
    },
    client::{self, Client, Locks},
    pb::lock::v1::{
        AcquireRequest, AcquireResponse, DescribeRequest, ListRequest, ListResponse, Lock,
        LockEvent, ReleaseRequest, RenewRequest, WatchRequest, lock_event::Kind,
    },
    server::parse_duration,
    types::Duration,
};

/// How long after its SIGTERM a command is killed when its lock was lost.
const GRACE: Duration = Duration::from_secs(5);

/// A renewal that has less time than this left is not tried.
const RENEWAL_MIN: Duration = Duration::from_millis(50);

/// When a person who waits is told so.
const PATIENCE: Duration = Duration::from_secs(1);

/// `quorate lock`.
#[derive(Debug, Subcommand)]
pub enum LockCommand {
    /// Acquire a lock, and run a command while it is held
    #[command(
        after_help = "Examples:\n  quorate lock acquire demo --ttl 10s -- ./backup.sh\n  quorate -o json lock acquire demo --ttl 30s --wait 0s\n\nCMD finds QUORATE_LOCK_NAME and QUORATE_FENCING_TOKEN in its environment; its exit code is\npassed on. Where the lock is lost it gets SIGTERM, 5 seconds later SIGKILL, and the exit\ncode is 74. Without CMD the lock is left to its TTL."
    )]
    Acquire(AcquireArgs),
    /// Prolong a held lock by its TTL
    #[command(after_help = "Example:\n  quorate lock renew demo --fencing-token 42")]
    Renew(GrantArgs),
    /// Release a held lock
    #[command(after_help = "Example:\n  quorate lock release demo --fencing-token 42")]
    Release(GrantArgs),
    /// Show who holds a lock and who waits for it
    #[command(after_help = "Example:\n  quorate lock describe demo")]
    Describe(DescribeArgs),
    /// List the locks that are held
    #[command(after_help = "Example:\n  quorate lock list --prefix jobs/")]
    List(ListArgs),
    /// Stream who gets a lock and when it is free
    #[command(after_help = "Example:\n  quorate lock watch --prefix jobs/")]
    Watch(WatchArgs),
}

/// Flags of `lock acquire`.
#[derive(Debug, Args)]
pub struct AcquireArgs {
    /// The lock's name
    name: String,
    /// How long the lock outlives its last renewal; 1s to 24h
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
    ttl: Duration,
    /// How long to wait in line: forever, 0s to try once, or a duration
    #[arg(long, default_value = "forever", value_name = "forever|0s|D", value_parser = parse_wait)]
    wait: Wait,
    /// A label for people [default: the user and the process id]
    #[arg(long)]
    owner: Option<String>,
    /// The command to run while the lock is held
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// How long to wait in line; `None` is for as long as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wait(Option<Duration>);

/// Names a grant.
#[derive(Debug, Args)]
pub struct GrantArgs {
    /// The lock's name
    name: String,
    /// The token of the grant
    #[arg(long, value_name = "N")]
    fencing_token: u64,
}

/// Flags of `lock describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// The lock's name
    name: String,
    /// Read the answering node's own state, which may be old
    #[arg(long)]
    stale: bool,
}

/// Flags of `lock list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// List only names that start with this
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Read the answering node's own state, which may be old
    #[arg(long)]
    stale: bool,
}

/// Flags of `lock watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The lock's name, or the prefix; an empty prefix is all locks
    name: String,
    /// Watch all locks whose names start with NAME
    #[arg(long)]
    prefix: bool,
}

impl LockCommand {
    /// Returns the exit code, which may be that of a command.
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Error> {
        match self {
            Self::Acquire(args) => return acquire(context, args).await,
            Self::Renew(args) => renew(context, args).await?,
            Self::Release(args) => release(context, args).await?,
            Self::Describe(args) => describe(context, args).await?,
            Self::List(args) => list(context, args).await?,
            Self::Watch(args) => watch(context, args).await?,
        }
        Ok(0)
    }
}

async fn acquire(context: &Context, args: AcquireArgs) -> Result<u8, Error> {
    let AcquireArgs { name, ttl, wait, owner, command } = args;
    let request = AcquireRequest {
        name: name.clone(),
        ttl: Some(to_proto(ttl, "--ttl")?),
        wait: wait.0.map(|wait| to_proto(wait, "--wait")).transpose()?,
        owner: owner.unwrap_or_else(whoami),
        ..Default::default()
    };
    let asked = Instant::now();
    let grant = granted(&context.client.locks(), request).await?;
    if command.is_empty() {
        context.show.answer(&grant, grant_table)?;
        return Ok(0);
    }
    let held = Held { client: context.client.clone(), name, token: grant.fencing_token };
    let ttl = grant.ttl.and_then(|ttl| Duration::try_from(ttl).ok()).unwrap_or(ttl);
    let mut valid_from = asked;
    if asked.elapsed() > ttl / 3 {
        // The grant came at some time since: only a renewal tells how long it holds.
        valid_from = Instant::now();
        held.renew(context.client.timeout()).await?;
    }
    held.run(&command, valid_from, ttl).await
}

/// Waits for the grant, and says so to a person who waits long.
async fn granted(locks: &Locks, request: AcquireRequest) -> Result<AcquireResponse, Error> {
    let name = request.name.clone();
    let grant = locks.acquire(request);
    tokio::pin!(grant);
    tokio::select! {
        grant = &mut grant => return Ok(grant?),
        () = sleep_until(Instant::now() + PATIENCE) => {}
    }
    if is_heard() {
        say(&format!("waiting for lock {name:?}; Ctrl-C leaves the line"));
    }
    Ok(grant.await?)
}

/// A lock that is held while a command runs.
#[derive(Debug)]
struct Held {
    client: Client,
    name: String,
    token: u64,
}

impl Held {
    async fn run(
        self,
        command: &[OsString],
        valid_from: Instant,
        ttl: Duration,
    ) -> Result<u8, Error> {
        let environment = [
            ("QUORATE_LOCK_NAME", self.name.clone()),
            ("QUORATE_FENCING_TOKEN", self.token.to_string()),
        ];
        let mut signals = Signals::listen()?;
        let mut child = match Child::spawn(command, &environment) {
            Ok(child) => child,
            Err(code) => {
                self.release().await;
                return Ok(code);
            }
        };
        let lost = self.keep(valid_from, ttl);
        tokio::pin!(lost);
        let lost = loop {
            tokio::select! {
                ended = child.wait() => {
                    let Ended(code) = ended?;
                    self.release().await;
                    return Ok(code);
                }
                signal = signals.next() => child.forward(signal),
                lost = &mut lost => break lost,
            }
        };
        say(&lost.to_string());
        child.stop(GRACE).await?;
        let (name, command) = (&self.name, command[0].to_string_lossy());
        Err(Error::LockLost(format!("{command} was stopped, having lost lock {name:?}")))
    }

    /// Renews until the lock is lost. The validity counts from before each call, so that this side
    /// never believes in the lock for longer than the cluster does.
    async fn keep(&self, valid_from: Instant, ttl: Duration) -> Error {
        let mut valid_until = valid_from + ttl;
        let mut next = valid_from + ttl / 3;
        loop {
            sleep_until(next).await;
            let sent = Instant::now();
            match self.renew(valid_until.saturating_duration_since(sent)).await {
                Ok(()) => {
                    valid_until = sent + ttl;
                    next = sent + ttl / 3;
                }
                Err(error) => {
                    let now = Instant::now();
                    let gone = matches!(error.code(), Code::FailedPrecondition | Code::NotFound);
                    if gone || now + RENEWAL_MIN >= valid_until {
                        sleep_until(if gone { now } else { valid_until }).await;
                        let name = &self.name;
                        return Error::LockLost(format!("lock {name:?} was lost: {error}"));
                    }
                    next = (now + ttl / 10).min(valid_until - RENEWAL_MIN);
                }
            }
        }
    }

    async fn renew(&self, within: Duration) -> Result<(), client::Error> {
        let request = RenewRequest { name: self.name.clone(), fencing_token: self.token };
        self.client.with_timeout(within).locks().renew(request).await.map(drop)
    }

    async fn release(&self) {
        let request = ReleaseRequest {
            name: self.name.clone(),
            fencing_token: self.token,
            ..Default::default()
        };
        if let Err(error) = self.client.locks().release(request).await {
            let name = &self.name;
            say(&format!("lock {name:?} could not be released and is left to its TTL: {error}"));
        }
    }
}

fn grant_table(grant: &AcquireResponse) -> Shown {
    let mut table = Table::new(&["NAME", "FENCING TOKEN", "SESSION", "TTL"]);
    table.row([
        printable(&grant.name).into(),
        grant.fencing_token.into(),
        grant.session_id.into(),
        duration(grant.ttl.as_ref()).into(),
    ]);
    table.into()
}

async fn renew(context: &Context, args: GrantArgs) -> Result<(), Error> {
    let request = RenewRequest { name: args.name, fencing_token: args.fencing_token };
    let answer = context.client.locks().renew(request).await?;
    context.show.answer(&answer, |answer| {
        let ttl = duration(answer.ttl.as_ref());
        format!("renewed {} for {ttl}", printable(&answer.name)).into()
    })
}

async fn release(context: &Context, args: GrantArgs) -> Result<(), Error> {
    let GrantArgs { name, fencing_token } = args;
    let request = ReleaseRequest { name: name.clone(), fencing_token, ..Default::default() };
    let answer = context.client.locks().release(request).await?;
    context.show.answer(&answer, |answer| {
        format!("released {}, revision {}", printable(&name), answer.revision).into()
    })
}

async fn describe(context: &Context, args: DescribeArgs) -> Result<(), Error> {
    let request = DescribeRequest { name: args.name, stale: args.stale };
    let answer = context.client.locks().describe(request).await?;
    context.show.answer(&answer, |answer| {
        let lock = answer.lock.clone().unwrap_or_default();
        let mut table = Table::new(&["PLACE", "OWNER", "TOKEN", "SESSION", "TTL", "SINCE"]);
        match &lock.holder {
            None => return format!("{} is free", printable(&lock.name)).into(),
            Some(holder) => table.row([
                "holder".into(),
                optional(&holder.owner).into(),
                holder.fencing_token.into(),
                holder.session_id.into(),
                duration(holder.ttl.as_ref()).into(),
                time(holder.acquire_time.as_ref()).into(),
            ]),
        }
        for (place, waiter) in lock.waiters.iter().enumerate() {
            table.row([
                format!("waiter {}", place + 1).into(),
                optional(&waiter.owner).into(),
                "-".into(),
                table::id(waiter.session_id).into(),
                "-".into(),
                time(waiter.enqueue_time.as_ref()).into(),
            ]);
        }
        table.into()
    })
}

async fn list(context: &Context, args: ListArgs) -> Result<(), Error> {
    let mut request = ListRequest { prefix: args.prefix, stale: args.stale, ..Default::default() };
    let mut all = ListResponse::default();
    loop {
        let page = context.client.locks().list(request.clone()).await?;
        all.locks.extend(page.locks);
        all.revision = page.revision;
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    context.show.answer(&all, |all| locks_table(&all.locks).into())
}

fn locks_table(locks: &[Lock]) -> Table {
    let mut table = Table::new(&["NAME", "OWNER", "TOKEN", "SESSION", "TTL", "WAITERS", "SINCE"]);
    for lock in locks {
        let holder = lock.holder.clone().unwrap_or_default();
        table.row([
            printable(&lock.name).into(),
            optional(&holder.owner).into(),
            holder.fencing_token.into(),
            holder.session_id.into(),
            duration(holder.ttl.as_ref()).into(),
            lock.waiter_count.into(),
            time(holder.acquire_time.as_ref()).into(),
        ]);
    }
    table
}

async fn watch(context: &Context, args: WatchArgs) -> Result<(), Error> {
    let request = WatchRequest { name: args.name, prefix: args.prefix };
    let mut watch = context.client.locks().watch(request);
    let mut markers = Markers::default();
    while let Some(response) = watch.next().await? {
        let place = format!("revision {}", response.revision);
        context.show.message(&response, |response| {
            Shown::Lines(response.events.iter().map(change).collect())
        })?;
        markers.tell(watch.breaks(), response.caught_up, response.fell_behind, &place);
    }
    Ok(())
}

fn change(event: &LockEvent) -> String {
    let lock = event.lock.clone().unwrap_or_default();
    let name = printable(&lock.name);
    match (event.kind(), lock.holder) {
        (Kind::Granted, Some(holder)) => format!(
            "{}  GRANTED  {name}  {}  token {}",
            event.revision,
            optional(&holder.owner),
            holder.fencing_token
        ),
        _ => format!("{}  FREED    {name}", event.revision),
    }
}

/// A label for people: who asked.
fn whoami() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let process = std::process::id();
    user.map_or_else(|_| format!("pid {process}"), |user| format!("{user}, pid {process}"))
}

fn parse_wait(text: &str) -> Result<Wait, String> {
    if text == "forever" {
        return Ok(Wait(None));
    }
    parse_duration(text)
        .map(|wait| Wait(Some(wait)))
        .map_err(|_| format!("`{text}` is neither `forever` nor a duration such as 0s or 30s"))
}

/// A duration as the requests want it.
pub(crate) fn to_proto(span: Duration, flag: &str) -> Result<prost_types::Duration, Error> {
    prost_types::Duration::try_from(span)
        .map_err(|_| Error::Usage(format!("{flag}: {span:?} is too long")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_forever_or_a_duration() {
        assert_eq!(parse_wait("forever"), Ok(Wait(None)));
        assert_eq!(parse_wait("0s"), Ok(Wait(Some(Duration::ZERO))));
        assert!(parse_wait("never").expect_err("no such word").contains("never"));
    }
}
