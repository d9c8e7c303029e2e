//! Puts through one stream of Quorate's: as many under way as its flow control lets through, each
//! durable before it is acknowledged. etcd has nothing like it, so this is a figure without a
//! rival.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Error,
    connection::channel,
    load::{Times, scattered},
    options::Options,
    pb::kv::{PutStreamRequest, StreamedPut, kv_service_client::KvServiceClient},
};

/// How many puts one message holds.
const BATCH: u64 = 64;

/// How many messages may be unacknowledged.
const WINDOW: usize = 128;

/// Puts a second through one stream to a member.
pub async fn measure(
    member: std::net::SocketAddr,
    times: Times,
    options: &Options,
) -> Result<f64, Error> {
    let value = Bytes::from(vec![b'x'; options.value_size]);
    let keys = options.keys;
    let from = Instant::now() + times.warm_up;
    let until = from + times.measured;
    let (sender, receiver) = mpsc::channel(WINDOW);
    let room = Arc::new(Semaphore::new(WINDOW));
    let sent = Arc::new(AtomicU64::new(0));
    let (gate, count) = (room.clone(), sent.clone());
    tokio::spawn(async move {
        while Instant::now() < until {
            let Ok(place) = gate.acquire().await else { return };
            // The acknowledgement gives it back.
            place.forget();
            let first = count.load(Ordering::Relaxed);
            let put = |number| StreamedPut {
                key: format!("rivals/key/{:08}", scattered(0, number) % keys).into(),
                value: value.clone(),
                ..StreamedPut::default()
            };
            let puts = (first..first + BATCH).map(put).collect();
            let request = PutStreamRequest { puts, ..PutStreamRequest::default() };
            count.fetch_add(BATCH, Ordering::Relaxed);
            if sender.send(request).await.is_err() {
                return;
            }
        }
    });
    let mut client = KvServiceClient::new(channel(member).await?);
    let mut answers = client.put_stream(ReceiverStream::new(receiver)).await?.into_inner();
    let (mut acknowledged, mut counted, mut freed) = (0, 0_u64, 0);
    while let Some(answer) = answers.message().await? {
        let now = Instant::now();
        if now >= from && now < until {
            counted += answer.last_sequence - acknowledged;
        }
        acknowledged = answer.last_sequence;
        let done = usize::try_from(acknowledged / BATCH)?;
        room.add_permits(done - freed);
        freed = done;
    }
    if acknowledged != sent.load(Ordering::Relaxed) {
        return Err("the stream ended before everything was acknowledged".into());
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = counted as f64 / times.measured.as_secs_f64();
    Ok(rate)
}
