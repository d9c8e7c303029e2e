//! Spans of time as requests and answers carry them.
//!
//! Spans are kept in whole milliseconds, because log time is; a part of a millisecond counts as a
//! whole one. Nothing here reads a clock.

use crate::{machine::outcome::invalid, pb::command::v1::Refusal, types::Duration};

/// The shortest TTL of a session, lock or instance.
pub(crate) const TTL_MIN: Duration = Duration::from_secs(1);
/// The longest TTL.
pub(crate) const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The TTL of those who name none.
pub(crate) const TTL_DEFAULT: Duration = Duration::from_secs(30);

/// The form of the public messages.
pub(crate) fn to_wire(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).expect("less than a second"),
    }
}

/// Reads a span that is not negative; `field` names it in the refusal.
pub(crate) fn read(span: &prost_types::Duration, field: &str) -> Result<Duration, Refusal> {
    let (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) =
        (u64::try_from(span.seconds), u32::try_from(span.nanos))
    else {
        let sentence = format!("`{field}` must be a duration that is not negative");
        return Err(invalid(sentence));
    };
    let millis = seconds.saturating_mul(1_000).saturating_add(u64::from(nanos.div_ceil(1_000_000)));
    Ok(Duration::from_millis(millis))
}

/// Reads a TTL within its bounds; an absent one is [`TTL_DEFAULT`].
pub(crate) fn read_ttl(ttl: Option<&prost_types::Duration>) -> Result<Duration, Refusal> {
    let Some(ttl) = ttl else { return Ok(TTL_DEFAULT) };
    let ttl = read(ttl, "ttl")?;
    if (TTL_MIN..=TTL_MAX).contains(&ttl) {
        return Ok(ttl);
    }
    let sentence = format!("`ttl` is {ttl:?}; it must be from 1 s to 24 h");
    Err(invalid(sentence))
}

/// A span in the milliseconds that rows keep.
pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_in_whole_milliseconds_upwards() {
        let read = |seconds, nanos| read(&prost_types::Duration { seconds, nanos }, "wait");
        assert_eq!(read(1, 500_000_000), Ok(Duration::from_millis(1_500)));
        assert_eq!(read(0, 1), Ok(Duration::from_millis(1)));
        assert!(read(-1, 0).is_err() && read(0, -1).is_err() && read(0, 1_000_000_000).is_err());
    }

    #[test]
    fn ttls_have_a_default_and_bounds() {
        let read = |seconds| read_ttl(Some(&prost_types::Duration { seconds, nanos: 0 }));
        assert_eq!(read_ttl(None), Ok(TTL_DEFAULT));
        assert_eq!(read(86_400), Ok(TTL_MAX));
        assert!(read(0).is_err() && read(86_401).is_err());
    }
}
