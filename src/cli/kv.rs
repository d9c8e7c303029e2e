//! `quorate kv`: keys that a program writes.
//!
//! `get` prints the raw value and nothing else; the others print tables or JSON.

use std::{
    io::{Read as _, Write as _},
    path::PathBuf,
};

use bytes::Bytes;
use clap::{Args, Subcommand};

use crate::{
    cli::{
        Error, OutputFormat,
        context::Context,
        json,
        show::{Markers, Shown},
        table::{Table, id, text},
    },
    client::prefix_end,
    pb::kv::v1::{
        CompactRequest, DeleteRangeRequest, HeldLock, KeyValue, KvEvent, PutRequest, RangeRequest,
        RangeResponse, ResponseOp, TxnRequest, WatchRequest, WatchResponse, kv_event::Kind,
        response_op::Response,
    },
};

/// How many keys `list` asks for at once.
const PAGE_KEYS: u64 = 5_000;

/// `quorate kv`.
#[derive(Debug, Subcommand)]
pub enum KvCommand {
    /// Print a key's value, raw; exit 69 where it is absent
    #[command(after_help = "Example:\n  quorate kv get greeting")]
    Get(GetArgs),
    /// Write a key
    #[command(
        after_help = "Examples:\n  quorate kv put greeting hello\n  quorate kv put config - < config.json"
    )]
    Put(PutArgs),
    /// Delete a key, or all keys under a prefix
    #[command(
        after_help = "Examples:\n  quorate kv delete greeting\n  quorate kv delete --prefix jobs/"
    )]
    Delete(DeleteArgs),
    /// List keys and values
    #[command(after_help = "Example:\n  quorate kv list --prefix jobs/")]
    List(ListArgs),
    /// Stream the changes of a key, or of all keys under a prefix
    #[command(after_help = "Example:\n  quorate kv watch --prefix jobs/")]
    Watch(WatchArgs),
    /// Carry out a transaction, given as the JSON of a kv.v1.TxnRequest
    #[command(
        after_help = "Example: write key a only where it is absent (keys and values are base64)\n  echo '{\"compare\":[{\"key\":\"YQ==\",\"operator\":\"OPERATOR_EQUAL\",\"version\":\"0\"}],\n         \"success\":[{\"put\":{\"key\":\"YQ==\",\"value\":\"MQ==\"}}]}' | quorate kv txn"
    )]
    Txn(TxnArgs),
    /// Discard the history below a revision
    #[command(after_help = "Example:\n  quorate kv compact 1000")]
    Compact(CompactArgs),
}

/// Flags of `kv get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The key
    key: String,
    /// Read as of this revision
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    revision: u64,
    /// Read the answering node's own state, which may be old
    #[arg(long)]
    stale: bool,
}

/// Flags of `kv put`.
#[derive(Debug, Args)]
pub struct PutArgs {
    /// The key
    key: String,
    /// The value; - reads it from standard input
    #[arg(allow_hyphen_values = true)]
    value: String,
    /// Bind the key to this session
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    session_id: u64,
    /// Print the version that was replaced
    #[arg(long)]
    prev: bool,
    /// Write only while this lock is held with this token
    #[arg(long, value_name = "NAME:TOKEN", value_parser = held_lock)]
    require_lock: Option<HeldLock>,
}

/// Flags of `kv delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The key, or the prefix
    key: String,
    /// Delete all keys that start with KEY
    #[arg(long)]
    prefix: bool,
    /// Print the versions that were deleted
    #[arg(long)]
    prev: bool,
    /// Delete only while this lock is held with this token
    #[arg(long, value_name = "NAME:TOKEN", value_parser = held_lock)]
    require_lock: Option<HeldLock>,
}

/// Flags of `kv list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// List only keys that start with this
    #[arg(value_name = "PREFIX", conflicts_with = "prefix")]
    under: Option<String>,
    /// List only keys that start with this
    #[arg(long)]
    prefix: Option<String>,
    /// List at most so many keys; 0 is all
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    limit: u64,
    /// Read as of this revision
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    revision: u64,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
    /// Read the answering node's own state, which may be old
    #[arg(long)]
    stale: bool,
}

/// Flags of `kv watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The key, or the prefix; an empty prefix is all keys
    key: String,
    /// Watch all keys that start with KEY
    #[arg(long)]
    prefix: bool,
    /// The first revision to deliver [default: the next one]
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    from: u64,
    /// Add the replaced versions
    #[arg(long)]
    prev: bool,
}

/// Flags of `kv txn`.
#[derive(Debug, Args)]
pub struct TxnArgs {
    /// The file that holds the request; - is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
}

/// Flags of `kv compact`.
#[derive(Debug, Args)]
pub struct CompactArgs {
    /// Versions replaced at or below this revision are discarded
    revision: u64,
}

impl KvCommand {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Get(args) => get(context, args).await,
            Self::Put(args) => put(context, args).await,
            Self::Delete(args) => delete(context, args).await,
            Self::List(args) => list(context, args).await,
            Self::Watch(args) => watch(context, args).await,
            Self::Txn(args) => txn(context, args).await,
            Self::Compact(args) => compact(context, args).await,
        }
    }
}

