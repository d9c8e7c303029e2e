//! Reads that other nodes pass on to this one: run through what its own clients reach, gate and
//! all, and answered as those would be. Never passes one on again.

use std::sync::Weak;

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    service::Routes,
};

use crate::{
    pb::raft::v1::{
        ServeReadRequest,
        serve_read_response::{Answer, Refused},
    },
    services::{elsewhere, gate::PassedOn},
    types::Duration,
};

use super::{channel::MESSAGE_BYTES_MAX, transport::Shared};

/// What the client is to be told.
pub(super) async fn answer(shared: &Shared, request: ServeReadRequest) -> Result<Answer, Status> {
    let Some(routes) = shared.reads.get().and_then(Weak::upgrade) else {
        return Err(Status::unavailable("the node does not serve clients"));
    };
    let Some(method) = elsewhere::method(&request.method) else {
        let message = format!("{:?} is not a read that may be passed on", request.method);
        return Err(Status::invalid_argument(message));
    };
    let limit = Duration::from_millis(request.timeout_ms.max(1).into());
    Ok(match run(Routes::clone(&routes), method, request.message, limit).await {
        Ok(message) if message.len() > MESSAGE_BYTES_MAX / 2 => {
            let bytes = message.len();
            let message = format!("an answer of {bytes} bytes is too large to be passed back");
            return Err(Status::resource_exhausted(message));
        }
        Ok(message) => {
            shared.options.metrics.record_read_for_another();
            Answer::Message(message)
        }
        Err(status) => Answer::Refused(Refused {
            code: status.code().into(),
            message: status.message().to_owned(),
            details: Bytes::copy_from_slice(status.details()),
        }),
    })
}

async fn run(
    routes: Routes,
    method: &'static str,
    message: Bytes,
    limit: Duration,
) -> Result<Bytes, Status> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request.extensions_mut().insert(PassedOn);
    let mut client = Grpc::new(routes).max_decoding_message_size(usize::MAX);
    let Ok(()) = client.ready().await;
    let answer = client.unary(request, PathAndQuery::from_static(method), Encoded).await?;
    Ok(answer.into_inner())
}

/// Messages that stay encoded.
#[derive(Clone, Copy, Debug, Default)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
