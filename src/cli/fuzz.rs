//! Texts and bytes that nobody meant, where the command line reads them: from files, from standard
//! input, and from servers that may be anybody's.

use prost::Message as _;
use prost_reflect::DynamicMessage;

use crate::{
    cli::{event_lines, json},
    fuzz::{self, Target},
    pb::{cluster, discovery, event, kv, lock},
};

#[test]
fn fuzz_event_lines() {
    let good = [
        r#"{"type":"T","data":{"z":1.10,"a":[1,"x \" y",null,true]},"id":"i"}"#,
        r#"{"stream":"s","version":1,"position":2,"time":"1970-01-01T00:00:00Z","id":"i","type":"T","data":"plain","metadata":{"a":"b"},"tags":["t"]}"#,
        r#"{"type":"T","data":{"base64":"//4="}}"#,
    ];
    let target = Target::new("event lines", 3_000).allocating(512, 256 << 10);
    target.damaged_texts(&good, |text| {
        for line in text.lines() {
            let _ = event_lines::parse(line.trim());
        }
    });
}

#[test]
fn fuzz_events_shown() {
    let make = |rng: &mut crate::types::Rng| fuzz::message("quorate.event.v1.RecordedEvent", rng);
    let target = Target::new("events shown", 3_000).allocating(512, 256 << 10);
    target.made(make, |input, _| {
        let event = event::v1::RecordedEvent::decode(input).expect("it was just written");
        let line = event_lines::render(&event);
        assert!(!line.contains('\n'), "one event, one line: {line}");
        let read = event_lines::parse(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!((read.r#type, read.tags), (event.r#type, event.tags));
    });
}

#[test]
fn fuzz_transactions() {
    let good = [
        r#"{"success":[{"put":{"key":"YQ==","value":"Yg=="}}],"compare":[{"key":"YQ==","version":"3"}]}"#,
        r#"{"failure":[{"range":{"key":"YQ==","rangeEnd":"AA==","limit":"5"}}],"requestId":"1:2:0"}"#,
        r#"{"success":[{"deleteRange":{"key":"YQ==","prevKv":true}}]}"#,
    ];
    let target = Target::new("transactions", 2_000).allocating(512, 512 << 10);
    target.damaged_texts(&good, |text| {
        if let Ok(txn) = json::parse::<kv::v1::TxnRequest>(text) {
            let again =
                json::parse::<kv::v1::TxnRequest>(&json::line(&txn).expect("it has a form"));
            assert_eq!(again.expect("it was just written"), txn);
        }
    });
}

/// Whatever a server answers, it is shown or refused.
#[test]
fn fuzz_answers_shown() {
    macro_rules! shown {
        ($input:expr, $rng:expr, $($area:ident::$message:ident)+) => {
            $({
                let name = concat!("quorate.", stringify!($area), ".v1.", stringify!($message));
                let bytes = fuzz::message(name, $rng);
                let bytes = if $input.is_empty() { bytes } else { fuzz::mutate(&[bytes], $rng) };
                if let Ok(message) = $area::v1::$message::decode(bytes.as_slice()) {
                    let _ = (json::line(&message), json::pretty(&message));
                }
            })+
        };
    }
    let make = |rng: &mut crate::types::Rng| vec![0; rng.below(2) as usize];
    let target = Target::new("answers shown", 100).allocating(512, 64 << 20);
    target.made(make, |input, rng| {
        shown!(input, rng,
            kv::RangeResponse kv::PutResponse kv::DeleteRangeResponse kv::TxnResponse
            kv::CompactResponse kv::WatchResponse lock::AcquireResponse lock::RenewResponse
            lock::ReleaseResponse lock::DescribeResponse lock::ListResponse lock::WatchResponse
            discovery::RegisterResponse discovery::DeregisterResponse
            discovery::SetInstanceStateResponse discovery::ResolveResponse
            discovery::ListServicesResponse discovery::WatchResponse event::AppendResponse
            event::ReadResponse event::SubscribeResponse event::ListStreamsResponse
            event::DescribeStreamResponse event::SetStreamLimitsResponse event::TrimStreamResponse
            event::DeleteStreamResponse cluster::StatusResponse cluster::StateHashResponse
            cluster::TransferLeadershipResponse cluster::SnapshotSummary);
    });
}

/// Every message of every proto, from damaged bytes, to JSON and back.
#[test]
fn fuzz_every_message() {
    let names = fuzz::every_message();
    let make = |rng: &mut crate::types::Rng| {
        let name = rng.below(names.len() as u64) as usize;
        let good = fuzz::message(&names[name], rng);
        let mut input = vec![name as u8];
        input.extend(fuzz::mutate(&[good], rng));
        input
    };
    assert!(names.len() < 256, "{}", names.len());
    let target = Target::new("every message", 2_000).allocating(1_024, 1 << 20);
    target.made(make, |input, _| {
        let name = &names[usize::from(input[0])];
        let descriptor = fuzz::pool().get_message_by_name(name).expect("it is listed");
        let Ok(message) = DynamicMessage::decode(descriptor.clone(), &input[1..]) else { return };
        let Ok(text) = serde_json::to_string(&message) else { return };
        let mut input = serde_json::Deserializer::from_str(&text);
        let _ = DynamicMessage::deserialize(descriptor, &mut input);
    });
}
