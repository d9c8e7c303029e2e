//! From SIGKILL of the leader to the next accepted write.
//!
//! A fresh put starts every few milliseconds, through each survivor in turn, and the first that is
//! acknowledged ends the measurement: so no client's retry policy is measured along with it.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use crate::{
    Error,
    cluster::{Cluster, MEMBERS},
    connection::Connection,
};

/// How often a put starts.
const PROBE_INTERVAL: Duration = Duration::from_millis(5);

/// How long one of them may take.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// How long the survivors may take in all.
const GIVE_UP: Duration = Duration::from_secs(60);

/// How long a whole cluster is left alone before its leader is killed.
const REST: Duration = Duration::from_secs(1);

/// Kills the leader, measures, starts it again. Returns the time without a leader.
pub async fn measure(cluster: &mut Cluster) -> Result<Duration, Error> {
    sleep_until(Instant::now() + REST).await;
    let leader = cluster.wait_until_ready().await?;
    let mut survivors = Vec::new();
    for member in (0..MEMBERS).filter(|member| *member != leader) {
        let connection = Connection::open(cluster.system(), cluster.endpoint(member)).await?;
        connection.put("rivals/failover".into(), "before".into()).await?;
        survivors.push(connection);
    }
    let killed = Instant::now();
    cluster.kill(leader);
    let took = first_accepted(&survivors, killed).await?;
    cluster.start_member(leader)?;
    cluster.wait_until_ready().await?;
    Ok(took)
}

async fn first_accepted(survivors: &[Connection], killed: Instant) -> Result<Duration, Error> {
    let (accepted, mut first) = mpsc::unbounded_channel();
    let mut ticks = interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut probes = JoinSet::new();
    let mut turn = 0;
    loop {
        tokio::select! {
            biased;
            at = first.recv() => {
                let at: Instant = at.ok_or("no probe is left")?;
                return Ok(at - killed);
            }
            _ = ticks.tick() => {}
        }
        if killed.elapsed() > GIVE_UP {
            return Err(format!("no write was accepted within {GIVE_UP:?}").into());
        }
        let connection = survivors[turn % survivors.len()].clone();
        turn += 1;
        let accepted = accepted.clone();
        probes.spawn(async move {
            let put = connection.put("rivals/failover".into(), "after".into());
            if let Ok(Ok(())) = timeout(PROBE_LIMIT, put).await {
                let _first = accepted.send(Instant::now());
            }
        });
        while probes.try_join_next().is_some() {}
    }
}
