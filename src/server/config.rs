//! A node's configuration and the checks that it must pass before anything is opened.
//!
//! [`Config`] is what was said, [`ValidConfig`] what a server can be started from. Nothing here
//! touches the disk or the network.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use serde::Deserialize;

use crate::{
    net::TlsFiles,
    server::secure::{ConnectionLimits, PeerTls},
    services::{Limits, OverloadControl},
    types::{Duration, NodeId},
};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything that can be set about a node. See [`Config::validate`] for the bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node's id, at least 1, unique in its cluster, never changed. There is no default.
    pub id: u64,
    /// Where the node keeps everything. There is no default.
    pub data_dir: PathBuf,
    /// Where clients connect: `IP:PORT`; port 0 takes any free one.
    pub listen: String,
    /// Where peers connect: `IP:PORT`; port 0 takes any free one.
    pub peer_listen: String,
    /// Where health and metrics are served over HTTP: `IP:PORT`; port 0 takes any free one.
    pub admin_listen: String,
    /// The address that clients are told: `HOST:PORT`; empty is the one listened on.
    pub advertise: String,
    /// The address that peers are told: `HOST:PORT`; empty is this node's entry in
    /// `initial_cluster`, else the one listened on.
    pub peer_advertise: String,
    /// The zone that clients are told it runs in; empty is none.
    pub zone: String,
    /// Its share of the calls that clients balance by weight: 1 to 65,535.
    pub weight: u32,
    /// Lets an empty data directory found a cluster.
    pub bootstrap: bool,
    /// The members and their peer addresses: `1=HOST:PORT,2=HOST:PORT`.
    pub initial_cluster: String,
    /// A backup that the cluster is founded from, beside `bootstrap`; empty is none.
    pub restore: PathBuf,
    /// Permits to listen in plaintext on an address that is not loopback.
    pub insecure_listen: bool,
    /// The certificate that clients are shown, in PEM with its intermediates; empty is plaintext.
    pub tls_cert: PathBuf,
    /// The private key of `tls_cert`, in PEM.
    pub tls_key: PathBuf,
    /// The CAs of clients' certificates, in PEM; empty demands none of clients.
    pub tls_client_ca: PathBuf,
    /// The certificate that peers are shown, as a server and as a client, in PEM with its
    /// intermediates; empty is plaintext.
    pub peer_tls_cert: PathBuf,
    /// The private key of `peer_tls_cert`, in PEM.
    pub peer_tls_key: PathBuf,
    /// The CAs of peers' certificates, in PEM. Peers always demand certificates of each other.
    pub peer_tls_ca: PathBuf,
    /// A name that every peer's certificate must be valid for, on both sides; empty checks the host
    /// that is dialled.
    pub peer_tls_name: String,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// What is logged: a level, or directives such as `info,quorate::raft=debug`.
    pub log_level: String,
    /// Stops the node when its standard input closes; `up` sets it for its children.
    pub stop_on_stdin_close: bool,
    /// How often a leader tells its followers that it lives; 5 ms to 10 s.
    pub heartbeat_interval: Duration,
    /// The shortest silence after which a follower stands for election; at least 3 heartbeats.
    pub election_timeout_min: Duration,
    /// The longest such silence; more than the shortest.
    pub election_timeout_max: Duration,
    /// How many bytes of applied log are kept for followers that lag; at least 1 MiB.
    pub retained_log_bytes: u64,
    /// A request that takes at least this long is logged with where its time went; zero logs none.
    pub slow_request: Duration,
    /// The OpenTelemetry collector that requests are exported to as spans, by OTLP over gRPC:
    /// `http://HOST:PORT`; empty exports none. Only in a build with the feature `otel`.
    pub otlp_endpoint: String,
    /// How many bytes a second this node sends in snapshots, to all peers together; at least 1 MiB,
    /// or 0 for no limit.
    pub snapshot_rate: u64,
    /// How many bytes must be free in the file system of the data directory for the cluster to take
    /// in what grows; 0 watches nothing.
    pub min_free_disk: u64,
    /// How many reads and changes may be open at this node at once; further ones are refused as
    /// overload. At least 1; so are the next two.
    pub calls_max: usize,
    /// How the node protects itself from more than it can do: by a limit that follows the latency
    /// and shedding by class, or by the fixed limits alone.
    pub overload_control: OverloadControl,
    /// How many calls may wait for a lock at this node at once.
    pub waits_max: usize,
    /// How many streams may be open at this node at once.
    pub streams_max: usize,
    /// How many connections clients may have open at this node at once; further ones are closed.
    /// At least 1; so is the next one.
    pub connections_max: usize,
    /// How many connections peers may have open at this node at once.
    pub peer_connections_max: usize,
    /// How many calls and streams one connection may have open at once; at least 1.
    pub streams_per_connection_max: u32,
    /// How many bytes a message of a client may have; 64 KiB to 64 MiB.
    pub message_bytes_max: usize,
    /// How many bytes the headers of one call may have; 4 KiB to 1 MiB.
    pub header_bytes_max: u32,
    /// How long a TLS handshake may take, and how long the first bytes of a connection; 100 ms to
    /// 1 min.
    pub handshake_timeout: Duration,
    /// How long a client's connection may say nothing before it is probed; 1 s to 1 h.
    pub keepalive_interval: Duration,
    /// How long it may leave the probe unanswered; 1 s to 1 h.
    pub keepalive_timeout: Duration,
    /// Lets clients break this node's links to its peers on purpose; every address must be loopback.
    pub lab: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: 0,
            data_dir: PathBuf::new(),
            listen: "127.0.0.1:7401".to_owned(),
            peer_listen: "127.0.0.1:7411".to_owned(),
            admin_listen: "127.0.0.1:7421".to_owned(),
            advertise: String::new(),
            peer_advertise: String::new(),
            zone: String::new(),
            weight: 1,
            bootstrap: false,
            initial_cluster: String::new(),
            restore: PathBuf::new(),
            insecure_listen: false,
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            tls_client_ca: PathBuf::new(),
            peer_tls_cert: PathBuf::new(),
            peer_tls_key: PathBuf::new(),
            peer_tls_ca: PathBuf::new(),
            peer_tls_name: String::new(),
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
            stop_on_stdin_close: false,
            heartbeat_interval: Duration::from_millis(50),
            election_timeout_min: Duration::from_millis(300),
            election_timeout_max: Duration::from_millis(600),
            retained_log_bytes: 24 << 20,
            slow_request: Duration::from_millis(500),
            otlp_endpoint: String::new(),
            snapshot_rate: 64 << 20,
            min_free_disk: 256 << 20,
            calls_max: 4_096,
            overload_control: OverloadControl::Fixed,
            waits_max: 16_384,
            streams_max: 16_384,
            connections_max: 4_096,
            peer_connections_max: 256,
            streams_per_connection_max: 4_096,
            message_bytes_max: 8 << 20,
            header_bytes_max: 16 << 10,
            handshake_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            lab: false,
        }
    }
}

