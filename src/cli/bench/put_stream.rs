//! Puts over streams that do not wait for each other, and the proof that what was acknowledged is
//! there.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::time::Instant;

use crate::{
    cli::{
        Error,
        bench::{
            drive::{Drive, Worker},
            kv,
            options::{PutStreamArgs, Run},
            report::Report,
        },
    },
    client::{PutAcks, PutStream},
};

/// When each put that is not acknowledged was handed over, in order.
type Times = Arc<Mutex<VecDeque<Instant>>>;

pub(super) async fn put_stream(
    run: &Run,
    drive: Drive,
    args: &PutStreamArgs,
) -> Result<Report, Error> {
    let (keys, verify, streams) = (args.keys, args.verify, args.load.clients);
    let value = kv::filled(args.value_size);
    let message_puts = usize::try_from(args.batch).expect("at most 10,000");
    let body = |number: u64, worker: Worker| {
        let puts = run.client(number).kv().put_stream_of(message_puts);
        let (prefix, value) = (kv::client_prefix(&run.name, number), value.clone());
        let shared = run.name.clone();
        async move {
            let times = Times::default();
            let drive = worker.drive.clone();
            let write = async {
                let mut sequence = 0;
                while drive.take() {
                    let key = if verify {
                        format!("{prefix}{sequence:016}")
                    } else {
                        format!("{shared}/{:08}", (sequence * streams + number) % keys)
                    };
                    lock(&times).push_back(Instant::now());
                    if puts.send(key, value.clone()).await.is_err() {
                        break; // The acknowledgements end with the same error.
                    }
                    sequence += 1;
                }
                puts.finish().await
            };
            let (worker, _) = tokio::join!(take(worker, puts.acks(), &times), write);
            (worker, (number, acknowledged(&puts)))
        }
    };
    let (measured, results) = drive.clients(streams, body).await?;
    let report = Report::new(measured).count("batch", "puts a message at most", args.batch);
    if !verify {
        return Ok(report);
    }
    kv::verified(run, report, results).await
}

/// Records each put as it is acknowledged.
async fn take(mut worker: Worker, mut acks: PutAcks, times: &Times) -> Worker {
    let mut done = 0;
    loop {
        match acks.next().await {
            Ok(Some(ack)) => {
                let now = Instant::now();
                let count = usize::try_from(ack.sequence - done).expect("what is under way");
                let sent: Vec<Instant> = lock(times).drain(..count).collect();
                for sent in sent {
                    worker.record(now - sent);
                }
                done = ack.sequence;
            }
            Ok(None) => return worker,
            Err(error) => {
                worker.failed(&error);
                return worker;
            }
        }
    }
}

/// The numbers of the acknowledged puts, as the keys have them.
fn acknowledged(puts: &PutStream) -> Vec<u64> {
    (0..puts.acknowledged().sequence).collect()
}

fn lock(times: &Times) -> std::sync::MutexGuard<'_, VecDeque<Instant>> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}
