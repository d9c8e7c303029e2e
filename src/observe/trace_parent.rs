//! W3C trace context: the `traceparent` header, which says what a request is part of.
//!
//! Read and written as <https://www.w3.org/TR/trace-context/> says. What is malformed counts as not
//! there; nothing here decides what is recorded.

use core::{fmt, str::FromStr};

/// The name of the header.
pub const TRACEPARENT: &str = "traceparent";

/// The part of a trace that a request belongs to.
///
/// ```
/// use quorate::observe::TraceParent;
///
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let parent: TraceParent = text.parse()?;
/// assert!(parent.sampled);
/// assert_eq!(parent.to_string(), text);
/// # Ok::<(), quorate::observe::MalformedTraceParent>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace; never zero.
    pub trace_id: u128,
    /// The span of the caller; never zero.
    pub parent_id: u64,
    /// Whether the caller records the trace.
    pub sampled: bool,
}

/// The text is not a `traceparent` as W3C defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent such as 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
pub struct MalformedTraceParent;

impl FromStr for TraceParent {
    type Err = MalformedTraceParent;

    fn from_str(text: &str) -> Result<Self, MalformedTraceParent> {
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            part.bytes().all(lower).then(|| u128::from_str_radix(part, 16).ok())?
        };
        let fields = (hex(2), hex(32), hex(16), hex(2));
        let (Some(version), Some(trace_id), Some(parent_id), Some(flags)) = fields else {
            return Err(MalformedTraceParent);
        };
        // A later version may say more behind what this one says.
        let more = parts.next().is_some() && version == 0;
        let parent_id = u64::try_from(parent_id).expect("sixteen digits");
        if version == 0xff || more || trace_id == 0 || parent_id == 0 {
            return Err(MalformedTraceParent);
        }
        Ok(Self { trace_id, parent_id, sampled: flags & 1 == 1 })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace_id, parent_id, sampled } = *self;
        write!(f, "00-{trace_id:032x}-{parent_id:016x}-{:02x}", u8::from(sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::Target;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn fuzz_trace_parents() {
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
        Target::new("trace parents", 10_000).damaged_texts(&[GOOD, later], |text| {
            if let Ok(parent) = text.parse::<TraceParent>() {
                assert_eq!(parent.to_string().parse(), Ok(parent));
            }
        });
    }

    #[test]
    fn what_is_read_is_written() {
        let parent: TraceParent = GOOD.parse().unwrap();
        assert_eq!(parent.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(parent.parent_id, 0x00f0_67aa_0ba9_02b7);
        assert!(parent.sampled);
        assert_eq!(parent.to_string(), GOOD);
        let quiet = GOOD.replace("-01", "-fe");
        assert!(!quiet.parse::<TraceParent>().unwrap().sampled);
    }

    #[test]
    fn a_later_version_may_say_more_and_this_one_may_not() {
        let later = GOOD.replacen("00", "cc", 1) + "-what-will-be";
        assert!(later.parse::<TraceParent>().is_ok());
        assert!(format!("{GOOD}-more").parse::<TraceParent>().is_err());
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let zero_parent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16));
        let upper = GOOD.to_uppercase();
        let cut = &GOOD[..GOOD.len() - 1];
        let invalid = GOOD.replacen("00", "ff", 1);
        for text in ["", "00", "ä", cut, &zero_trace, &zero_parent, &upper, &invalid] {
            assert_eq!(text.parse::<TraceParent>(), Err(MalformedTraceParent), "{text}");
        }
        let signed = GOOD.replace("-00f067aa0ba902b7-", "-+0f067aa0ba902b7-");
        assert!(signed.parse::<TraceParent>().is_err());
    }
}
