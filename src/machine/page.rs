//! Pages of listings: how many rows one has, and where the next begins.
//!
//! A page token is the last name of the page before, so that a listing goes on where it was,
//! whatever was added or removed in between.

use bytes::Bytes;

/// The most rows that a page has, and how many it has unless asked for fewer.
const PAGE_SIZE_MAX: u32 = 1_000;

/// How many rows a page has.
pub(crate) fn page_size(asked: u32) -> usize {
    let size = if asked == 0 { PAGE_SIZE_MAX } else { asked.min(PAGE_SIZE_MAX) };
    usize::try_from(size).expect("a page fits into memory")
}

/// The first key of a page: that of the range, or the one behind the last of the page before.
/// Without a token `last` sorts before the range or opens it.
pub(crate) fn page_start(range_start: Bytes, last: &[u8]) -> Bytes {
    if last <= range_start.as_ref() {
        return range_start;
    }
    let mut start = Vec::with_capacity(last.len() + 1);
    start.extend_from_slice(last);
    start.push(0);
    start.into()
}
