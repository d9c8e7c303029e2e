//! Watches of keys while nodes die: each change once and in order.

use quorate::{
    client::{Client, prefix_end},
    pb::kv::v1::{KeyValue, WatchRequest, kv_event::Kind},
    testing::Cluster,
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::{
    LIMIT, PROGRAM,
    load::{Load, range},
};

#[tokio::test]
async fn a_watcher_sees_every_change_once_and_in_order_across_two_failovers() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let watchers =
        cluster.ids().into_iter().map(|id| Watcher::start(cluster.client_at(id), b"load/"));
    let watchers: Vec<_> = watchers.chain([Watcher::start(cluster.client(), b"load/")]).collect();
    let mut load = Load::start(&cluster, 4);
    for _ in 0..2 {
        load.progress(60).await;
        let leader = cluster.wait_for_leader().await;
        cluster.kill(leader).await;
        cluster.wait_for_leader().await;
        load.progress(60).await;
        cluster.restart(leader).await;
        cluster.wait_until_ready().await;
    }
    load.stop().await.check(&cluster.client()).await;
    let expected: Vec<_> = range(&cluster.client(), b"load/").await.into_values().collect();
    for watcher in watchers {
        watcher.check(expected.clone()).await;
    }
}

/// Takes in the changes under a prefix until it is asked what it saw.
pub(crate) struct Watcher {
    seen: watch::Receiver<Vec<KeyValue>>,
    task: JoinHandle<()>,
}

impl Watcher {
    /// With the client's own watch, which goes on by itself.
    pub(crate) fn start(client: Client, prefix: &'static [u8]) -> Self {
        let request = WatchRequest {
            key: prefix.into(),
            range_end: prefix_end(prefix),
            start_revision: 1,
            ..Default::default()
        };
        let (sender, seen) = watch::channel(Vec::new());
        let task = tokio::spawn(async move {
            let mut changes = client.kv().watch(request);
            loop {
                let batch = changes.next().await.expect("it resumes").expect("it has no end");
                assert!(batch.events.iter().all(|event| event.kind() == Kind::Put));
                let kvs = batch.events.into_iter().filter_map(|event| event.kv);
                sender.send_modify(|seen| seen.extend(kvs));
            }
        });
        Self { seen, task }
    }

    /// Compares what it saw with the keys that are there, each of which was written once.
    pub(crate) async fn check(mut self, mut expected: Vec<KeyValue>) {
        expected.sort_by_key(|kv| kv.mod_revision);
        let enough = self.seen.wait_for(|seen| seen.len() >= expected.len());
        let seen = timeout(LIMIT, enough).await.map(|seen| seen.expect("it runs").clone());
        self.task.abort();
        let seen = seen.unwrap_or_else(|_| {
            let seen = self.seen.borrow().len();
            panic!("waited {LIMIT:?} for {} changes, saw {seen}", expected.len())
        });
        assert_eq!(seen, expected);
    }
}
