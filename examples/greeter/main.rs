//! A service with three instances that register themselves, and a client that balances over them
//! while one becomes slow, another is killed and comes back at another port, and a third drains.
//!
//! `cargo run --example greeter` starts a cluster of its own; with endpoints, separated by commas,
//! it uses a running one: `cargo run --example greeter -- 127.0.0.1:7401`. It ends after 16 s.

mod instance;

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use quorate::{
    client::{
        Client,
        balance::{Balance, EndpointView, PeakEwma, Registry},
    },
    testing::Cluster,
};
use tokio::{
    task::JoinSet,
    time::{Instant, interval, sleep_until},
};

use crate::instance::{
    Instance,
    pb::{GreetRequest, greeter_service_client::GreeterServiceClient},
};

/// What the instances register as.
const SERVICE: &str = "greeter";

/// Calls under way at once.
const CALLERS: usize = 24;

/// How long an instance takes to greet, and how long when it is slow.
const FAST: Duration = Duration::from_millis(20);
const SLOW: Duration = Duration::from_millis(200);

const SECONDS: u32 = 16;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The cluster ends when this does.
    let (_cluster, client) = match env::args().nth(1) {
        Some(endpoints) => (None, Client::builder().endpoints(endpoints.split(',')).build()?),
        None => {
            println!("starting a cluster of one node");
            let cluster = Cluster::start(1).await;
            let client = cluster.client();
            (Some(cluster), client)
        }
    };
    let mut instances = BTreeMap::new();
    for name in ["anna", "bert", "cleo"] {
        instances.insert(name, Instance::start(client.clone(), name, FAST).await?);
    }

    // A tower balancer over what discovery tells, for the client that tonic generated.
    let balance =
        Balance::builder().policy(PeakEwma).resolve(Registry::new(client.clone(), SERVICE));
    let greeter = GreeterServiceClient::new(balance.clone());
    let counts = Arc::new(Counts::default());
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        callers.spawn(greet(greeter.clone(), caller, Arc::clone(&counts)));
    }

    let mut table = Table::default();
    let mut seconds = interval(Duration::from_secs(1));
    seconds.tick().await;
    for second in 1..=SECONDS {
        seconds.tick().await;
        table.row(second, &balance, &counts);
        let what = match second {
            3 => {
                instances["bert"].answers_in(SLOW);
                "bert takes ten times as long from now on"
            }
            6 => {
                drop(instances.remove("cleo"));
                "cleo is killed: what it had in flight fails, and its registration runs out"
            }
            10 => {
                instances.insert("cleo", Instance::start(client.clone(), "cleo", FAST).await?);
                "cleo is back, at another port"
            }
            13 => {
                instances["anna"].drain().await?;
                "anna drains: it finishes what it has and gets nothing new"
            }
            _ => continue,
        };
        println!("    -- {what}");
    }
    callers.shutdown().await;
    println!("{} greetings, {} failed", counts.greeted.load(Relaxed), counts.failed.load(Relaxed));
    Ok(())
}

#[derive(Default)]
struct Counts {
    greeted: AtomicU64,
    failed: AtomicU64,
}

/// Asks for one greeting after the other.
async fn greet(mut greeter: GreeterServiceClient<Balance>, caller: usize, counts: Arc<Counts>) {
    loop {
        match greeter.greet(GreetRequest { name: format!("caller {caller}") }).await {
            Ok(_) => _ = counts.greeted.fetch_add(1, Relaxed),
            Err(_) => {
                counts.failed.fetch_add(1, Relaxed);
                // Where nothing can be called, calls fail at once.
                sleep_until(Instant::now() + FAST).await;
            }
        }
    }
}

/// What was printed before.
#[derive(Default)]
struct Table {
    /// Calls that each instance was given, and those that failed.
    picks: BTreeMap<String, u64>,
    failed: u64,
}

impl Table {
    fn row(&mut self, second: u32, balance: &Balance, counts: &Counts) {
        if second == 1 {
            println!("{:>4}  {:<38}{:<38}{:<38}failed", "s", "anna", "bert", "cleo");
        }
        let view = balance.view();
        let mut line = format!("{second:>4}  ");
        for name in ["anna", "bert", "cleo"] {
            let cell = match view.endpoints.iter().find(|endpoint| endpoint.id == name) {
                Some(endpoint) => self.cell(endpoint),
                None => "not registered".to_owned(),
            };
            line.push_str(&format!("{cell:<38}"));
        }
        let failed = counts.failed.load(Relaxed);
        println!("{line}{}", failed - self.failed);
        self.failed = failed;
    }

    fn cell(&mut self, endpoint: &EndpointView) -> String {
        let before = self.picks.insert(endpoint.id.clone(), endpoint.picks).unwrap_or(0);
        // Another address is another instance, counted from zero.
        let calls = endpoint.picks.checked_sub(before).unwrap_or(endpoint.picks);
        let state = if endpoint.draining { "draining" } else { &endpoint.state };
        format!("{calls:>5}/s {:>6.1} ms  {state}", endpoint.latency_ms)
    }
}
