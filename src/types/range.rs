//! Ranges of keys, as etcd writes them.

use bytes::Bytes;

/// A range of keys: `start` inclusive, `end` exclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key.
    pub start: Bytes,
    /// The first key that is no longer in the range; `None` has no upper end.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// Reads the wire form: an empty `range_end` is one key, a single zero byte has no upper end.
    #[must_use]
    pub fn from_wire(key: &Bytes, range_end: &Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::single(key),
            [0] => Self { start: key.clone(), end: None },
            _ => Self { start: key.clone(), end: Some(range_end.clone()) },
        }
    }

    /// One key alone.
    #[must_use]
    pub fn single(key: &[u8]) -> Self {
        let mut end = Vec::with_capacity(key.len() + 1);
        end.extend_from_slice(key);
        end.push(0);
        Self { start: Bytes::copy_from_slice(key), end: Some(end.into()) }
    }

    /// All keys that start with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        let last = prefix.iter().rposition(|&byte| byte < u8::MAX);
        let end = last.map(|last| {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            Bytes::from(end)
        });
        Self { start: Bytes::copy_from_slice(prefix), end }
    }

    /// Whether the key lies in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start.as_ref() && self.end.as_ref().is_none_or(|end| key < end.as_ref())
    }

    /// Whether no key can lie in the range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end <= &self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_forms_mean_what_etcd_means() {
        let one = KeyRange::from_wire(&"a".into(), &Bytes::new());
        assert!(one.contains(b"a") && !one.contains(b"a\0") && !one.contains(b"b"));
        let all = KeyRange::from_wire(&vec![0].into(), &vec![0].into());
        assert!(all.contains(b"\xff\xff"));
        let empty = KeyRange::from_wire(&"b".into(), &"a".into());
        assert!(empty.is_empty() && !empty.contains(b"b"));
    }

    #[test]
    fn a_prefix_ends_where_its_last_byte_moves_on() {
        let range = KeyRange::prefix(b"a/");
        assert!(range.contains(b"a/") && range.contains(b"a/\xff\xff") && !range.contains(b"a0"));
        assert_eq!(KeyRange::prefix(b"a\xff").end.as_deref(), Some(&b"b"[..]));
        assert_eq!(KeyRange::prefix(b"\xff\xff").end, None);
        assert!(KeyRange::prefix(b"").contains(b"anything"));
    }
}
