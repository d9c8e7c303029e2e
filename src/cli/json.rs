//! The canonical proto3 JSON of a message: what grpcurl prints, as JSON values.
//!
//! Default values are left out, 64-bit numbers are strings, bytes are base64, durations `"5s"`.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use crate::{
    cli::Error,
    pb::{self, cluster, discovery, event, kv, lab, lock},
};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(pb::DESCRIPTORS).expect("the build wrote the descriptors")
});

/// A message whose full name is known.
pub(crate) trait Named: Message + Default {
    /// Its full name.
    const NAME: &'static str;
}

macro_rules! named {
    ($($area:ident: $($message:ident)+;)+) => {
        $($(impl Named for $area::v1::$message {
            const NAME: &'static str =
                concat!("quorate.", stringify!($area), ".v1.", stringify!($message));
        })+)+
    };
}

named! {
    kv: RangeResponse PutResponse DeleteRangeResponse TxnRequest TxnResponse CompactResponse
        WatchResponse;
    lock: AcquireResponse RenewResponse ReleaseResponse DescribeResponse ListResponse
        WatchResponse;
    discovery: RegisterResponse DeregisterResponse SetInstanceStateResponse ResolveResponse
        ListServicesResponse WatchResponse;
    event: AppendResponse ReadResponse SubscribeResponse ListStreamsResponse
        DescribeStreamResponse SetStreamLimitsResponse TrimStreamResponse DeleteStreamResponse;
    cluster: StatusResponse StateHashResponse TransferLeadershipResponse SnapshotSummary;
    lab: AddLinkFaultResponse ListLinkFaultsResponse ClearLinkFaultsResponse;
}

/// The canonical JSON on one line.
pub(crate) fn line<M: Named>(message: &M) -> Result<String, Error> {
    serde_json::to_string(&dynamic(message)).map_err(no_form::<M>)
}

/// The canonical JSON, indented.
pub(crate) fn pretty<M: Named>(message: &M) -> Result<String, Error> {
    serde_json::to_string_pretty(&dynamic(message)).map_err(no_form::<M>)
}

/// Times and spans beyond the year 9999 have none; no server of ours sends them.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
fn no_form<M: Named>(error: serde_json::Error) -> Error {
    let kind = M::NAME.rsplit('.').next().unwrap_or(M::NAME);
    Error::failed(format!("the server's {kind} has no JSON form: {error}"))
}

/// Reads the canonical JSON of a message.
pub(crate) fn parse<M: Named>(text: &str) -> Result<M, Error> {
    let mut input = serde_json::Deserializer::from_str(text);
    let wrong = |error: &dyn std::fmt::Display| {
        let kind = M::NAME.rsplit('.').next().unwrap_or(M::NAME);
        Error::failed(format!("the input is not the JSON of a {kind}: {error}"))
    };
    let message = DynamicMessage::deserialize(descriptor::<M>(), &mut input)
        .map_err(|error| wrong(&error))?;
    input.end().map_err(|error| wrong(&error))?;
    message.transcode_to().map_err(|error| wrong(&error))
}

fn dynamic<M: Named>(message: &M) -> DynamicMessage {
    let bytes = message.encode_to_vec();
    DynamicMessage::decode(descriptor::<M>(), bytes.as_slice())
        .expect("a message of ours fits its own descriptor")
}

fn descriptor<M: Named>() -> MessageDescriptor {
    POOL.get_message_by_name(M::NAME).expect("the name is that of a message in proto/")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn value<M: Named>(message: &M) -> Value {
        serde_json::from_str(&line(message).expect("it has a form")).expect("JSON")
    }

    #[test]
    fn it_is_what_grpcurl_prints() {
        let granted = lock::v1::AcquireResponse {
            name: "demo".to_owned(),
            fencing_token: u64::MAX,
            session_id: 0,
            ttl: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
            revision: 7,
        };
        let expected = json!({
            "name": "demo", "fencingToken": "18446744073709551615", "ttl": "5s", "revision": "7",
        });
        assert_eq!(value(&granted), expected);
    }

    #[test]
    fn bytes_are_base64_and_enums_have_names() {
        let event = kv::v1::KvEvent {
            kind: kv::v1::kv_event::Kind::Put.into(),
            kv: Some(kv::v1::KeyValue { key: "a".into(), value: "b".into(), ..Default::default() }),
            prev_kv: None,
        };
        let response =
            kv::v1::WatchResponse { events: vec![event], caught_up: true, ..Default::default() };
        let expected = json!({
            "events": [{"kind": "KIND_PUT", "kv": {"key": "YQ==", "value": "Yg=="}}],
            "caughtUp": true,
        });
        assert_eq!(value(&response), expected);
    }

    #[test]
    fn an_answer_without_a_json_form_is_an_error() {
        let beyond = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
        let event = event::v1::RecordedEvent { record_time: Some(beyond), ..Default::default() };
        let response = event::v1::ReadResponse { events: vec![event] };
        for shown in [line(&response), pretty(&response)] {
            let error = shown.expect_err("the year is far beyond 9999").to_string();
            assert!(error.contains("ReadResponse"), "{error}");
        }
    }

    #[test]
    fn every_named_message_exists_and_a_transaction_is_read_back() {
        for found in
            [value(&kv::v1::PutResponse::default()), value(&cluster::v1::StatusResponse::default())]
        {
            assert_eq!(found, json!({}));
        }
        let text = r#"{"success":[{"put":{"key":"YQ==","value":"Yg=="}}]}"#;
        let txn: kv::v1::TxnRequest = parse(text).expect("well formed");
        assert_eq!(txn.success.len(), 1);
        assert_eq!(value(&txn), serde_json::from_str::<Value>(text).expect("JSON"));
        let wrong = parse::<kv::v1::TxnRequest>(r#"{"sucess":[]}"#).expect_err("a misspelt name");
        assert!(wrong.to_string().contains("sucess"), "{wrong}");
    }
}
