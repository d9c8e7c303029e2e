//! Writes and reads of keys, and the proof that what was acknowledged is there.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    cli::{
        Error,
        bench::{
            drive::{Drive, Worker},
            options::{GetArgs, PutArgs, Run},
            report::Report,
        },
        show::{is_heard, say},
    },
    client::{Client, prefix_end},
    pb::kv::v1::{PutRequest, RangeRequest},
};

/// How many keys the check reads at once.
const PAGE_KEYS: u64 = 5_000;

/// How many keys are written at once before they are read.
const PREPARE_CLIENTS: u64 = 16;

pub(super) async fn put(run: &Run, drive: Drive, args: &PutArgs) -> Result<Report, Error> {
    let (keys, verify, clients) = (args.keys, args.verify, args.load.clients);
    let value = filled(args.value_size);
    let body = |number: u64, mut worker: Worker| {
        let kv = run.client(number).kv();
        let (prefix, value) = (client_prefix(&run.name, number), value.clone());
        let shared = run.name.clone();
        async move {
            let mut acknowledged = Vec::new();
            let mut sequence = 0;
            while worker.drive.take() {
                let key = if verify {
                    format!("{prefix}{sequence:016}")
                } else {
                    format!("{shared}/{:08}", (sequence * clients + number) % keys)
                };
                let request =
                    PutRequest { key: key.into(), value: value.clone(), ..Default::default() };
                if worker.measure(kv.put(request)).await.is_some() && verify {
                    acknowledged.push(sequence);
                }
                sequence += 1;
            }
            (worker, (number, acknowledged))
        }
    };
    let (measured, results) = drive.clients(clients, body).await?;
    let report = Report::new(measured);
    if !verify {
        return Ok(report);
    }
    verified(run, report, results).await
}

/// Reads every acknowledged write back: per client the numbers of its acknowledged writes.
pub(super) async fn verified(
    run: &Run,
    report: Report,
    results: Vec<(u64, Vec<u64>)>,
) -> Result<Report, Error> {
    if is_heard() {
        say("reading every acknowledged write back");
    }
    let mut counts = Counts::default();
    for (number, acknowledged) in results {
        let prefix = client_prefix(&run.name, number);
        let found = versions(&run.client(number), &prefix).await?;
        counts.compare(&acknowledged, &found);
    }
    Ok(report
        .count("acknowledged", "acknowledged writes read back", counts.acknowledged)
        .none("missing", "acknowledged writes missing", counts.missing)
        .none("twice", "writes carried out twice", counts.twice)
        .count("unacknowledged", "unacknowledged writes found", counts.unacknowledged))
}

/// How what was acknowledged compares with what is there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    acknowledged: u64,
    missing: u64,
    twice: u64,
    unacknowledged: u64,
}

impl Counts {
    /// Each write had a key of its own: a version above 1 was written twice.
    fn compare(&mut self, acknowledged: &[u64], found: &BTreeMap<u64, u64>) {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let missing = acknowledged.iter().filter(|sequence| !found.contains_key(sequence)).count();
        let present = acknowledged.len() - missing;
        self.acknowledged += count(acknowledged.len());
        self.missing += count(missing);
        self.twice += count(found.values().filter(|version| **version != 1).count());
        self.unacknowledged += count(found.len() - present);
    }
}

/// The sequence numbers of the keys under a prefix and their versions; linearizable.
async fn versions(client: &Client, prefix: &str) -> Result<BTreeMap<u64, u64>, Error> {
    let mut request = RangeRequest {
        key: Bytes::copy_from_slice(prefix.as_bytes()),
        range_end: prefix_end(prefix.as_bytes()),
        limit: PAGE_KEYS,
        keys_only: true,
        ..Default::default()
    };
    let mut found = BTreeMap::new();
    loop {
        let page = client.kv().range(request.clone()).await?;
        for kv in &page.kvs {
            let sequence = std::str::from_utf8(&kv.key[prefix.len()..]).ok();
            let sequence = sequence.and_then(|digits| digits.parse().ok());
            let foreign = || Error::failed("somebody else wrote below the run's keys");
            found.insert(sequence.ok_or_else(foreign)?, kv.version);
        }
        let Some(last) = page.kvs.last().filter(|_| page.more) else { return Ok(found) };
        request.key = [&last.key[..], &[0]].concat().into();
    }
}

pub(super) async fn get(run: &Run, drive: Drive, args: &GetArgs) -> Result<Report, Error> {
    let (keys, stale, clients) = (args.keys, args.stale, args.load.clients);
    prepare(run, &drive, args).await?;
    let drive = drive.restarted(&args.load);
    let body = |number: u64, mut worker: Worker| {
        let kv = run.client(number).kv();
        let name = run.name.clone();
        async move {
            let (mut sequence, mut absent) = (number, 0_u64);
            while worker.drive.take() {
                let key = format!("{name}/{:08}", sequence % keys).into();
                let request = RangeRequest { key, stale, ..Default::default() };
                if let Some(answer) = worker.measure(kv.range(request)).await {
                    absent += u64::from(answer.kvs.is_empty());
                }
                sequence += clients;
            }
            (worker, absent)
        }
    };
    let (measured, absent) = drive.clients(clients, body).await?;
    let absent = absent.iter().sum();
    let report = Report::new(measured);
    // A stale read may be older than the writes.
    Ok(if stale {
        report.count("absent", "keys not there yet", absent)
    } else {
        report.none("absent", "written keys not found", absent)
    })
}

/// Writes the keys that are going to be read.
async fn prepare(run: &Run, drive: &Drive, args: &GetArgs) -> Result<(), Error> {
    let value = filled(args.value_size);
    let keys = args.keys;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..PREPARE_CLIENTS {
        let (kv, name, value) = (run.client(number).kv(), run.name.clone(), value.clone());
        let drive = drive.clone();
        tasks.spawn(async move {
            let mut key = number;
            while key < keys && !drive.is_stopped() {
                kv.set(format!("{name}/{key:08}"), value.clone()).await?;
                key += PREPARE_CLIENTS;
            }
            Ok::<_, Error>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| Error::failed(format!("a client failed: {error}")))??;
    }
    Ok(())
}

pub(super) fn client_prefix(run: &str, number: u64) -> String {
    format!("{run}/{number:05}/")
}

/// A value of this many bytes.
pub(super) fn filled(bytes: u64) -> Bytes {
    vec![b'x'; usize::try_from(bytes).expect("at most a megabyte")].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_is_compared_with_what_is_there() {
        let mut counts = Counts::default();
        let found = BTreeMap::from([(0, 1), (1, 2), (3, 1)]);
        counts.compare(&[0, 1, 2], &found);
        let expected = Counts { acknowledged: 3, missing: 1, twice: 1, unacknowledged: 1 };
        assert_eq!(counts, expected);
    }
}
