//! Sessions that are kept alive while the load runs, as a client would: each on a stream of its own,
//! opened again where it breaks.

use std::time::{Duration, Instant};

use quorate::pb::session::v1::{
    KeepAliveRequest, OpenSessionRequest, session_service_client::SessionServiceClient,
};
use tokio::{task::JoinSet, time::sleep};
use tokio_stream::{StreamExt as _, wrappers::IntervalStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

/// How long a session outlives its last renewal, and how often it is renewed.
const TTL: Duration = Duration::from_secs(2);
const RENEWAL: Duration = Duration::from_millis(600);

/// How long to wait until a stream that broke is opened again.
const PAUSE: Duration = Duration::from_millis(100);

/// What came of them.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) expired: usize,
    pub(crate) renewals: u64,
    pub(crate) refused: u64,
    /// From one renewal to the next, less the time between askings.
    pub(crate) slowest: Duration,
}

pub(crate) struct Sessions {
    stop: CancellationToken,
    tasks: JoinSet<Told>,
}

impl Sessions {
    /// Opens them at all nodes in turn, over a connection each node has for them.
    pub(crate) async fn open(endpoints: &[String], count: usize) -> Self {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let mut clients = Vec::new();
        for endpoint in endpoints {
            let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
            clients.push(SessionServiceClient::new(endpoint.connect().await.expect("it listens")));
        }
        for number in 0..count {
            let mut client = clients[number % clients.len()].clone();
            let ttl = prost_types::Duration::try_from(TTL).ok();
            let request = OpenSessionRequest { ttl, ..Default::default() };
            let session = client.open_session(request).await.expect("before the load");
            let session_id = session.into_inner().session_id;
            tasks.spawn(keep(client, session_id, stop.clone()));
        }
        Self { stop, tasks }
    }

    /// Ends the renewals and tells how they went.
    pub(crate) async fn close(self) -> Told {
        self.stop.cancel();
        let mut told = Told::default();
        for one in self.tasks.join_all().await {
            told.expired += one.expired;
            told.renewals += one.renewals;
            told.refused += one.refused;
            told.slowest = told.slowest.max(one.slowest);
        }
        told
    }
}

async fn keep(
    mut client: SessionServiceClient<Channel>,
    session_id: u64,
    stop: CancellationToken,
) -> Told {
    let (mut told, mut last) = (Told::default(), Instant::now());
    loop {
        let asking = tokio::time::interval(RENEWAL);
        let requests = IntervalStream::new(asking).map(move |_| KeepAliveRequest { session_id });
        let renewing = async {
            let mut answers = client.keep_alive(requests).await?.into_inner();
            while answers.message().await?.is_some() {
                told.renewals += 1;
                told.slowest = told.slowest.max(last.elapsed().saturating_sub(RENEWAL));
                last = Instant::now();
            }
            Ok::<_, tonic::Status>(())
        };
        let ended = tokio::select! {
            ended = renewing => ended,
            () = stop.cancelled() => return told,
        };
        match ended.map_err(|status| status.code()) {
            Err(Code::NotFound) => {
                told.expired = 1;
                return told;
            }
            Err(Code::ResourceExhausted) => told.refused += 1,
            _ => {}
        }
        sleep(PAUSE).await;
    }
}
