//! `quorate events`: append to streams, read them, subscribe, and let go of what is old.
//!
//! Lines of JSON in and out, as `event_lines` lays down; `--raw` and `-o json` give the canonical
//! mapping of the answers. Markers go to standard error.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Read};

use clap::{Args, Subcommand};
use prost::Message as _;
use tokio::sync::mpsc;

use crate::{
    cli::{
        Error, OutputFormat,
        context::Context,
        event_lines,
        event_retention::{self, DeleteArgs, LimitsArgs, TrimArgs},
        show::{Markers, Shown, say},
        table::{Cell, Table, printable, time},
    },
    pb::event::v1::{
        AppendRequest, Event, ExpectedState, ListStreamsRequest, ListStreamsResponse, ReadRequest,
        RecordedEvent, Stream, SubscribeRequest, append_request::Expected,
    },
};

/// The most events of one append.
const BATCH_EVENTS_MAX: usize = 1_000;

/// The most bytes of one append's events; the server takes 4 MiB in all.
const BATCH_BYTES_MAX: usize = 3 << 20;

/// How much is read from standard input at once.
const READ_BYTES: usize = 64 << 10;

/// How many batches are read ahead.
const BATCHES_AHEAD_MAX: usize = 4;

/// `quorate events`.
#[derive(Debug, Subcommand)]
pub enum EventsCommand {
    /// Append events, given as lines of JSON on standard input
    #[command(
        after_help = "Example:\n  echo '{\"type\":\"Created\",\"data\":{\"n\":1}}' | quorate events append orders\n\nA line is {\"type\":..., \"data\":..., \"id\"?, \"metadata\"?, \"tags\"?}; data is any JSON. Lines that\narrive together are appended together, all or none, up to 1000 at a time."
    )]
    Append(AppendArgs),
    /// Print the events of a stream, or of all streams, that are there
    #[command(
        after_help = "Example:\n  quorate events read orders\n\nData that is JSON is printed as JSON, other text as a string, other bytes as {\"base64\":...}."
    )]
    Read(ReadArgs),
    /// Print the events of a stream, or of all streams, as they come
    #[command(after_help = "Example:\n  quorate events subscribe orders --from start")]
    Subscribe(SubscribeArgs),
    /// List the streams
    #[command(after_help = "Example:\n  quorate events streams")]
    Streams(StreamsArgs),
    /// Show or set how much a stream keeps
    #[command(
        after_help = "Examples:\n  quorate events limits orders --max-age 30d --max-count 1000000\n  quorate events limits orders --max-age none\n  quorate events limits orders\n\nWhat is not named stays as it is; none, or 0, takes a limit away. The oldest events go first,\nalso of those that are there; versions and positions are never given again. A stream's limits\nmay be set before its first event."
    )]
    Limits(LimitsArgs),
    /// Let go of a stream's older events
    #[command(
        after_help = "Examples:\n  quorate events trim orders --before 1000\n  quorate events trim orders --before-position 250000\n\nThe event at the version or position that is named stays, and what follows it. Reading below it\nis refused from then on."
    )]
    Trim(TrimArgs),
    /// Let go of all events of a stream, and of its limits
    #[command(
        after_help = "Example:\n  quorate events delete orders --expect 1000\n\nAn append makes the stream anew; its versions go on where they were."
    )]
    Delete(DeleteArgs),
}

/// Flags of `events append`.
#[derive(Debug, Args)]
pub struct AppendArgs {
    /// The stream's name
    stream: String,
    /// What the stream must be like at first: any, exists, no-stream, or its last version
    #[arg(long, default_value = "any", value_name = "any|exists|no-stream|N")]
    #[arg(value_parser = parse_expect)]
    expect: Expect,
}

/// Flags of `events read`.
#[derive(Debug, Args)]
pub struct ReadArgs {
    /// The stream's name; none reads all streams in the global order
    #[arg(default_value = "", hide_default_value = true)]
    stream: String,
    /// Where to begin: start, or a version (of all streams: a position)
    #[arg(long, default_value = "start", value_name = "start|N", value_parser = parse_start)]
    from: u64,
    /// Print at most so many events; 0 is all
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    limit: u64,
    /// Read the answering node's own state, which may be old
    #[arg(long)]
    stale: bool,
    /// Print the canonical JSON of the answers
    #[arg(long)]
    raw: bool,
}

/// Flags of `events subscribe`.
#[derive(Debug, Args)]
pub struct SubscribeArgs {
    /// The stream's name; none subscribes to all streams in the global order
    #[arg(default_value = "", hide_default_value = true)]
    stream: String,
    /// Where to begin: start, end, or a version (of all streams: a position)
    #[arg(long, default_value = "end", value_name = "start|end|N", value_parser = parse_from)]
    from: From,
    /// End after so many events; 0 never ends
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    limit: u64,
    /// Print the canonical JSON of the answers
    #[arg(long)]
    raw: bool,
}

