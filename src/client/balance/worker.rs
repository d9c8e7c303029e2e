//! The balancer's task: it learns of endpoints, keeps their connections, takes out what fails, and
//! publishes what callers see. It is the only one that changes anything but counters.

use std::{fmt, sync::Arc};

use tokio::{
    sync::{Notify, mpsc},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tower::discover::{Change, Discover};

use crate::{
    client::balance::{
        BoxError, Connection, Connectivity, Endpoint, Load, health,
        member::{Health, Member},
        policy::{Backend, Candidates, Connects, Picker},
        service::Shared,
        snapshot::Snapshot,
        subchannel::Subchannel,
    },
    net::Fault,
    resilience::outlier::{self, Detector},
    types::{Instant, Rng},
};

/// How many events wait for the task to take them.
const EVENTS_WAITING_MAX: usize = 256;

/// How many changes are taken in before callers are shown the outcome.
const CHANGES_TAKEN_MAX: usize = 1_024;

/// What happened to a member.
enum Event {
    Connected(Arc<dyn Connection>),
    Failed(BoxError),
    Closed(Option<BoxError>),
    Health(Health),
}

/// An event of the attempt of a member.
struct Told {
    number: u64,
    attempt: u64,
    event: Event,
}

/// What discovery tells: a change, or why there is none.
type Heard<D> = Result<Change<<D as Discover>::Key, Endpoint>, <D as Discover>::Error>;

pub(super) struct Worker<D> {
    shared: Arc<Shared>,
    /// None once it has ended: what it told last stays.
    discover: Option<std::pin::Pin<Box<D>>>,
    resolver_error: Option<Arc<str>>,
    /// Whether anything was ever told, nothing included.
    resolved: bool,
    /// In the order in which they were told.
    members: Vec<Member>,
    numbers: u64,
    detector: Detector<u64>,
    suspicion: Arc<Notify>,
    events: mpsc::Receiver<Told>,
    teller: mpsc::Sender<Told>,
    rng: Rng,
    /// What the picker in force was made for, beside what is ready.
    all: Vec<Endpoint>,
}

impl<D> Worker<D>
where
    D: Discover<Service = Endpoint>,
    D::Key: AsRef<str>,
    D::Error: fmt::Display,
{
    pub(super) fn new(shared: Arc<Shared>, discover: D) -> Self {
        let (teller, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let now = shared.clock.now();
        Self {
            detector: Detector::new(shared.options.outlier, now),
            rng: Rng::new(shared.options.seed).stream("worker"),
            shared,
            discover: Some(Box::pin(discover)),
            resolver_error: None,
            resolved: false,
            members: Vec::new(),
            numbers: 0,
            suspicion: Arc::default(),
            events,
            teller,
            all: Vec::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let stop = self.shared.stop.clone();
        while !stop.is_cancelled() {
            let deadline = self.next_deadline();
            let timer = async {
                match deadline {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let suspicion = Arc::clone(&self.suspicion);
            tokio::select! {
                () = stop.cancelled() => break,
                change = next_change(&mut self.discover) => self.take_changes(change).await,
                Some(told) = self.events.recv() => self.take_events(told),
                () = suspicion.notified() => {}
                () = timer => {}
            }
            self.judge();
            self.connect();
            self.publish();
        }
    }

    fn now(&self) -> Instant {
        self.shared.clock.now()
    }

    fn next_deadline(&self) -> Option<tokio::time::Instant> {
        let retries = self.members.iter().filter_map(|member| member.subchannel.next_deadline());
        let sweep = self.detector.next_deadline().filter(|_| !self.members.is_empty());
        retries.chain(sweep).min().map(|at| self.shared.clock.at(at))
    }

    /// Takes in a change, and all that are there with it.
    async fn take_changes(&mut self, first: Option<Heard<D>>) {
        let mut next = first;
        for taken in 1.. {
            match next {
                None => {
                    // What it told stays in force; there is nobody to ask any more.
                    self.discover = None;
                    self.resolved = true;
                    return;
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "resolving failed");
                    self.resolver_error = Some(error.to_string().into());
                }
                Some(Ok(change)) => {
                    self.resolver_error = None;
                    self.resolved = true;
                    match change {
                        Change::Insert(key, endpoint) => self.insert(key.as_ref(), endpoint),
                        Change::Remove(key) => self.remove(key.as_ref()),
                    }
                }
            }
            // Before the next one is taken: nobody else would see it.
            if taken == CHANGES_TAKEN_MAX {
                return;
            }
            next = tokio::select! {
                biased;
                change = next_change(&mut self.discover) => change,
                () = std::future::ready(()) => return,
            };
        }
    }

    fn insert(&mut self, key: &str, endpoint: Endpoint) {
        let endpoint = if endpoint.id() == key { endpoint } else { endpoint.with_id(key) };
        let known = self.members.iter_mut().find(|member| member.endpoint.id() == key);
        if let Some(member) = known {
            if member.endpoint.address() == endpoint.address() {
                member.update(endpoint);
                return;
            }
            self.remove(key);
        }
        tracing::debug!(endpoint = endpoint.address(), "endpoint added");
        self.numbers += 1;
        let tally = self.detector.insert(self.numbers);
        let load = Arc::new(Load::new(tally, Arc::clone(&self.suspicion), self.now()));
        let subchannel = Subchannel::new(self.shared.options.backoff);
        self.members.push(Member::new(self.numbers, endpoint, load, subchannel));
    }

    /// The calls under way go on: their connection is closed when the last of them is over.
    fn remove(&mut self, key: &str) {
        let Some(at) = self.members.iter().position(|member| member.endpoint.id() == key) else {
            return;
        };
        let mut member = self.members.remove(at);
        member.subchannel.shut_down();
        self.detector.remove(&member.number);
        tracing::debug!(endpoint = member.endpoint.address(), "endpoint removed");
    }

    fn take_events(&mut self, first: Told) {
        let mut next = Some(first);
        while let Some(told) = next {
            self.take_event(told);
            next = self.events.try_recv().ok();
        }
    }

    fn take_event(&mut self, Told { number, attempt, event }: Told) {
        let now = self.now();
        let asks = self.shared.options.health.is_some();
        let Some(member) = self.members.iter_mut().find(|member| member.number == number) else {
            return;
        };
        if member.attempt != attempt {
            return;
        }
        let address = member.endpoint.address().to_owned();
        match event {
            Event::Connected(connection) => {
                tracing::debug!(endpoint = address, "connected");
                let health = if asks { Health::Unknown } else { Health::Serving };
                member.load.mended();
                member.connected(connection, health, now);
            }
            Event::Failed(error) => {
                tracing::debug!(endpoint = address, %error, "no connection");
                member.subchannel.failed(now, &mut self.rng);
                let words = last_cause(&*error).to_string();
                member.disconnected(words.into(), Some(Arc::new(error)));
            }
            Event::Closed(error) => {
                tracing::debug!(endpoint = address, "connection closed");
                let in_vain = member.load.was_asked_in_vain();
                member.subchannel.closed(in_vain, now, &mut self.rng);
                let words = match &error {
                    Some(error) => format!("the connection was closed: {}", last_cause(&**error)),
                    None => "the connection was closed".to_owned(),
                };
                member.disconnected(words.into(), error.map(Arc::new));
            }
            Event::Health(health) if member.health != health => {
                tracing::debug!(endpoint = address, ?health, "health changed");
                member.health = health;
            }
            Event::Health(_) => {}
        }
    }

    /// Takes out the endpoints that fail, and lets those back in whose time is over.
    fn judge(&mut self) {
        let now = self.now();
        let mut decided = self.detector.enforce(now, &mut self.rng);
        decided.extend(self.detector.tick(now, &mut self.rng));
        for event in decided {
            let (outlier::Event::Ejected { host, .. } | outlier::Event::Returned { host }) = &event;
            let Some(member) = self.members.iter_mut().find(|member| member.number == *host) else {
                continue;
            };
            let endpoint = member.endpoint.address();
            match event {
                outlier::Event::Ejected { why, times, .. } => {
                    member.ejections += 1;
                    tracing::info!(endpoint, ?why, times, "endpoint ejected");
                }
                outlier::Event::Returned { .. } => {
                    member.load.forget(now);
                    tracing::info!(endpoint, "endpoint returned");
                }
            }
        }
    }

    /// Begins the connections that are wanted now.
    fn connect(&mut self) {
        let now = self.now();
        let one = self.shared.options.policy.connects() == Connects::One;
        let wanted = self.wanted(one, now);
        for (member, wanted) in self.members.iter_mut().zip(wanted) {
            if !member.subchannel.want(wanted, now) {
                continue;
            }
            let (attempt, token) = member.begin();
            let work = keep(
                Arc::clone(&self.shared),
                member.endpoint.clone(),
                Reporter { number: member.number, attempt, teller: self.teller.clone() },
            );
            tokio::spawn(run_until(token, work));
        }
    }

    /// Which members are to be connected.
    fn wanted(&self, one: bool, now: Instant) -> Vec<bool> {
        let serves = |member: &Member| !member.endpoint.is_draining();
        if !one {
            return self.members.iter().map(serves).collect();
        }
        let usable = |member: &&Member| {
            serves(member)
                && member.health != Health::NotServing
                && !self.detector.is_ejected(&member.number)
        };
        let chosen =
            self.members.iter().filter(usable).find(|member| member.is_ready()).or_else(|| {
                let rests =
                    |member: &&Member| member.subchannel.next_deadline().is_none_or(|at| now >= at);
                self.members.iter().filter(usable).find(rests)
            });
        let chosen = chosen.map(|member| member.number);
        self.members.iter().map(|member| Some(member.number) == chosen).collect()
    }

    /// Shows callers how things stand.
    fn publish(&mut self) {
        let policy = Arc::clone(&self.shared.options.policy);
        let one = policy.connects() == Connects::One;
        let (chosen, panics) = self.candidates(one);
        let mut ready: Vec<Arc<Backend>> = Vec::with_capacity(chosen.len());
        let mut connections = Vec::with_capacity(chosen.len());
        for at in chosen {
            let member = &mut self.members[at];
            let Some(connection) = &member.connection else { continue };
            connections.push(Arc::clone(connection));
            ready.push(member.backend());
        }
        let all: Vec<Endpoint> = self
            .members
            .iter()
            .filter(|member| !member.endpoint.is_draining())
            .map(|member| member.endpoint.clone())
            .collect();
        let candidates = Candidates { ready: &ready, all: &all };
        let picker = (!ready.is_empty()).then(|| match self.picker_before(&candidates) {
            Some(picker) => picker,
            None => policy.picker(&candidates).into(),
        });
        let state = if ready.is_empty() { self.idle_state() } else { Connectivity::Ready };
        let failure = ready.is_empty().then(|| self.failure(&all));
        let members =
            self.members.iter().map(|m| m.known(self.detector.is_ejected(&m.number))).collect();
        self.all = all;
        self.shared.publish(Snapshot {
            ready,
            connections,
            picker,
            state,
            failure,
            resolver_error: self.resolver_error.clone(),
            panics,
            members,
        });
    }

    /// The picker in force, where nothing changed that a new one would be made for.
    fn picker_before(&self, now: &Candidates<'_>) -> Option<Arc<dyn Picker>> {
        let before = self.shared.snapshot.load();
        let same = |(one, other): (&Arc<Backend>, &Arc<Backend>)| Arc::ptr_eq(one, other);
        let unchanged = before.ready.len() == now.ready.len()
            && before.ready.iter().zip(now.ready).all(same)
            && self.all == now.all;
        before.picker.clone().filter(|_| unchanged)
    }

    /// The places of the members that may be called, and whether too many are out to heed that.
    fn candidates(&self, one: bool) -> (Vec<usize>, bool) {
        let connected =
            |member: &&(usize, &Member)| member.1.is_ready() && !member.1.endpoint.is_draining();
        let members: Vec<_> = self.members.iter().enumerate().collect();
        let connected: Vec<_> = members.iter().filter(connected).collect();
        let good = |member: &Member| {
            member.health == Health::Serving && !self.detector.is_ejected(&member.number)
        };
        let chosen: Vec<usize> =
            connected.iter().filter(|(_, member)| good(member)).map(|(at, _)| *at).collect();
        // A policy with one connection moves on instead.
        let enough = self.shared.options.panic_threshold * connected.len() as f64;
        let panics = !one && (chosen.len() as f64) < enough;
        if panics {
            return (connected.iter().map(|(at, _)| *at).collect(), true);
        }
        let few = if one { 1 } else { usize::MAX };
        (chosen.into_iter().take(few).collect(), false)
    }

    /// gRPC's state of all endpoints where none is ready: failed once each of them has.
    fn idle_state(&self) -> Connectivity {
        let hopeful = |member: &Member| {
            !member.endpoint.is_draining()
                && !member.has_failed
                && member.health != Health::NotServing
                && !self.detector.is_ejected(&member.number)
        };
        let waits = !self.resolved && self.resolver_error.is_none();
        if waits || self.members.iter().any(hopeful) {
            Connectivity::Connecting
        } else {
            Connectivity::TransientFailure
        }
    }

    /// Why nothing can be called, endpoint by endpoint.
    fn failure(&self, serving: &[Endpoint]) -> (Arc<str>, Option<Arc<BoxError>>) {
        if self.members.is_empty() {
            let why = self.resolver_error.as_deref().unwrap_or("no endpoint is known");
            return (format!("no endpoint can be called: {why}").into(), None);
        }
        if serving.is_empty() {
            return ("no endpoint can be called: all are draining".into(), None);
        }
        let mut reasons = Vec::new();
        for member in &self.members {
            let why = match (&member.error, member.health) {
                _ if member.endpoint.is_draining() => "draining",
                (Some(error), _) => error,
                (None, Health::NotServing) => "not serving",
                _ if self.detector.is_ejected(&member.number) => "ejected",
                _ => "not connected",
            };
            reasons.push(format!("{}: {why}", member.endpoint.address()));
        }
        let causes = self
            .members
            .iter()
            .rev()
            .filter_map(|member| member.cause.clone().or_else(|| member.load.why_broken()));
        // What passes tells more than what stays: it need not be the last word.
        let passes = |cause: &Arc<BoxError>| !Fault::behind(&***cause).is_some_and(Fault::stays);
        let (passing, staying): (Vec<_>, Vec<_>) = causes.partition(passes);
        let cause = passing.into_iter().chain(staying).next();
        (format!("no endpoint can be called: {}", reasons.join(", ")).into(), cause)
    }
}

/// Nobody waits for a task that has ended, however it did.
impl<D> Drop for Worker<D> {
    fn drop(&mut self) {
        self.shared.publish(Snapshot { state: Connectivity::Shutdown, ..Snapshot::empty() });
    }
}

/// Tells the task of one attempt.
#[derive(Clone)]
struct Reporter {
    number: u64,
    attempt: u64,
    teller: mpsc::Sender<Told>,
}

impl Reporter {
    async fn tell(&self, event: Event) {
        let told = Told { number: self.number, attempt: self.attempt, event };
        // Nobody listens once the balancer has ended.
        let _ = self.teller.send(told).await;
    }
}

/// Connects, and stays until the connection is closed.
async fn keep(shared: Arc<Shared>, endpoint: Endpoint, reporter: Reporter) {
    let connection = match shared.options.connect.connect(&endpoint).await {
        Ok(connection) => connection,
        Err(error) => return reporter.tell(Event::Failed(error)).await,
    };
    reporter.tell(Event::Connected(Arc::clone(&connection))).await;
    let closed = connection.closed();
    let why = match &shared.options.health {
        None => {
            // Callers hold it from here on; a connection nobody holds is to end.
            drop(connection);
            closed.await
        }
        Some(service) => {
            let teller = reporter.clone();
            let told = move |health| {
                let teller = teller.clone();
                async move { teller.tell(Event::Health(health)).await }
            };
            let watching = async {
                health::watch(connection, Arc::clone(service), told).await;
                // It has no such API.
                std::future::pending().await
            };
            tokio::select! {
                why = closed => why,
                why = watching => why,
            }
        }
    };
    reporter.tell(Event::Closed(why)).await;
}

async fn run_until(token: CancellationToken, work: impl Future<Output = ()>) {
    token.run_until_cancelled(work).await;
}

/// What failed in the end.
fn last_cause<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last
}

async fn next_change<D: Discover>(
    discover: &mut Option<std::pin::Pin<Box<D>>>,
) -> Option<Result<Change<D::Key, D::Service>, D::Error>> {
    match discover {
        Some(discover) => {
            std::future::poll_fn(|context| discover.as_mut().poll_discover(context)).await
        }
        None => std::future::pending().await,
    }
}
