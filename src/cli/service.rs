//! `quorate service`: register instances and find them.
//!
//! With a command, the instance is renewed while the command runs, registered anew where it got
//! lost, and deregistered at the end: standard output is then the command's alone.

use std::{collections::BTreeMap, ffi::OsString};

use clap::{Args, Subcommand, ValueEnum};
use tonic::Code;

use crate::{
    cli::{
        Error,
        child::{Child, Ended, Signals},
        context::Context,
        lock::to_proto,
        show::{Markers, Shown, say},
        table::{Table, duration, optional, printable},
    },
    client::{Registration, Standing},
    pb::discovery::v1::{
        DeregisterRequest, Instance, InstanceEvent, InstanceState, ListServicesRequest,
        RegisterRequest, ResolveRequest, SetInstanceStateRequest, WatchRequest,
        instance_event::Kind,
    },
    server::parse_duration,
    types::Duration,
};

/// The TTL of an instance that lives with a command, unless told otherwise.
const TTL_WITH_COMMAND: Duration = Duration::from_secs(10);

/// `quorate service`.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Register an instance, and run a command while it is registered
    #[command(
        after_help = "Examples:\n  quorate service register web --address 127.0.0.1:9000 --ttl 30s\n  quorate service register web --address 127.0.0.1:9000 --meta version=7 -- ./web-server\n\nWith CMD the instance stays for as long as CMD runs, and CMD's exit code is passed on.\nWithout, it stays for the TTL, or until `deregister` where none is given."
    )]
    Register(RegisterArgs),
    /// Remove an instance
    #[command(after_help = "Example:\n  quorate service deregister web web-1")]
    Deregister(DeregisterArgs),
    /// Let an instance finish what it has, and send it no new calls
    #[command(after_help = "Example:\n  quorate service drain web web-1")]
    Drain(StateArgs),
    /// Send an instance calls again
    #[command(after_help = "Example:\n  quorate service resume web web-1")]
    Resume(StateArgs),
    /// Show the instances of a service
    #[command(after_help = "Example:\n  quorate service resolve web")]
    Resolve(ResolveArgs),
    /// List the services that have instances
    #[command(after_help = "Example:\n  quorate service list")]
    List(ListArgs),
    /// Stream the instances of a service, or of all
    #[command(after_help = "Example:\n  quorate service watch web")]
    Watch(WatchArgs),
}

/// Flags of `service register`.
#[derive(Debug, Args)]
pub struct RegisterArgs {
    /// The service's name
    name: String,
    /// Where the instance listens
    #[arg(long, value_name = "HOST:PORT")]
    address: String,
    /// The instance's id [default: the cluster chooses one]
    #[arg(long, default_value = "", hide_default_value = true)]
    instance_id: String,
    /// How long it outlives its last renewal; 1s to 24h [default with CMD: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// The zone it runs in
    #[arg(long, default_value = "", hide_default_value = true)]
    zone: String,
    /// Its share of the load; 1 to 65535
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    weight: u32,
    /// Whether it takes calls from the start
    #[arg(long, value_enum, default_value_t = State::Serving)]
    state: State,
    /// What else it tells of itself; may be repeated
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,
    /// The command to run while it is registered
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Whether an instance takes new calls.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    /// It takes calls
    Serving,
    /// It finishes what it has
    Draining,
}

impl From<State> for InstanceState {
    fn from(state: State) -> Self {
        match state {
            State::Serving => Self::Serving,
            State::Draining => Self::Draining,
        }
    }
}

/// Flags of `service drain` and `service resume`.
#[derive(Debug, Args)]
pub struct StateArgs {
    /// The service's name
    name: String,
    /// The instance's id
    instance_id: String,
}

/// Flags of `service deregister`.
#[derive(Debug, Args)]
pub struct DeregisterArgs {
    /// The service's name
    name: String,
    /// The instance's id
    instance_id: String,
}

/// Flags of `service resolve`.
#[derive(Debug, Args)]
pub struct ResolveArgs {
    /// The service's name
    name: String,
    /// Show only the instances of this zone
    #[arg(long, default_value = "", hide_default_value = true)]
    zone: String,
    /// Read the answering node's own state, which may be old
    #[arg(long)]
    stale: bool,
}

/// Flags of `service list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Read the answering node's own state, which may be old
    #[arg(long)]
    stale: bool,
}

/// Flags of `service watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The service's name; none watches all
    #[arg(default_value = "", hide_default_value = true)]
    name: String,
}

impl ServiceCommand {
    /// Returns the exit code, which may be that of a command.
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Error> {
        match self {
            Self::Register(args) => return register(context, args).await,
            Self::Deregister(args) => deregister(context, args).await?,
            Self::Drain(args) => set_state(context, args, State::Draining).await?,
            Self::Resume(args) => set_state(context, args, State::Serving).await?,
            Self::Resolve(args) => resolve(context, args).await?,
            Self::List(args) => list(context, args).await?,
            Self::Watch(args) => watch(context, args).await?,
        }
        Ok(0)
    }
}

async fn register(context: &Context, args: RegisterArgs) -> Result<u8, Error> {
    let lasting = (!args.command.is_empty()).then_some(TTL_WITH_COMMAND);
    let ttl = args.ttl.or(lasting);
    let request = RegisterRequest {
        service: args.name,
        instance_id: args.instance_id,
        address: args.address,
        zone: args.zone,
        weight: args.weight,
        metadata: args.metadata.into_iter().collect::<BTreeMap<_, _>>(),
        ttl: ttl.map(|ttl| to_proto(ttl, "--ttl")).transpose()?,
        state: InstanceState::from(args.state).into(),
        ..Default::default()
    };
    let discovery = context.client.discovery();
    if args.command.is_empty() {
        let answer = discovery.register(request).await?;
        context.show.answer(&answer, |answer| printable(&answer.instance_id).into())?;
        return Ok(0);
    }
    let registration = discovery.hold(request).await?;
    run_while_registered(registration, &args.command).await
}