/// Flags of `events streams`.
#[derive(Debug, Args)]
pub struct StreamsArgs {
    /// List only names that start with this
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Read the answering node's own state, which may be old
    #[arg(long)]
    stale: bool,
}

/// What an append expects; `None` expects nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expect(pub(super) Option<Expected>);

/// Where a subscription begins; `None` is behind the last event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct From(Option<u64>);

impl EventsCommand {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Append(args) => append(context, args).await,
            Self::Read(args) => read(context, args).await,
            Self::Subscribe(args) => subscribe(context, args).await,
            Self::Streams(args) => streams(context, args).await,
            Self::Limits(args) => event_retention::limits(context, args).await,
            Self::Trim(args) => event_retention::trim(context, args).await,
            Self::Delete(args) => event_retention::delete(context, args).await,
        }
    }
}

async fn append(context: &Context, args: AppendArgs) -> Result<(), Error> {
    if std::io::stdin().is_terminal() {
        say("reading events from standard input, one JSON object a line; Ctrl-D ends");
    }
    let (sender, mut batches) = mpsc::channel(BATCHES_AHEAD_MAX);
    std::thread::spawn(move || read_batches(std::io::stdin(), &sender));
    let Expect(mut expected) = args.expect;
    let events = context.client.events();
    while let Some(batch) = batches.recv().await {
        let request = AppendRequest {
            stream: args.stream.clone(),
            events: batch?,
            expected,
            request_id: String::new(),
        };
        let answer = events.append(request).await?;
        // What was expected of the stream holds on: nobody else has appended since.
        expected = expected.map(|_| Expected::ExpectedVersion(answer.last_version));
        context.show.message(&answer, |answer| {
            let again = if answer.duplicate { " (they were there already)" } else { "" };
            format!(
                "{}: {}, {}{again}",
                printable(&answer.stream),
                range("version", answer.first_version, answer.last_version),
                range("position", answer.first_position, answer.last_position),
            )
            .into()
        })?;
    }
    Ok(())
}

fn range(what: &str, first: u64, last: u64) -> String {
    if first == last { format!("{what} {first}") } else { format!("{what}s {first} to {last}") }
}

/// Reads lines and sends those that arrive together together.
fn read_batches(input: impl Read, batches: &mpsc::Sender<Result<Vec<Event>, Error>>) {
    let mut input = BufReader::with_capacity(READ_BYTES, input);
    let mut batch = Batch::default();
    let mut number = 0_u64;
    let failed = loop {
        let mut line = String::new();
        match input.read_line(&mut line) {
            Ok(0) => break None,
            Ok(_) => number += 1,
            Err(error) => {
                break Some(Error::failed(format!("cannot read standard input: {error}")));
            }
        }
        if !line.trim().is_empty() {
            match event_lines::parse(line.trim()) {
                Ok(event) => batch.push(event, batches),
                Err(why) => break Some(Error::failed(format!("line {number}: {why}"))),
            }
        }
        // Without a whole line in the buffer the next read may wait.
        if !input.buffer().contains(&b'\n') {
            batch.send(batches);
        }
        if batches.is_closed() {
            return;
        }
    };
    batch.send(batches);
    if let Some(error) = failed {
        let _ = batches.blocking_send(Err(error));
    }
}

#[derive(Debug, Default)]
struct Batch {
    events: Vec<Event>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, event: Event, batches: &mpsc::Sender<Result<Vec<Event>, Error>>) {
        let bytes = event.encoded_len();
        if self.bytes + bytes > BATCH_BYTES_MAX || self.events.len() >= BATCH_EVENTS_MAX {
            self.send(batches);
        }
        self.bytes += bytes;
        self.events.push(event);
    }

    fn send(&mut self, batches: &mpsc::Sender<Result<Vec<Event>, Error>>) {
        let Self { events, .. } = std::mem::take(self);
        if !events.is_empty() {
            let _ = batches.blocking_send(Ok(events));
        }
    }
}

async fn read(context: &Context, args: ReadArgs) -> Result<(), Error> {
    let ReadArgs { stream, from, limit, stale, raw } = args;
    let mut read = context.client.events().read(ReadRequest { stream, from, limit, stale });
    let show = canonical(context, raw);
    while let Some(response) = read.next().await? {
        show.message(&response, |response| lines(&response.events))?;
    }
    Ok(())
}

async fn subscribe(context: &Context, args: SubscribeArgs) -> Result<(), Error> {
    let SubscribeArgs { stream, from: From(from), limit, raw } = args;
    let request =
        SubscribeRequest { stream, from: from.unwrap_or_default(), from_end: from.is_none() };
    let mut subscription = context.client.events().subscribe(request).await?;
    let show = canonical(context, raw);
    let mut markers = Markers::default();
    let mut left = limit;
    while let Some(mut response) = subscription.next().await? {
        let place = format!("position {}", response.position);
        if limit > 0 {
            response.events.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= u64::try_from(response.events.len()).unwrap_or(left);
        }
        show.message(&response, |response| lines(&response.events))?;
        if limit > 0 && left == 0 {
            break;
        }
        let (caught_up, fell_behind) = (response.caught_up, response.fell_behind);
        markers.tell(subscription.breaks(), caught_up, fell_behind, &place);
    }
    Ok(())
}

