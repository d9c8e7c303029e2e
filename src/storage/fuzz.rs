//! Bytes that nobody meant, for the files of a data directory beside the log.

use crate::{fuzz::Target, storage::Identity};

#[test]
fn fuzz_identities() {
    let good = include_str!("../../tests/golden/identity-v1.toml");
    let mended = |text: &str| {
        let body = text.rfind("checksum").map_or(text, |end| &text[..end]);
        format!("{body}checksum = \"{:08x}\"\n", crc32c::crc32c(body.as_bytes()))
    };
    Target::new("identities", 1_000).allocating(256, 256 << 10).damaged_texts(&[good], |text| {
        let _ = Identity::decode(text, "identity");
        if let Ok(identity) = Identity::decode(&mended(text), "identity") {
            let again = Identity::decode(&identity.encode(), "identity");
            assert_eq!(again.expect("it was just written"), identity);
        }
    });
}