async fn get(context: &Context, args: GetArgs) -> Result<(), Error> {
    let GetArgs { key, revision, stale } = args;
    let request = RangeRequest { key: key.clone().into(), revision, stale, ..Default::default() };
    let answer = context.client.kv().range(request).await?;
    let show = &context.show;
    if show.format == OutputFormat::Table {
        let Some(found) = answer.kvs.first() else { return Err(Error::KeyNotFound(key)) };
        show.bytes(&found.value)?;
        // A prompt should not stick to the value; a pipe gets the value and nothing else.
        return if show.terminal && !found.value.ends_with(b"\n") {
            show.bytes(b"\n")
        } else {
            Ok(())
        };
    }
    show.answer(&answer, |_| Shown::Lines(Vec::new()))?;
    if answer.kvs.is_empty() { Err(Error::KeyNotFound(key)) } else { Ok(()) }
}

async fn put(context: &Context, args: PutArgs) -> Result<(), Error> {
    let value = if args.value == "-" { standard_input().await? } else { args.value.into() };
    let request = PutRequest {
        key: args.key.into(),
        value,
        session_id: args.session_id,
        prev_kv: args.prev,
        require_lock: args.require_lock,
        request_id: String::new(),
    };
    let answer = context.client.kv().put(request).await?;
    context.show.answer(&answer, |answer| {
        let replaced = answer.prev_kv.iter().map(|kv| format!("replaced {}", text(&kv.value)));
        let lines = std::iter::once(format!("revision {}", answer.revision)).chain(replaced);
        Shown::Lines(lines.collect())
    })
}

async fn delete(context: &Context, args: DeleteArgs) -> Result<(), Error> {
    let (key, range_end) = bounds(args.key, args.prefix);
    let request = DeleteRangeRequest {
        key,
        range_end,
        prev_kv: args.prev,
        require_lock: args.require_lock,
        request_id: String::new(),
    };
    let answer = context.client.kv().delete_range(request).await?;
    context.show.answer(&answer, |answer| {
        let what = if answer.deleted == 1 { "key" } else { "keys" };
        let told = format!("deleted {} {what}, revision {}", answer.deleted, answer.revision);
        let gone = answer.prev_kvs.iter();
        let gone = gone.map(|kv| format!("{} = {}", text(&kv.key), text(&kv.value)));
        Shown::Lines(std::iter::once(told).chain(gone).collect())
    })
}

async fn list(context: &Context, args: ListArgs) -> Result<(), Error> {
    let prefix = args.prefix.or(args.under).unwrap_or_default();
    let (key, range_end) = bounds(prefix, true);
    let mut request = RangeRequest {
        key,
        range_end,
        revision: args.revision,
        stale: args.stale,
        keys_only: args.keys_only,
        ..Default::default()
    };
    let mut all: Option<RangeResponse> = None;
    loop {
        let listed = all.as_ref().map_or(0, count_of);
        request.limit =
            if args.limit == 0 { PAGE_KEYS } else { PAGE_KEYS.min(args.limit - listed) };
        let page = context.client.kv().range(request.clone()).await?;
        let done = !page.more || page.kvs.is_empty();
        if let Some(last) = page.kvs.last() {
            request.key = [&last.key[..], &[0]].concat().into();
        }
        let merged = match all.take() {
            // The pages after the first are read at its revision, so that they fit together.
            None => {
                request.revision = page.revision.max(request.revision);
                page
            }
            Some(mut first) => {
                first.kvs.extend(page.kvs);
                RangeResponse { more: page.more, ..first }
            }
        };
        let full = args.limit > 0 && count_of(&merged) >= args.limit;
        all = Some(merged);
        if done || full {
            break;
        }
    }
    let all = all.expect("at least one page was read");
    context.show.answer(&all, |all| keys_table(&all.kvs, args.keys_only).into())
}

fn count_of(page: &RangeResponse) -> u64 {
    u64::try_from(page.kvs.len()).unwrap_or(u64::MAX)
}

fn keys_table(kvs: &[KeyValue], keys_only: bool) -> Table {
    let mut table = Table::new(&["KEY", "VERSION", "CREATED", "MODIFIED", "SESSION", "VALUE"]);
    for kv in kvs {
        let value = if keys_only { "-".to_owned() } else { text(&kv.value) };
        table.row([
            text(&kv.key).into(),
            kv.version.into(),
            kv.create_revision.into(),
            kv.mod_revision.into(),
            id(kv.session_id).into(),
            value.into(),
        ]);
    }
    table
}

async fn watch(context: &Context, args: WatchArgs) -> Result<(), Error> {
    let (key, range_end) = bounds(args.key, args.prefix);
    let request = WatchRequest { key, range_end, start_revision: args.from, prev_kv: args.prev };
    let mut watch = context.client.kv().watch(request);
    let mut markers = Markers::default();
    while let Some(response) = watch.next().await? {
        let place = format!("revision {}", response.revision);
        context.show.message(&response, changes)?;
        markers.tell(watch.breaks(), response.caught_up, response.fell_behind, &place);
    }
    Ok(())
}