/// `--raw` asks for what `-o json` does.
fn canonical(context: &Context, raw: bool) -> crate::cli::show::Show {
    let mut show = context.show;
    if raw {
        show.format = OutputFormat::Jsonl;
    }
    show
}

fn lines(events: &[RecordedEvent]) -> Shown {
    Shown::Lines(events.iter().map(event_lines::render).collect())
}

async fn streams(context: &Context, args: StreamsArgs) -> Result<(), Error> {
    let mut request =
        ListStreamsRequest { prefix: args.prefix, stale: args.stale, ..Default::default() };
    let mut all = ListStreamsResponse::default();
    loop {
        let page = context.client.events().list_streams(request.clone()).await?;
        all.streams.extend(page.streams);
        all.last_position = page.last_position;
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    context.show.answer(&all, |all| table(&all.streams).into())
}

/// Streams as a person reads them.
pub(super) fn table(streams: &[Stream]) -> Table {
    let mut table =
        Table::new(&["STREAM", "VERSION", "FIRST", "LAST POSITION", "BYTES", "CREATED", "LIMITS"]);
    for stream in streams {
        let empty = stream.first_version > stream.version;
        table.row([
            printable(&stream.name).into(),
            stream.version.into(),
            if empty { Cell::from("-") } else { stream.first_version.into() },
            stream.last_position.into(),
            stream.bytes.into(),
            time(stream.create_time.as_ref()).into(),
            event_retention::describe(stream).into(),
        ]);
    }
    table
}

pub(super) fn parse_expect(text: &str) -> Result<Expect, String> {
    let state = |state: ExpectedState| Some(Expected::ExpectedState(state.into()));
    Ok(Expect(match text {
        "any" => None,
        "exists" => state(ExpectedState::Exists),
        "no-stream" => state(ExpectedState::NoStream),
        number => {
            Some(Expected::ExpectedVersion(number.parse().map_err(|_| {
                format!("`{number}` is neither any, exists, no-stream nor a version")
            })?))
        }
    }))
}

fn parse_start(text: &str) -> Result<u64, String> {
    if text == "start" {
        return Ok(0);
    }
    text.parse().map_err(|_| format!("`{text}` is neither start nor a number"))
}

fn parse_from(text: &str) -> Result<From, String> {
    if text == "end" {
        return Ok(From(None));
    }
    parse_start(text)
        .map(|from| From(Some(from)))
        .map_err(|_| format!("`{text}` is neither start, end nor a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(input: &'static [u8]) -> Vec<Result<Vec<Event>, Error>> {
        let (sender, mut receiver) = mpsc::channel(64);
        read_batches(input, &sender);
        drop(sender);
        std::iter::from_fn(|| receiver.blocking_recv()).collect()
    }

    #[test]
    fn lines_that_arrive_together_are_one_batch() {
        let all = batches(b"{\"type\":\"A\"}\n\n{\"type\":\"B\"}\n{\"type\":\"C\"}");
        let sizes: Vec<_> = all.iter().map(|batch| batch.as_ref().expect("valid").len()).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 3);
        assert_eq!(sizes[0], 2, "the last line is known to be whole at the end only");
    }

    #[test]
    fn a_bad_line_is_named_and_what_came_before_it_is_appended() {
        let all = batches(b"{\"type\":\"A\"}\n{\"type\":}\n{\"type\":\"C\"}\n");
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].as_ref().expect("valid").len(), 1);
        let error = all[1].as_ref().expect_err("malformed");
        assert!(error.to_string().starts_with("line 2: "), "{error}");
    }

    #[test]
    fn a_batch_stays_within_what_a_server_takes() {
        let line = "{\"type\":\"A\"}\n".repeat(BATCH_EVENTS_MAX * 2 + 1);
        let all = batches(Box::leak(line.into_boxed_str()).as_bytes());
        let sizes: Vec<_> = all.iter().map(|batch| batch.as_ref().expect("valid").len()).collect();
        assert!(sizes.iter().all(|size| *size <= BATCH_EVENTS_MAX), "{sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), BATCH_EVENTS_MAX * 2 + 1);
    }

    #[test]
    fn expectations_and_places_are_words_or_numbers() {
        assert_eq!(parse_expect("any"), Ok(Expect(None)));
        assert_eq!(parse_expect("7"), Ok(Expect(Some(Expected::ExpectedVersion(7)))));
        let none = Expected::ExpectedState(ExpectedState::NoStream.into());
        assert_eq!(parse_expect("no-stream"), Ok(Expect(Some(none))));
        assert!(parse_expect("none").is_err());
        assert_eq!(parse_from("end"), Ok(From(None)));
        assert_eq!(parse_from("start"), Ok(From(Some(0))));
        assert_eq!(parse_from("7"), Ok(From(Some(7))));
        assert!(parse_from("middle").is_err() && parse_start("end").is_err());
    }
}
