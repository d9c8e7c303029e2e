//! `quorate node`: the flags of one node, as a layer of its settings.
//!
//! Which values fit is judged by `server::Config`, not here.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::{
    cli::Error,
    server::{self, Config, LogFormat, Settings, parse_bytes, parse_duration},
    services::OverloadControl,
    types::Duration,
};

/// Where the flags of certificates stand in the help.
const TLS: &str = "TLS; the files are read again when they change, and on SIGHUP";

/// Flags of `node`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Example: the first of three nodes of a new cluster\n  quorate node --id 1 --data-dir n1 --listen 127.0.0.1:7401 --peer-listen 127.0.0.1:7411 \\\n    --admin-listen 127.0.0.1:7421 --bootstrap \\\n    --initial-cluster 1=127.0.0.1:7411,2=127.0.0.1:7412,3=127.0.0.1:7413\n\nA --config file has the flags' names with underscores: data_dir = \"n1\"."
)]
pub struct NodeArgs {
    /// The node's id: 1 or more, unique in its cluster, never changed
    #[arg(long, env = "QUORATE_ID", hide_env_values = true)]
    id: Option<u64>,
    /// Where the node keeps everything
    #[arg(long, value_name = "DIR", env = "QUORATE_DATA_DIR", hide_env_values = true)]
    data_dir: Option<PathBuf>,
    /// Where clients connect [default: 127.0.0.1:7401]
    #[arg(long, value_name = "IP:PORT", env = "QUORATE_LISTEN", hide_env_values = true)]
    listen: Option<String>,
    /// Where peers connect [default: 127.0.0.1:7411]
    #[arg(long, value_name = "IP:PORT", env = "QUORATE_PEER_LISTEN", hide_env_values = true)]
    peer_listen: Option<String>,
    /// Where health and metrics are served over HTTP [default: 127.0.0.1:7421]
    #[arg(long, value_name = "IP:PORT", env = "QUORATE_ADMIN_LISTEN", hide_env_values = true)]
    admin_listen: Option<String>,
    /// The address that clients are told [default: the one listened on]
    #[arg(long, value_name = "HOST:PORT", env = "QUORATE_ADVERTISE", hide_env_values = true)]
    advertise: Option<String>,
    /// The address that peers are told [default: from --initial-cluster]
    #[arg(long, value_name = "HOST:PORT", env = "QUORATE_PEER_ADVERTISE", hide_env_values = true)]
    peer_advertise: Option<String>,
    /// The zone that clients are told it runs in
    #[arg(long, value_name = "ZONE", env = "QUORATE_ZONE", hide_env_values = true)]
    zone: Option<String>,
    /// Its share of the calls that clients balance by weight; 1 to 65535 [default: 1]
    #[arg(long, value_name = "N", env = "QUORATE_WEIGHT", hide_env_values = true)]
    weight: Option<u32>,
    /// Let an empty data directory found the cluster
    #[arg(long, env = "QUORATE_BOOTSTRAP", hide_env_values = true)]
    bootstrap: bool,
    /// The members and their peer addresses
    #[arg(long, value_name = "ID=HOST:PORT,...", env = "QUORATE_INITIAL_CLUSTER")]
    #[arg(hide_env_values = true)]
    initial_cluster: Option<String>,
    /// Found the cluster from a backup: the same file on every founding node, beside --bootstrap
    #[arg(long, value_name = "FILE", env = "QUORATE_RESTORE", hide_env_values = true)]
    restore: Option<PathBuf>,
    /// The certificate that clients are shown, in PEM with its intermediates [default: plaintext]
    #[arg(long, value_name = "FILE", env = "QUORATE_TLS_CERT", hide_env_values = true)]
    #[arg(help_heading = TLS)]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, in PEM
    #[arg(long, value_name = "FILE", env = "QUORATE_TLS_KEY", hide_env_values = true)]
    #[arg(help_heading = TLS)]
    tls_key: Option<PathBuf>,
    /// Demand of clients certificates that one of these CAs signed, in PEM [default: demand none]
    #[arg(long, value_name = "FILE", env = "QUORATE_TLS_CLIENT_CA", hide_env_values = true)]
    #[arg(help_heading = TLS)]
    tls_client_ca: Option<PathBuf>,
    /// The certificate that peers are shown, in both directions, in PEM [default: plaintext]
    #[arg(long, value_name = "FILE", env = "QUORATE_PEER_TLS_CERT", hide_env_values = true)]
    #[arg(help_heading = TLS)]
    peer_tls_cert: Option<PathBuf>,
    /// The private key of --peer-tls-cert, in PEM
    #[arg(long, value_name = "FILE", env = "QUORATE_PEER_TLS_KEY", hide_env_values = true)]
    #[arg(help_heading = TLS)]
    peer_tls_key: Option<PathBuf>,
    /// The CAs of peers' certificates, in PEM; peers always demand them of each other
    #[arg(long, value_name = "FILE", env = "QUORATE_PEER_TLS_CA", hide_env_values = true)]
    #[arg(help_heading = TLS)]
    peer_tls_ca: Option<PathBuf>,
    /// A name that every peer's certificate must be valid for [default: the host that is dialled]
    #[arg(long, value_name = "NAME", env = "QUORATE_PEER_TLS_NAME", hide_env_values = true)]
    #[arg(help_heading = TLS)]
    peer_tls_name: Option<String>,
    /// Permit to listen in plaintext beyond loopback
    #[arg(long, env = "QUORATE_INSECURE_LISTEN", hide_env_values = true)]
    insecure_listen: bool,
    /// How log lines are written: text or json [default: text]
    #[arg(long, value_name = "FORMAT", env = "QUORATE_LOG_FORMAT", hide_env_values = true)]
    #[arg(hide_possible_values = true)]
    log_format: Option<LogFormatArg>,
    /// What is logged: a level, or directives such as info,quorate::raft=debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "QUORATE_LOG_LEVEL", hide_env_values = true)]
    log_level: Option<String>,
    /// How often a leader tells its followers that it lives [default: 50ms]
    #[arg(long, value_name = "DURATION", env = "QUORATE_HEARTBEAT_INTERVAL")]
    #[arg(hide_env_values = true, value_parser = parse_duration)]
    heartbeat_interval: Option<Duration>,
    /// The shortest silence after which a follower stands for election [default: 300ms]
    #[arg(long, value_name = "DURATION", env = "QUORATE_ELECTION_TIMEOUT_MIN")]
    #[arg(hide_env_values = true, value_parser = parse_duration)]
    election_timeout_min: Option<Duration>,
    /// The longest such silence [default: 600ms]
    #[arg(long, value_name = "DURATION", env = "QUORATE_ELECTION_TIMEOUT_MAX")]
    #[arg(hide_env_values = true, value_parser = parse_duration)]
    election_timeout_max: Option<Duration>,
    /// How many bytes of applied log are kept for followers that lag [default: 25165824]
    #[arg(long, value_name = "BYTES", env = "QUORATE_RETAINED_LOG_BYTES", hide_env_values = true)]
    retained_log_bytes: Option<u64>,
    /// Log requests that take this long, and where their time went; 0 logs none [default: 500ms]
    #[arg(long, value_name = "DURATION", env = "QUORATE_SLOW_REQUEST")]
    #[arg(hide_env_values = true, value_parser = parse_duration)]
    slow_request: Option<Duration>,
    /// Export requests as OpenTelemetry spans to this collector; needs a build with `otel`
    #[arg(long, value_name = "http://HOST:PORT", env = "QUORATE_OTLP_ENDPOINT")]
    #[arg(hide_env_values = true)]
    otlp_endpoint: Option<String>,
    /// How many bytes a second go out in snapshots; 0 is without a limit [default: 67108864]
    #[arg(long, value_name = "BYTES", env = "QUORATE_SNAPSHOT_RATE", hide_env_values = true)]
    snapshot_rate: Option<u64>,
    /// How much must be free on the disk for writes to be taken; 0 watches nothing [default: 256MiB]
    #[arg(long, value_name = "BYTES", env = "QUORATE_MIN_FREE_DISK", hide_env_values = true)]
    #[arg(value_parser = parse_bytes)]
    min_free_disk: Option<u64>,
    /// How many reads and changes may be open at once; more are refused [default: 4096]
    #[arg(long, value_name = "N", env = "QUORATE_CALLS_MAX", hide_env_values = true)]
    calls_max: Option<usize>,
    /// How to do what can be done when more is asked: adaptive or fixed [default: fixed]
    #[arg(long, value_name = "HOW", env = "QUORATE_OVERLOAD_CONTROL", hide_env_values = true)]
    #[arg(hide_possible_values = true)]
    overload_control: Option<OverloadControlArg>,
    /// How many calls may wait for a lock at once [default: 16384]
    #[arg(long, value_name = "N", env = "QUORATE_WAITS_MAX", hide_env_values = true)]
    waits_max: Option<usize>,
    /// How many streams may be open at once [default: 16384]
    #[arg(long, value_name = "N", env = "QUORATE_STREAMS_MAX", hide_env_values = true)]
    streams_max: Option<usize>,
    /// How many connections clients may have open at once; more are closed [default: 4096]
    #[arg(long, value_name = "N", env = "QUORATE_CONNECTIONS_MAX", hide_env_values = true)]
    connections_max: Option<usize>,
    /// How many connections peers may have open at once; more are closed [default: 256]
    #[arg(long, value_name = "N", env = "QUORATE_PEER_CONNECTIONS_MAX", hide_env_values = true)]
    peer_connections_max: Option<usize>,
    /// How many calls and streams one connection may have open at once [default: 4096]
    #[arg(long, value_name = "N", env = "QUORATE_STREAMS_PER_CONNECTION_MAX")]
    #[arg(hide_env_values = true)]
    streams_per_connection_max: Option<u32>,
    /// How many bytes a message of a client may have [default: 8388608]
    #[arg(long, value_name = "BYTES", env = "QUORATE_MESSAGE_BYTES_MAX", hide_env_values = true)]
    message_bytes_max: Option<usize>,
    /// How many bytes the headers of one call may have [default: 16384]
    #[arg(long, value_name = "BYTES", env = "QUORATE_HEADER_BYTES_MAX", hide_env_values = true)]
    header_bytes_max: Option<u32>,
    /// How long a TLS handshake may take, and a connection's first bytes [default: 5s]
    #[arg(long, value_name = "DURATION", env = "QUORATE_HANDSHAKE_TIMEOUT")]
    #[arg(hide_env_values = true, value_parser = parse_duration)]
    handshake_timeout: Option<Duration>,
    /// How long a client's connection may be silent before it is probed [default: 20s]
    #[arg(long, value_name = "DURATION", env = "QUORATE_KEEPALIVE_INTERVAL")]
    #[arg(hide_env_values = true, value_parser = parse_duration)]
    keepalive_interval: Option<Duration>,
    /// How long it may leave the probe unanswered before it is closed [default: 10s]
    #[arg(long, value_name = "DURATION", env = "QUORATE_KEEPALIVE_TIMEOUT")]
    #[arg(hide_env_values = true, value_parser = parse_duration)]
    keepalive_timeout: Option<Duration>,
    /// Let clients break this node's links on purpose (`quorate lab`); needs loopback addresses
    #[arg(long, env = "QUORATE_LAB", hide_env_values = true)]
    lab: bool,
    /// Stop when standard input closes; `up` passes it
    #[arg(long, hide = true)]
    stop_on_stdin_close: bool,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormatArg {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// How a node protects itself.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum OverloadControlArg {
    /// By a limit that follows the latency, and shedding by class
    Adaptive,
    /// By the fixed limits alone
    Fixed,
}

impl NodeArgs {
    /// The configuration: flags and variables over the file over the defaults.
    pub(crate) fn config(self, file: Option<&Path>) -> Result<Config, Error> {
        let file = file.map(Settings::read).transpose();
        let file = file.map_err(|error| {
            let first = error.to_string().trim().replace('\n', "; ");
            Error::failed(first)
        })?;
        Ok(self.settings().over(file.unwrap_or_default()).over_defaults())
    }

