//! `quorate lock`: acquire, renew, release and look at locks.
//!
//! With a command, the lock is renewed while it runs, and it is stopped where the lock is lost:
//! standard output is then the command's alone.

use std::{ffi::OsString, future::Future};

use clap::{Args, Subcommand};
use tokio::time::{Instant, sleep_until};

use crate::{
    cli::{
        Error,
        child::{Child, Ended, Signals},
        context::Context,
        show::{Markers, Shown, is_heard, say},
        table::{self, Table, duration, optional, printable, time},
    },
    client::{self, LockGuard},
    pb::lock::v1::{
        AcquireRequest, AcquireResponse, DescribeRequest, ListRequest, ListResponse, Lock,
        LockEvent, ReleaseRequest, RenewRequest, WatchRequest, lock_event::Kind,
    },
    server::parse_duration,
    types::Duration,
};

/// How long after its SIGTERM a command is killed when its lock was lost.
const GRACE: Duration = Duration::from_secs(5);

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
    let locks = context.client.locks();
    if command.is_empty() {
        let grant = granted(&name, locks.acquire(request)).await?;
        context.show.answer(&grant, grant_table)?;
        return Ok(0);
    }
    let guard = granted(&name, locks.hold(request)).await?;
    run_while_held(guard, &command).await
}

/// Waits for the grant, and says so to a person who waits long.
async fn granted<T>(
    name: &str,
    grant: impl Future<Output = Result<T, client::Error>>,
) -> Result<T, Error> {
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

/// Runs a command and returns its exit code; stops it where the lock is lost.
async fn run_while_held(guard: LockGuard, command: &[OsString]) -> Result<u8, Error> {
    let environment = [
        ("QUORATE_LOCK_NAME", guard.name().to_owned()),
        ("QUORATE_FENCING_TOKEN", guard.fencing_token().to_string()),
    ];
    let mut signals = Signals::listen()?;
    let mut child = match Child::spawn(command, &environment) {
        Ok(child) => child,
        Err(code) => {
            let_go(guard).await;
            return Ok(code);
        }
    };
    let lost = guard.lost();
    tokio::pin!(lost);
    let loss = loop {
        tokio::select! {
            ended = child.wait() => {
                let Ended(code) = ended?;
                let_go(guard).await;
                return Ok(code);
            }
            signal = signals.next() => child.forward(signal),
            loss = &mut lost => break loss,
        }
    };
    let name = guard.name();
    say(&format!("lock {name:?} was lost: {loss}"));
    child.stop(GRACE).await?;
    let command = command[0].to_string_lossy();
    Err(Error::LockLost(format!("{command} was stopped, having lost lock {name:?}")))
}

async fn let_go(guard: LockGuard) {
    let name = guard.name().to_owned();
    if let Err(error) = guard.release().await {
        say(&format!("lock {name:?} could not be released and is left to its TTL: {error}"));
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