/// A configuration that a server can be started from.
#[derive(Clone, Debug)]
pub struct ValidConfig {
    pub(crate) id: NodeId,
    pub(crate) data_dir: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) peer_listen: SocketAddr,
    pub(crate) admin_listen: SocketAddr,
    pub(crate) advertise: Option<String>,
    pub(crate) peer_advertise: Option<String>,
    pub(crate) zone: String,
    pub(crate) weight: u32,
    pub(crate) bootstrap: bool,
    pub(crate) initial_cluster: BTreeMap<NodeId, String>,
    pub(crate) restore: Option<PathBuf>,
    pub(crate) stop_on_stdin_close: bool,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) election_timeout_min: Duration,
    pub(crate) election_timeout_max: Duration,
    pub(crate) retained_log_bytes: u64,
    pub(crate) slow_request: Duration,
    pub(crate) otlp_endpoint: String,
    pub(crate) snapshot_rate: u64,
    pub(crate) min_free_disk: u64,
    pub(crate) limits: Limits,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) peer_tls: Option<PeerTls>,
    pub(crate) connections: ConnectionLimits,
    pub(crate) lab: bool,
}

/// Why a configuration was refused. Each text names the setting and what it must be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is not what a settings file holds.
    #[error("{0}")]
    Syntax(String),
    /// A settings file could not be used.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A setting is missing or out of bounds.
    #[error("{setting}: {why}")]
    Setting {
        /// The setting's name as a flag.
        setting: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Config {
    /// Checks everything that can be checked without touching disk or network.
    ///
    /// # Errors
    /// The first setting that does not fit.
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        if self.id == 0 {
            return refuse("--id", "give this node an id of 1 or more");
        }
        if self.data_dir.as_os_str().is_empty() {
            return refuse("--data-dir", "say where this node keeps its data");
        }
        self.check_times()?;
        self.check_registration()?;
        check_collector(&self.otlp_endpoint)?;
        let limits = self.limits()?;
        let id = NodeId::new(self.id);
        let (tls, peer_tls) = (self.tls()?, self.peer_tls()?);
        let connections = self.connection_limits()?;
        let listen = self.listener("--listen", &self.listen, "--tls-cert", tls.is_some())?;
        let peer_listen = self.listener(
            "--peer-listen",
            &self.peer_listen,
            "--peer-tls-cert",
            peer_tls.is_some(),
        )?;
        let admin_listen = self.listener("--admin-listen", &self.admin_listen, "", false)?;
        let advertise = advertised("--advertise", &self.advertise)?;
        let initial_cluster = parse_cluster(&self.initial_cluster)?;
        if self.bootstrap && initial_cluster.is_empty() {
            return refuse(
                "--bootstrap",
                "name the members with --initial-cluster 1=HOST:PORT,...",
            );
        }
        let restore = (!self.restore.as_os_str().is_empty()).then_some(self.restore);
        if restore.is_some() && !self.bootstrap {
            let why = "a backup founds a new cluster: pass it beside --bootstrap and \
                       --initial-cluster";
            return refuse("--restore", why);
        }
        if !initial_cluster.is_empty() && !initial_cluster.contains_key(&id) {
            let why = format!("node {id} is not among the members");
            return refuse("--initial-cluster", why);
        }
        let peer_advertise = advertised("--peer-advertise", &self.peer_advertise)?
            .or_else(|| initial_cluster.get(&id).cloned());
        Ok(ValidConfig {
            id,
            data_dir: self.data_dir,
            listen,
            peer_listen,
            admin_listen,
            advertise,
            peer_advertise,
            zone: self.zone,
            weight: self.weight,
            bootstrap: self.bootstrap,
            initial_cluster,
            restore,
            stop_on_stdin_close: self.stop_on_stdin_close,
            heartbeat_interval: self.heartbeat_interval,
            election_timeout_min: self.election_timeout_min,
            election_timeout_max: self.election_timeout_max,
            retained_log_bytes: self.retained_log_bytes,
            slow_request: self.slow_request,
            otlp_endpoint: self.otlp_endpoint,
            snapshot_rate: self.snapshot_rate,
            min_free_disk: self.min_free_disk,
            limits,
            tls,
            peer_tls,
            connections,
            lab: self.lab,
        })
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        let (shortest, longest) = (Duration::from_millis(5), Duration::from_secs(10));
        if !(shortest..=longest).contains(&self.heartbeat_interval) {
            return refuse("--heartbeat-interval", "must lie between 5ms and 10s");
        }
        if self.election_timeout_min < self.heartbeat_interval * 3 {
            return refuse("--election-timeout-min", "must be at least 3 heartbeat intervals");
        }
        if self.election_timeout_max <= self.election_timeout_min {
            return refuse("--election-timeout-max", "must be longer than --election-timeout-min");
        }
        if self.retained_log_bytes < 1 << 20 {
            return refuse("--retained-log-bytes", "must be at least 1 MiB (1048576)");
        }
        if (1..1 << 20).contains(&self.snapshot_rate) {
            let why = "must be at least 1 MiB (1048576) a second, or 0 for no limit";
            return refuse("--snapshot-rate", why);
        }
        Ok(())
    }

    /// What the cluster would refuse later, when nobody looks.
    fn check_registration(&self) -> Result<(), ConfigError> {
        if self.zone.len() > 256 || self.zone.contains('\0') {
            return refuse("--zone", "must have at most 256 bytes, none of them 0");
        }
        if !(1..=65_535).contains(&self.weight) {
            return refuse("--weight", "must lie between 1 and 65535");
        }
        Ok(())
    }

    fn limits(&self) -> Result<Limits, ConfigError> {
        let Self { calls_max, waits_max, streams_max, message_bytes_max, overload_control, .. } =
            *self;
        let limits = [
            ("--calls-max", calls_max),
            ("--waits-max", waits_max),
            ("--streams-max", streams_max),
        ];
        if let Some((setting, _)) = limits.into_iter().find(|(_, max)| *max == 0) {
            return refuse(setting, "must be at least 1");
        }
        if !(64 << 10..=64 << 20).contains(&message_bytes_max) {
            return refuse(
                "--message-bytes-max",
                "must lie between 64 KiB (65536) and 64 MiB (67108864)",
            );
        }
        Ok(Limits { calls_max, waits_max, streams_max, message_bytes_max, overload_control })
    }

    /// Plaintext beyond loopback has to be meant. `tls_setting` is the one that would end it, empty
    /// where there is none.
    fn listener(
        &self,
        setting: &'static str,
        text: &str,
        tls_setting: &str,
        has_tls: bool,
    ) -> Result<SocketAddr, ConfigError> {
        let Ok(address) = text.parse::<SocketAddr>() else {
            return refuse(setting, format!("`{text}` is not IP:PORT, such as 127.0.0.1:7401"));
        };
        if !address.ip().is_loopback() && !has_tls && !self.insecure_listen {
            let why = if tls_setting.is_empty() {
                "plain HTTP is all that is served there".to_owned()
            } else {
                format!("there is no TLS ({tls_setting})")
            };
            let why = format!(
                "{address} is not loopback and {why}; pass --insecure-listen to accept that"
            );
            return refuse(setting, why);
        }
        if !address.ip().is_loopback() && self.lab {
            let why = format!(
                "whoever reaches a node with faults on purpose can break it, and {setting} \
                 {address} is not loopback"
            );
            return refuse("--lab", why);
        }
        Ok(address)
    }
}