    pub(crate) async fn run(self, file: Option<&Path>) -> Result<(), Error> {
        let config = self.config(file)?;
        server::run(config).await.map_err(|error| match error {
            server::Error::Config(error) => Error::Usage(error.to_string()),
            error => Error::failed(error.to_string()),
        })
    }

    fn settings(self) -> Settings {
        Settings {
            id: self.id,
            data_dir: self.data_dir,
            listen: self.listen,
            peer_listen: self.peer_listen,
            admin_listen: self.admin_listen,
            advertise: self.advertise,
            peer_advertise: self.peer_advertise,
            zone: self.zone,
            weight: self.weight,
            bootstrap: self.bootstrap.then_some(true),
            initial_cluster: self.initial_cluster,
            restore: self.restore,
            insecure_listen: self.insecure_listen.then_some(true),
            log_format: self.log_format.map(|format| match format {
                LogFormatArg::Text => LogFormat::Text,
                LogFormatArg::Json => LogFormat::Json,
            }),
            log_level: self.log_level,
            stop_on_stdin_close: self.stop_on_stdin_close.then_some(true),
            heartbeat_interval: self.heartbeat_interval,
            election_timeout_min: self.election_timeout_min,
            election_timeout_max: self.election_timeout_max,
            retained_log_bytes: self.retained_log_bytes,
            slow_request: self.slow_request,
            otlp_endpoint: self.otlp_endpoint,
            snapshot_rate: self.snapshot_rate,
            min_free_disk: self.min_free_disk,
            calls_max: self.calls_max,
            overload_control: self.overload_control.map(|control| match control {
                OverloadControlArg::Adaptive => OverloadControl::Adaptive,
                OverloadControlArg::Fixed => OverloadControl::Fixed,
            }),
            waits_max: self.waits_max,
            streams_max: self.streams_max,
            tls_cert: self.tls_cert,
            tls_key: self.tls_key,
            tls_client_ca: self.tls_client_ca,
            peer_tls_cert: self.peer_tls_cert,
            peer_tls_key: self.peer_tls_key,
            peer_tls_ca: self.peer_tls_ca,
            peer_tls_name: self.peer_tls_name,
            connections_max: self.connections_max,
            peer_connections_max: self.peer_connections_max,
            streams_per_connection_max: self.streams_per_connection_max,
            message_bytes_max: self.message_bytes_max,
            header_bytes_max: self.header_bytes_max,
            handshake_timeout: self.handshake_timeout,
            keepalive_interval: self.keepalive_interval,
            keepalive_timeout: self.keepalive_timeout,
            lab: self.lab.then_some(true),
        }
    }
}
