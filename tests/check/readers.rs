//! Readers of histories take any bytes without a panic, and what they take can be judged.

use std::{fs, path::Path};

use proptest::prelude::*;
use quorate::sim::{
    checker::{Budget, black_box, picture, witness},
    history::History,
};

/// Reads, judges and draws; nothing of it panics.
fn survive(bytes: &[u8]) {
    let Ok(history) = History::read(bytes) else { return };
    let report = witness(&history).with(black_box(&history, &mut Budget::steps(2_000)));
    assert!(!picture(&history, &report, "any").is_empty());
}

fn samples() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/histories");
    let entries = fs::read_dir(folder).expect("the histories are there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("it can be read")).collect()
}

/// Changes a sample here and there: numbers too, so that lines stay well formed.
fn mutate(sample: &mut Vec<u8>, changes: &[(u16, u8, u8)]) {
    for (place, kind, byte) in changes {
        let at = usize::from(*place) % sample.len().max(1);
        let Some(old) = sample.get(at).copied() else { return };
        match kind % 6 {
            0 => sample[at] = *byte,
            1 => {
                sample.remove(at);
            }
            2 => sample.insert(at, *byte),
            3 => {
                let digit = sample[at..].iter().position(u8::is_ascii_digit).unwrap_or(0);
                sample[at + digit] = b'0' + byte % 10;
            }
            4 => {
                let digit = sample[at..].iter().position(u8::is_ascii_digit);
                if let Some(digit) = digit {
                    sample.splice(at + digit..at + digit, std::iter::repeat_n(b'9', 18));
                }
            }
            _ => {
                // A whole line again, elsewhere.
                let lines: Vec<Vec<u8>> =
                    sample.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
                let line = lines[usize::from(*byte) % lines.len()].clone();
                let mut lines = lines;
                let to = at % (lines.len() + 1);
                lines.insert(to, line);
                *sample = lines.join(&b'\n');
                let _ = old;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        survive(&bytes);
        let header = b"{\"quorate_history\":1}\n".to_vec();
        survive(&[header, bytes.clone()].concat());
        survive(&[b"INFO jepsen.util - ".to_vec(), bytes].concat());
    }

    #[test]
    fn changed_histories_are_read_or_refused(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<u16>(), any::<u8>(), any::<u8>()), 1..6),
    ) {
        let samples = samples();
        let mut sample = which.get(&samples).clone();
        mutate(&mut sample, &changes);
        survive(&sample);
    }

    #[test]
    fn words_of_a_jepsen_log_in_any_order_are_read_or_refused(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "INFO", "jepsen.util", "-", "0", "1", ":invoke", ":ok", ":fail", ":info", ":read",
                ":write", ":cas", "nil", "[1", "2]", "[1 2]", "[", "]", "3", "\t", "\n",
                "INFO jepsen.util - 0 :invoke :cas ", "\nINFO jepsen.util - 0 :ok :read ",
            ]),
            0..40,
        ),
    ) {
        survive(words.join(" ").as_bytes());
    }
}