/// Whether spans can be sent there.
fn check_collector(endpoint: &str) -> Result<(), ConfigError> {
    let setting = "--otlp-endpoint";
    if endpoint.is_empty() {
        return Ok(());
    }
    if !cfg!(feature = "otel") {
        let why = "this program was built without OpenTelemetry: build it with \
                   `cargo build --release --features otel`";
        return refuse(setting, why);
    }
    let uri = endpoint.parse::<http::Uri>().ok();
    if uri.is_none_or(|uri| uri.scheme_str() != Some("http") || uri.host().is_none()) {
        return refuse(setting, format!("`{endpoint}` is not http://HOST:PORT"));
    }
    Ok(())
}

pub(super) fn refuse<T>(setting: &'static str, why: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Setting { setting, why: why.into() })
}

/// An address to be told to others; one that nobody can connect to is refused.
fn advertised(setting: &'static str, text: &str) -> Result<Option<String>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let Some(port) = parts.and_then(|(_, port)| port.parse::<u16>().ok()) else {
        return refuse(setting, format!("`{text}` is not HOST:PORT"));
    };
    if port == 0 {
        return refuse(setting, format!("`{text}` has no port that others could connect to"));
    }
    if text.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified()) {
        return refuse(setting, format!("`{text}` is no address that others could connect to"));
    }
    Ok(Some(text.to_owned()))
}

