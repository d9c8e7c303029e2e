//! Events as lines of JSON: `{"type":..., "data":..., "id"?, "metadata"?, "tags"?}` in, the same
//! plus stream, version, position and time out.
//!
//! JSON data passes byte for byte, but for the blanks between its parts: numbers keep their digits
//! and objects their order. Data that is not JSON is shown as a string where it is UTF-8, and else
//! as `{"base64": ...}`. What is shown can be read back in: places and times are then ignored.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{json, value::RawValue};
use uuid::Uuid;

use crate::pb::event::v1::{Event, RecordedEvent};

/// One line of input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    id: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default, rename = "stream")]
    _stream: Option<IgnoredAny>,
    #[serde(default, rename = "version")]
    _version: Option<IgnoredAny>,
    #[serde(default, rename = "position")]
    _position: Option<IgnoredAny>,
    #[serde(default, rename = "time")]
    _time: Option<IgnoredAny>,
}

/// Reads one line. An event without an id gets one, so that a retry appends it once.
pub(crate) fn parse(line: &str) -> Result<Event, String> {
    let line: Line<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let id = if line.id.is_empty() { Uuid::new_v4().to_string() } else { line.id };
    Ok(Event {
        id,
        r#type: line.r#type.into_owned(),
        data: line.data.map(|data| compact(data.get()).into_bytes().into()).unwrap_or_default(),
        metadata: line.metadata,
        tags: line.tags,
    })
}

/// Writes one line. Fields that are empty are left out.
pub(crate) fn render(event: &RecordedEvent) -> String {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let mut fields = vec![
        ("stream", text(&event.stream)),
        ("version", event.version.to_string()),
        ("position", event.position.to_string()),
        ("time", text(&event.record_time.as_ref().map(ToString::to_string).unwrap_or_default())),
        ("id", text(&event.id)),
        ("type", text(&event.r#type)),
    ];
    if !event.data.is_empty() {
        fields.push(("data", data(&event.data)));
    }
    if !event.metadata.is_empty() {
        fields.push(("metadata", json!(event.metadata).to_string()));
    }
    if !event.tags.is_empty() {
        fields.push(("tags", json!(event.tags).to_string()));
    }
    let fields: Vec<_> =
        fields.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn data(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return json!({ "base64": base64(bytes) }).to_string();
    };
    match serde_json::from_str::<&RawValue>(text) {
        Ok(json) => compact(json.get()),
        Err(_) => serde_json::Value::from(text).to_string(),
    }
}

/// JSON without the blanks between its parts.
fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in json.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
        } else if c.is_ascii_whitespace() {
            continue;
        } else {
            in_string = c == '"';
        }
        out.push(c);
    }
    out
}

/// Standard base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4_usize {
            let value = usize::try_from(bits >> (18 - 6 * digit) & 63).expect("six bits");
            let wanted = digit <= group.len();
            out.push(if wanted { char::from(DIGITS[value]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(data: &'static [u8]) -> RecordedEvent {
        RecordedEvent {
            stream: "orders".to_owned(),
            version: 2,
            position: 9,
            id: "i".to_owned(),
            r#type: "Created".to_owned(),
            data: data.into(),
            record_time: Some(prost_types::Timestamp { seconds: 0, nanos: 5_000_000 }),
            ..Default::default()
        }
    }

    #[test]
    fn json_data_passes_unchanged_but_for_blanks() {
        let event =
            parse(r#"{"type": "T", "data": {"z": 1.10, "a": [1, "x \" y"]}}"#).expect("valid");
        assert_eq!(event.data.as_ref(), br#"{"z":1.10,"a":[1,"x \" y"]}"#);
        assert!(Uuid::parse_str(&event.id).is_ok());
        let big = parse(r#"{"type":"T","data":12345678901234567890123}"#).expect("valid");
        assert_eq!(big.data.as_ref(), b"12345678901234567890123");
    }

    #[test]
    fn a_line_has_the_shape_of_the_input_and_its_place() {
        assert_eq!(
            render(&recorded(br#"{"n":1}"#)),
            r#"{"stream":"orders","version":2,"position":9,"time":"1970-01-01T00:00:00.005Z","id":"i","type":"Created","data":{"n":1}}"#
        );
    }

    #[test]
    fn other_data_is_a_string_or_base64() {
        assert!(render(&recorded(b"plain \"text\"")).ends_with(r#""data":"plain \"text\""}"#));
        assert!(render(&recorded(b"\xff\xfe")).ends_with(r#""data":{"base64":"//4="}}"#));
        assert!(!render(&recorded(b"")).contains("data"));
        assert!(render(&recorded(b"{\n \"a\": 1\n}")).ends_with(r#""data":{"a":1}}"#));
    }

    #[test]
    fn base64_is_the_standard_one() {
        for (bytes, expected) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
    }

    #[test]
    fn what_was_read_can_be_appended_and_a_misspelt_field_is_named() {
        let mut original = recorded(br#"{"n":1}"#);
        original.metadata.insert("by".to_owned(), "me".to_owned());
        original.tags.push("t".to_owned());
        let event = parse(&render(&original)).expect("valid");
        assert_eq!((event.id, event.data), (original.id, original.data));
        assert_eq!((event.metadata, event.tags), (original.metadata, original.tags));
        assert!(parse(r#"{"type":"T","dat":1}"#).expect_err("misspelt").contains("dat"));
        assert!(parse(r#"{"data":1}"#).expect_err("no type").contains("type"));
    }
}