/// Runs a command and returns its exit code.
async fn run_while_registered(
    mut registration: Registration,
    command: &[OsString],
) -> Result<u8, Error> {
    let environment = [
        ("QUORATE_SERVICE_NAME", registration.service().to_owned()),
        ("QUORATE_INSTANCE_ID", registration.instance_id().to_owned()),
    ];
    let mut signals = Signals::listen()?;
    let mut child = match Child::spawn(command, &environment) {
        Ok(child) => child,
        Err(code) => {
            let_go(registration).await;
            return Ok(code);
        }
    };
    let mut known = 0;
    loop {
        tokio::select! {
            ended = child.wait() => {
                let Ended(code) = ended?;
                let_go(registration).await;
                return Ok(code);
            }
            signal = signals.next() => child.forward(signal),
            standing = registration.changed() => match standing {
                Standing::Registered { again } if again == known => {}
                Standing::Registered { again } => {
                    known = again;
                    say("the registration had expired; registered anew");
                }
                Standing::Missing(error) => say(&format!("the registration was lost: {error}")),
                Standing::Unconfirmed(error) => {
                    say(&format!("the registration could not be renewed: {error}"));
                }
            },
        }
    }
}

async fn let_go(registration: Registration) {
    if let Err(error) = registration.deregister().await
        && error.code() != Code::NotFound
    {
        say(&format!("the instance is left to its TTL: {error}"));
    }
}

async fn deregister(context: &Context, args: DeregisterArgs) -> Result<(), Error> {
    let DeregisterArgs { name, instance_id } = args;
    let request =
        DeregisterRequest { service: name, instance_id: instance_id.clone(), ..Default::default() };
    let answer = context.client.discovery().deregister(request).await?;
    context.show.answer(&answer, |answer| {
        format!("deregistered {}, revision {}", printable(&instance_id), answer.revision).into()
    })
}

async fn set_state(context: &Context, args: StateArgs, state: State) -> Result<(), Error> {
    let StateArgs { name, instance_id } = args;
    let request = SetInstanceStateRequest {
        service: name,
        instance_id: instance_id.clone(),
        state: InstanceState::from(state).into(),
        ..Default::default()
    };
    let answer = context.client.discovery().set_instance_state(request).await?;
    context.show.answer(&answer, |answer| {
        let (id, state) = (printable(&instance_id), word(state.into()));
        format!("{id} is {state}, revision {}", answer.revision).into()
    })
}

const fn word(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Unspecified => "-",
        InstanceState::Serving => "serving",
        InstanceState::Draining => "draining",
    }
}

async fn resolve(context: &Context, args: ResolveArgs) -> Result<(), Error> {
    let request = ResolveRequest { service: args.name, zone: args.zone, stale: args.stale };
    let answer = context.client.discovery().resolve(request).await?;
    context.show.answer(&answer, |answer| instances_table(&answer.instances).into())
}

fn instances_table(instances: &[Instance]) -> Table {
    let columns = ["INSTANCE", "ADDRESS", "STATE", "ZONE", "WEIGHT", "TTL", "METADATA"];
    let mut table = Table::new(&columns);
    for instance in instances {
        table.row([
            printable(&instance.instance_id).into(),
            printable(&instance.address).into(),
            word(instance.state()).into(),
            optional(&instance.zone).into(),
            instance.weight.into(),
            duration(instance.ttl.as_ref()).into(),
            optional(&metadata(instance)).into(),
        ]);
    }
    table
}

fn metadata(instance: &Instance) -> String {
    let pairs = instance.metadata.iter().map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

async fn list(context: &Context, args: ListArgs) -> Result<(), Error> {
    let request = ListServicesRequest { stale: args.stale };
    let answer = context.client.discovery().list_services(request).await?;
    context.show.answer(&answer, |answer| {
        let mut table = Table::new(&["SERVICE", "INSTANCES"]);
        for service in &answer.services {
            table.row([printable(&service.name).into(), service.instance_count.into()]);
        }
        table.into()
    })
}

async fn watch(context: &Context, args: WatchArgs) -> Result<(), Error> {
    let mut watch = context.client.discovery().watch(WatchRequest { service: args.name });
    let mut markers = Markers::default();
    while let Some(response) = watch.next().await? {
        let place = format!("revision {}", response.revision);
        context.show.message(&response, |response| {
            Shown::Lines(response.events.iter().map(change).collect())
        })?;
        markers.tell(watch.breaks(), response.caught_up, response.fell_behind, &place);
    }
    Ok(())
}

fn change(event: &InstanceEvent) -> String {
    let instance = event.instance.clone().unwrap_or_default();
    let (service, id) = (printable(&instance.service), printable(&instance.instance_id));
    match event.kind() {
        Kind::Removed => format!("{}  REMOVED     {service}  {id}", event.revision),
        _ => {
            let address = printable(&instance.address);
            let draining = instance.state() == InstanceState::Draining;
            let state = if draining { "  draining" } else { "" };
            format!("{}  REGISTERED  {service}  {id}  {address}{state}", event.revision)
        }
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = pair.ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_a_key_and_a_value() {
        assert_eq!(key_value("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(key_value("a="), Ok(("a".to_owned(), String::new())));
        assert!(key_value("a").is_err() && key_value("=b").is_err());
    }
}
