//! A worker of which any number may run, and one at a time leads: the one that holds a lock.
//!
//! Start a cluster with `cargo run --release -- up`, then two or three of these, each in a terminal
//! of its own, with `cargo run --example leader`. Stop the one that leads with Ctrl-C, or kill it
//! with `kill -9`: another takes over, at once or after the TTL. Endpoints come from the first
//! argument or `QUORATE_ENDPOINTS`, separated by commas.

use std::{env, error::Error, pin::pin, process, time::Duration};

use quorate::{
    client::{self, Client, LockGuard},
    pb::kv::v1::PutRequest,
};
use tokio::{signal, time};

/// What the workers compete for.
const LOCK: &str = "examples/leader";

/// How long a leader that died is waited for.
const TTL: Duration = Duration::from_secs(5);

/// How often the leader does what only a leader may do.
const TURN: Duration = Duration::from_secs(1);

/// Where `quorate up` listens unless told otherwise.
const ENDPOINTS: &str = "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let given = env::args().nth(1).or_else(|| env::var("QUORATE_ENDPOINTS").ok());
    let endpoints = given.unwrap_or_else(|| ENDPOINTS.to_owned());
    let client = Client::builder().endpoints(endpoints.split(',')).build()?;
    let me = format!("worker {}", process::id());
    let mut stop = pin!(signal::ctrl_c());
    let mut turns = time::interval(TURN);
    loop {
        println!("{me} stands in line");
        let guard = tokio::select! {
            guard = client.locks().lock(LOCK).ttl(TTL).owner(&me).acquire() => guard,
            // To drop the future is to leave the line.
            stop = &mut stop => return Ok(stop?),
        };
        let guard = match guard {
            Ok(guard) => guard,
            Err(error) => {
                eprintln!("{me} is not in line: {error}");
                turns.tick().await;
                continue;
            }
        };
        println!("{me} leads with token {}", guard.fencing_token());
        tokio::select! {
            led = guard.while_held(lead(&client, &guard, &me)) => match led {
                Ok(error) => eprintln!("{me} leads no more: {error}"),
                Err(loss) => eprintln!("{me} leads no more: {loss}"),
            },
            stop = &mut stop => {
                guard.release().await?;
                println!("{me} let the next one in");
                return Ok(stop?);
            }
        }
        // The guard goes here: where the cluster has the lock for this worker still, it is released.
    }
}

/// Does a leader's work for as long as that works. Returns why it does not any more.
async fn lead(client: &Client, guard: &LockGuard, me: &str) -> client::Error {
    let mut turns = time::interval(TURN);
    loop {
        turns.tick().await;
        // The cluster carries this out only while the lock is held with this guard's token. A worker
        // that stood still since it last looked is refused, whoever leads by now.
        let write = PutRequest {
            key: "examples/leader".into(),
            value: me.to_owned().into(),
            require_lock: Some(guard.proof()),
            ..Default::default()
        };
        match client.kv().put(write).await {
            Ok(answer) => println!("{me} wrote revision {}", answer.revision),
            Err(error) if error.reason() == "WRONG_FENCING_TOKEN" => return error,
            Err(error) => eprintln!("{me} could not write: {error}"),
        }
    }
}