fn changes(response: &WatchResponse) -> Shown {
    Shown::Lines(response.events.iter().map(change).collect())
}

fn change(event: &KvEvent) -> String {
    let kv = event.kv.clone().unwrap_or_default();
    let (revision, key) = (kv.mod_revision, text(&kv.key));
    let before = event.prev_kv.as_ref().map(|kv| format!("  (was {})", text(&kv.value)));
    let before = before.unwrap_or_default();
    match event.kind() {
        Kind::Delete => format!("{revision}  DELETE  {key}{before}"),
        _ => format!("{revision}  PUT     {key} = {}{before}", text(&kv.value)),
    }
}

async fn txn(context: &Context, args: TxnArgs) -> Result<(), Error> {
    let input = if args.file.as_os_str() == "-" {
        standard_input().await?
    } else {
        let read = tokio::fs::read(&args.file).await;
        read.map_err(|error| Error::failed(format!("{}: {error}", args.file.display())))?.into()
    };
    let input = std::str::from_utf8(&input)
        .map_err(|_| Error::failed("the input is not the JSON of a TxnRequest: not UTF-8"))?;
    let request: TxnRequest = json::parse(input)?;
    let answer = context.client.kv().txn(request).await?;
    context.show.answer(&answer, |answer| {
        let branch = if answer.succeeded { "success" } else { "failure" };
        let told = format!("ran {branch}, revision {}", answer.revision);
        let rest = answer.responses.iter().flat_map(operation);
        Shown::Lines(std::iter::once(told).chain(rest).collect())
    })
}

fn operation(answer: &ResponseOp) -> Vec<String> {
    match &answer.response {
        Some(Response::Range(range)) => {
            range.kvs.iter().map(|kv| format!("{} = {}", text(&kv.key), text(&kv.value))).collect()
        }
        Some(Response::Put(put)) => vec![format!("put, revision {}", put.revision)],
        Some(Response::DeleteRange(delete)) => vec![format!("deleted {}", delete.deleted)],
        None => Vec::new(),
    }
}

async fn compact(context: &Context, args: CompactArgs) -> Result<(), Error> {
    let request = CompactRequest { revision: args.revision, request_id: String::new() };
    let answer = context.client.kv().compact(request).await?;
    context.show.answer(&answer, |answer| {
        format!("compacted at {}; the store is at revision {}", args.revision, answer.revision)
            .into()
    })
}

/// One key, or all keys that start with it.
fn bounds(key: String, prefix: bool) -> (Bytes, Bytes) {
    match (prefix, key.is_empty()) {
        (false, _) => (key.into(), Bytes::new()),
        (true, true) => (Bytes::from_static(&[0]), Bytes::from_static(&[0])),
        (true, false) => {
            let end = prefix_end(key.as_bytes());
            (key.into(), end)
        }
    }
}

/// Everything on standard input.
async fn standard_input() -> Result<Bytes, Error> {
    let read = tokio::task::spawn_blocking(|| {
        let mut all = Vec::new();
        let _ = std::io::stdout().flush();
        std::io::stdin().lock().read_to_end(&mut all).map(|_| all)
    });
    let read = read.await.map_err(|error| Error::failed(error.to_string()))?;
    let all =
        read.map_err(|error| Error::failed(format!("cannot read standard input: {error}")))?;
    Ok(all.into())
}

fn held_lock(text: &str) -> Result<HeldLock, String> {
    let parsed = text.rsplit_once(':').and_then(|(name, token)| Some((name, token.parse().ok()?)));
    let (name, fencing_token) = parsed.ok_or_else(|| format!("`{text}` is not NAME:TOKEN"))?;
    Ok(HeldLock { name: name.to_owned(), fencing_token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_spans_the_keys_that_start_with_it() {
        assert_eq!(bounds("a".to_owned(), false), ("a".into(), Bytes::new()));
        assert_eq!(bounds("a/".to_owned(), true), ("a/".into(), "a0".into()));
        let all = Bytes::from_static(&[0]);
        assert_eq!(bounds(String::new(), true), (all.clone(), all));
    }

    #[test]
    fn a_required_lock_is_a_name_and_a_token() {
        let held = held_lock("a:b:7").expect("well formed");
        assert_eq!((held.name.as_str(), held.fencing_token), ("a:b", 7));
        assert!(held_lock("demo").is_err() && held_lock("demo:x").is_err());
    }

    #[test]
    fn a_change_is_one_line() {
        let kv = KeyValue {
            key: "a".into(),
            value: "1\n".into(),
            mod_revision: 7,
            ..Default::default()
        };
        let put = KvEvent { kind: Kind::Put.into(), kv: Some(kv.clone()), prev_kv: None };
        assert_eq!(change(&put), "7  PUT     a = 1\\n");
        let delete = KvEvent { kind: Kind::Delete.into(), kv: Some(kv.clone()), prev_kv: Some(kv) };
        assert_eq!(change(&delete), "7  DELETE  a  (was 1\\n)");
    }
}