/// Reads `1=HOST:PORT,2=HOST:PORT`.
fn parse_cluster(text: &str) -> Result<BTreeMap<NodeId, String>, ConfigError> {
    let setting = "--initial-cluster";
    let mut members = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let parsed = part.split_once('=').and_then(|(id, address)| {
            let id = id.trim().parse::<u64>().ok().filter(|id| *id > 0)?;
            Some((NodeId::new(id), address.trim()))
        });
        let Some((id, address)) = parsed else {
            return refuse(setting, format!("`{part}` is not ID=HOST:PORT"));
        };
        let Some(address) = advertised(setting, address)? else {
            return refuse(setting, format!("`{part}` names no address"));
        };
        if members.values().any(|other| *other == address) {
            return refuse(setting, format!("{address} is there twice"));
        }
        if members.insert(id, address).is_some() {
            return refuse(setting, format!("node {id} is there twice"));
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Config {
        Config {
            id: 2,
            data_dir: "data".into(),
            bootstrap: true,
            initial_cluster: "1=127.0.0.1:7411, 2=127.0.0.1:7412,3=127.0.0.1:7413".to_owned(),
            ..Config::default()
        }
    }

    /// The refusal of a good configuration after `change`.
    fn refusal(change: impl FnOnce(&mut Config)) -> String {
        let mut config = good();
        change(&mut config);
        config.validate().expect_err("must be refused").to_string()
    }

    #[test]
    fn a_good_configuration_passes() {
        let valid = good().validate().expect("valid");
        assert_eq!(valid.initial_cluster.len(), 3);
        assert_eq!(valid.peer_advertise.as_deref(), Some("127.0.0.1:7412"));
        assert_eq!(valid.advertise, None);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(refusal(|c| c.id = 0).starts_with("--id"));
        assert!(refusal(|c| c.data_dir = PathBuf::new()).starts_with("--data-dir"));
        assert!(refusal(|c| c.initial_cluster = String::new()).starts_with("--bootstrap"));
        let why = refusal(|c| (c.bootstrap, c.restore) = (false, "backup".into()));
        assert!(why.starts_with("--restore") && why.contains("--bootstrap"), "{why}");
    }

    #[test]
    fn another_address_than_loopback_has_to_be_meant() {
        for open in ["0.0.0.0:7401", "10.1.2.3:7401", "[::]:7401"] {
            let why = refusal(|c| c.listen = open.to_owned());
            assert!(why.contains("--insecure-listen"), "{why}");
            let mut config = good();
            config.listen = open.to_owned();
            config.insecure_listen = true;
            config.validate().expect("it was meant");
        }
        let mut config = good();
        config.peer_listen = "127.9.9.9:0".to_owned();
        config.validate().expect("all of 127.0.0.0/8 is loopback");
    }

    #[test]
    fn faults_on_purpose_stay_on_this_machine() {
        let open = "0.0.0.0:7401".to_owned();
        let at: [fn(&mut Config, String); 3] = [
            |c, open| c.listen = open,
            |c, open| c.peer_listen = open,
            |c, open| c.admin_listen = open,
        ];
        for set in at {
            let why = refusal(|c| {
                (c.lab, c.insecure_listen) = (true, true);
                set(c, open.clone());
            });
            assert!(why.starts_with("--lab") && why.contains("0.0.0.0:7401"), "{why}");
        }
        assert!(Config { lab: true, ..good() }.validate().is_ok());
    }

    #[test]
    fn an_address_nobody_can_reach_is_not_advertised() {
        assert!(refusal(|c| c.advertise = "0.0.0.0:7401".into()).starts_with("--advertise"));
        assert!(refusal(|c| c.advertise = "host:0".into()).starts_with("--advertise"));
        assert!(refusal(|c| c.peer_advertise = "host".into()).starts_with("--peer-advertise"));
    }

    #[test]
    fn the_members_must_fit() {
        let cases = [
            ("1=127.0.0.1:1", "node 2 is not among"),
            ("2=127.0.0.1:1,2=127.0.0.1:2", "there twice"),
            ("1=127.0.0.1:1,2=127.0.0.1:1", "there twice"),
            ("2", "is not ID=HOST:PORT"),
            ("0=127.0.0.1:1,2=127.0.0.1:2", "is not ID=HOST:PORT"),
            ("2=nowhere", "is not HOST:PORT"),
        ];
        for (members, expected) in cases {
            let why = refusal(|c| c.initial_cluster = members.to_owned());
            assert!(why.starts_with("--initial-cluster") && why.contains(expected), "{why}");
        }
    }

    #[test]
    fn spans_go_to_a_collector_only_where_the_program_can_send_them() {
        let why = refusal(|c| c.otlp_endpoint = "collector:4317".into());
        assert!(why.starts_with("--otlp-endpoint"), "{why}");
        if cfg!(feature = "otel") {
            assert!(why.contains("is not http://HOST:PORT"), "{why}");
            assert!(refusal(|c| c.otlp_endpoint = "https://h:4317".into()).contains("http://"));
            let fit = Config { otlp_endpoint: "http://127.0.0.1:4317".into(), ..good() };
            assert!(fit.validate().is_ok());
        } else {
            assert!(why.contains("--features otel"), "{why}");
        }
    }

    #[test]
    fn timeouts_leave_room_for_heartbeats() {
        let ms = Duration::from_millis;
        assert!(refusal(|c| c.heartbeat_interval = ms(1)).starts_with("--heartbeat-interval"));
        assert!(refusal(|c| c.heartbeat_interval = ms(101)).starts_with("--election-timeout-min"));
        assert!(
            refusal(|c| c.election_timeout_max = ms(300)).starts_with("--election-timeout-max")
        );
        assert!(refusal(|c| c.retained_log_bytes = 0).starts_with("--retained-log-bytes"));
        assert!(refusal(|c| c.snapshot_rate = 1_000).starts_with("--snapshot-rate"));
        assert!(refusal(|c| c.zone = "z".repeat(257)).starts_with("--zone"));
        assert!(refusal(|c| c.weight = 0).starts_with("--weight"));
        assert!(refusal(|c| c.weight = 65_536).starts_with("--weight"));
        assert!(refusal(|c| c.calls_max = 0).starts_with("--calls-max"));
        assert!(refusal(|c| c.waits_max = 0).starts_with("--waits-max"));
        assert!(refusal(|c| c.streams_max = 0).starts_with("--streams-max"));
        assert!(refusal(|c| c.message_bytes_max = 1).starts_with("--message-bytes-max"));
    }
}
