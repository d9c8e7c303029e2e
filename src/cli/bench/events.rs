//! Appends, and their delivery to subscribers.

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::{
    cli::{
        Error,
        bench::{
            drive::{Drive, Worker},
            options::{AppendArgs, Run},
            report::Report,
        },
    },
    client::Events,
    pb::event::v1::{AppendRequest, Event, RecordedEvent, SubscribeRequest},
    types::Duration,
};

/// How long subscribers wait for the last events when the run is over.
const DELIVERY_LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn append(run: &Run, drive: Drive, args: &AppendArgs) -> Result<Report, Error> {
    let (batch, size) = (args.batch, args.value_size);
    let body = |number: u64, mut worker: Worker| {
        let events = run.client(number).events();
        let stream = format!("{}/{number:05}", run.name);
        async move {
            let (mut last, mut gaps) = (0, 0_u64);
            while worker.drive.take() {
                let request = request(&stream, batch, size, 0);
                if let Some(answer) = worker.measure(events.append(request)).await {
                    // An append that failed with an unknown outcome may lie in between.
                    gaps += u64::from(answer.first_version <= last);
                    last = answer.last_version;
                }
            }
            (worker, gaps)
        }
    };
    let (measured, gaps) = drive.clients(args.load.clients, body).await?;
    let gaps = gaps.iter().sum();
    Ok(Report::new(measured).count("eventsPerAppend", "events an append", batch).none(
        "notGrown",
        "versions that did not grow",
        gaps,
    ))
}

pub(super) async fn subscribe(run: &Run, drive: Drive, args: &AppendArgs) -> Result<Report, Error> {
    let stream = format!("{}/one", run.name);
    let writer = tokio::spawn(write(
        run.client(0).events(),
        stream.clone(),
        drive.clone(),
        (args.batch, args.value_size),
    ));
    let (last, written) = tokio::sync::watch::channel(None);
    tokio::spawn(async move {
        let ended = writer.await.unwrap_or_else(|error| Err(Error::failed(error.to_string())));
        last.send_replace(Some(ended.map_err(|error| error.to_string())));
        last.closed().await;
    });
    let body = |number: u64, worker: Worker| {
        let events = run.client(number).events();
        follow(events, stream.clone(), written.clone(), worker)
    };
    let (measured, results) = drive.clients(args.load.clients, body).await?;
    let written = written.borrow().clone();
    let last = match written {
        Some(Ok(last)) => last,
        Some(Err(why)) => return Err(Error::failed(why)),
        None => 0,
    };
    let missing = results.iter().map(|(seen, _)| last.saturating_sub(*seen)).sum();
    let disordered = results.iter().map(|(_, disordered)| disordered).sum();
    Ok(Report::new(measured)
        .count("appended", "events appended", last)
        .none("missing", "events not delivered", missing)
        .none("disordered", "events out of order or twice", disordered))
}

/// Appends until the run is over and returns the last version.
async fn write(
    events: Events,
    stream: String,
    drive: Drive,
    (batch, size): (u64, u64),
) -> Result<u64, Error> {
    let mut last = 0;
    while drive.take() {
        let request = request(&stream, batch, size, drive.nanos());
        last = events.append(request).await?.last_version;
    }
    Ok(last)
}

type Written = tokio::sync::watch::Receiver<Option<Result<u64, String>>>;

/// Follows the stream until everything that was appended has come. Returns the last version seen
/// and how many events came out of order.
async fn follow(
    events: Events,
    stream: String,
    mut written: Written,
    mut worker: Worker,
) -> (Worker, (u64, u64)) {
    let (mut seen, mut disordered) = (0, 0_u64);
    let request = SubscribeRequest { stream, from: 1, from_end: false };
    let mut subscription = match events.subscribe(request).await {
        Ok(subscription) => subscription,
        Err(error) => {
            worker.failed(&error);
            return (worker, (seen, disordered));
        }
    };
    let mut give_up_at = None;
    loop {
        let last = written.borrow_and_update().clone();
        match last {
            Some(Ok(last)) if seen >= last => break,
            Some(Err(_)) => break,
            Some(Ok(_)) => {
                give_up_at.get_or_insert_with(|| Instant::now() + DELIVERY_LIMIT);
            }
            None => {}
        }
        let patience = give_up_at.unwrap_or_else(|| Instant::now() + DELIVERY_LIMIT * 360);
        let delivered = tokio::select! {
            delivered = timeout_at(patience, subscription.next()) => delivered,
            _ = written.changed(), if give_up_at.is_none() => continue,
        };
        match delivered {
            Ok(Ok(Some(response))) => {
                for event in &response.events {
                    disordered += u64::from(event.version != seen + 1);
                    seen = event.version;
                    worker.record(latency(event, worker.drive.nanos()));
                }
            }
            Ok(Err(error)) => {
                worker.failed(&error);
                break;
            }
            Ok(Ok(None)) | Err(_) => break,
        }
    }
    (worker, (seen, disordered))
}

/// How long an event was under way: its data begins with the time it was sent at.
fn latency(event: &RecordedEvent, now: u64) -> Duration {
    let sent = event.data.get(..8).and_then(|bytes| bytes.try_into().ok());
    Duration::from_nanos(now.saturating_sub(sent.map_or(now, u64::from_be_bytes)))
}

fn request(stream: &str, batch: u64, size: u64, sent: u64) -> AppendRequest {
    let mut data = vec![b'x'; usize::try_from(size).expect("at most a megabyte")];
    data[..8].copy_from_slice(&sent.to_be_bytes());
    let data = Bytes::from(data);
    let event = || Event {
        id: Uuid::new_v4().to_string(),
        r#type: "Bench".to_owned(),
        data: data.clone(),
        ..Default::default()
    };
    AppendRequest {
        stream: stream.to_owned(),
        events: (0..batch).map(|_| event()).collect(),
        ..Default::default()
    }
}
