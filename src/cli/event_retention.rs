//! `quorate events limits|trim|delete`: what streams keep and let go.
//!
//! Which values fit is judged by the server, not here.

use clap::Args;

use crate::{
    cli::{
        Error,
        context::Context,
        events::{Expect, parse_expect, table},
        table::{duration, printable},
    },
    pb::event::v1::{
        DeleteStreamRequest, DescribeStreamRequest, DescribeStreamResponse, SetStreamLimitsRequest,
        SetStreamLimitsResponse, Stream, StreamLimits, TrimStreamRequest, append_request,
        delete_stream_request, trim_stream_request::Before,
    },
    server::parse_duration,
};

/// Flags of `events limits`.
#[derive(Debug, Args)]
pub struct LimitsArgs {
    /// The stream's name
    stream: String,
    /// How long events are kept: 90s, 12h, 30d; none keeps them for ever
    #[arg(long, value_name = "DURATION|none", value_parser = parse_age)]
    max_age: Option<prost_types::Duration>,
    /// How many events are kept; none keeps all
    #[arg(long, value_name = "N|none", value_parser = parse_number)]
    max_count: Option<u64>,
    /// How many bytes of events are kept: 65536, 64KiB, 10GiB; none keeps all
    #[arg(long, value_name = "BYTES|none", value_parser = parse_bytes_or_none)]
    max_bytes: Option<u64>,
}

/// Flags of `events trim`.
#[derive(Debug, Args)]
pub struct TrimArgs {
    /// The stream's name
    stream: String,
    /// The first version to keep
    #[arg(long, value_name = "VERSION", required_unless_present = "before_position")]
    before: Option<u64>,
    /// The first position to keep, in the order of all streams
    #[arg(long, value_name = "POSITION", conflicts_with = "before")]
    before_position: Option<u64>,
}

/// Flags of `events delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The stream's name
    stream: String,
    /// What the stream must be like: any, exists, or its last version
    #[arg(long, default_value = "any", value_name = "any|exists|N", value_parser = parse_expect)]
    expect: Expect,
}

pub(super) async fn limits(context: &Context, args: LimitsArgs) -> Result<(), Error> {
    let LimitsArgs { stream, max_age, max_count, max_bytes } = args;
    let limits = StreamLimits { max_age, max_count, max_bytes };
    let events = context.client.events();
    if limits == StreamLimits::default() {
        let answer = events.describe_stream(DescribeStreamRequest { stream, stale: false }).await?;
        return context.show.answer(&answer, |answer: &DescribeStreamResponse| {
            table(answer.stream.as_slice()).into()
        });
    }
    let request =
        SetStreamLimitsRequest { stream, limits: Some(limits), request_id: String::new() };
    let answer = events.set_stream_limits(request).await?;
    context
        .show
        .answer(&answer, |answer: &SetStreamLimitsResponse| table(answer.stream.as_slice()).into())
}

pub(super) async fn trim(context: &Context, args: TrimArgs) -> Result<(), Error> {
    let before = args.before.map(Before::BeforeVersion);
    let before = before.or(args.before_position.map(Before::BeforePosition));
    let request = TrimStreamRequest { stream: args.stream, before, request_id: String::new() };
    let answer = context.client.events().trim_stream(request).await?;
    context.show.answer(&answer, |answer| {
        let events = plural(answer.trimmed_count);
        let (name, first) = (printable(&answer.stream), answer.first_version);
        format!("{name}: {events} let go, begins with version {first}").into()
    })
}

pub(super) async fn delete(context: &Context, args: DeleteArgs) -> Result<(), Error> {
    use delete_stream_request::Expected;
    let expected = args.expect.0.map(|expected| match expected {
        append_request::Expected::ExpectedVersion(version) => Expected::ExpectedVersion(version),
        append_request::Expected::ExpectedState(state) => Expected::ExpectedState(state),
    });
    let request = DeleteStreamRequest { stream: args.stream, expected, request_id: String::new() };
    let answer = context.client.events().delete_stream(request).await?;
    context.show.answer(&answer, |answer| {
        let events = plural(answer.deleted_count);
        let (name, last) = (printable(&answer.stream), answer.last_version);
        format!("{name}: deleted at version {last}, {events} let go").into()
    })
}

fn plural(events: u64) -> String {
    if events == 1 { "1 event".to_owned() } else { format!("{events} events") }
}

/// A stream's limits in a few words.
pub(super) fn describe(stream: &Stream) -> String {
    let limits = stream.limits.unwrap_or_default();
    let mut words = Vec::new();
    if stream.deleted {
        words.push("deleted".to_owned());
    }
    words.extend(limits.max_age.as_ref().map(|age| format!("age {}", duration(Some(age)))));
    words.extend(limits.max_count.map(|count| format!("count {count}")));
    words.extend(limits.max_bytes.map(|bytes| format!("bytes {bytes}")));
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

fn parse_age(text: &str) -> Result<prost_types::Duration, String> {
    if text == "none" || text == "0" {
        return Ok(prost_types::Duration::default());
    }
    let age = parse_duration(text).map_err(|why| format!("{why}, nor none"))?;
    prost_types::Duration::try_from(age).map_err(|_| format!("`{text}` is too long"))
}

fn parse_number(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    text.parse().map_err(|_| format!("`{text}` is neither a number nor none"))
}

fn parse_bytes_or_none(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    crate::server::parse_bytes(text).map_err(|why| format!("{why}, nor none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_takes_a_limit_away() {
        assert_eq!(parse_age("none"), Ok(prost_types::Duration { seconds: 0, nanos: 0 }));
        assert_eq!(parse_age("1.5h"), Ok(prost_types::Duration { seconds: 5_400, nanos: 0 }));
        assert_eq!((parse_number("none"), parse_number("7")), (Ok(0), Ok(7)));
        assert_eq!((parse_bytes_or_none("none"), parse_bytes_or_none("1KiB")), (Ok(0), Ok(1_024)));
        assert!(parse_age("-5s").is_err() && parse_age("5").is_err() && parse_age("").is_err());
        assert!(parse_number("-1").is_err() && parse_number("many").is_err());
        assert!(parse_bytes_or_none("-1").is_err() && parse_bytes_or_none("1 apple").is_err());
    }

    #[test]
    fn limits_are_told_in_a_few_words() {
        let mut stream = Stream::default();
        assert_eq!(describe(&stream), "-");
        let max_age = Some(prost_types::Duration { seconds: 90, nanos: 0 });
        stream.limits = Some(StreamLimits { max_age, max_count: Some(5), max_bytes: None });
        assert!(describe(&stream).ends_with(", count 5"), "{}", describe(&stream));
    }
}
